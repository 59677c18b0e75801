"""The joint form of per-class momentum against one torch optimizer that is stepped class after class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datastill import load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import Callback, ClassMajor, Grads, Plan, Task
from datastill.core.rng import Rng
from datastill.core.update import SequentialSgd, Sgd, cosine
from datastill.decoders.pixels import Pixels
from datastill.models import resolve_network
from datastill.sampling.inits import Given
from datastill.store.checkpoint import Checkpointer


def problem(classes: int, ipc: int, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Classes of the rows (shuffled), a start, and the curvature of every number."""
    generator = Rng(classes).generator("problem")
    rows = torch.tensor(ids).repeat_interleave(ipc)[torch.randperm(classes * ipc, generator=generator)]
    start = torch.randn(classes * ipc, 2, 3, dtype=torch.double, generator=generator)
    return rows, start, torch.rand(start.shape, dtype=torch.double, generator=generator) + 0.5


def literal(rows, start, curve, sweeps, lr, momentum, sign=1.0, schedule=None) -> Tensor:
    """One optimizer over the whole leaf, stepped once per class with that class's gradient only.

    With a schedule every class has its own group, whose rate changes when its turn has come.
    """
    order = rows.unique().tolist()
    leaves = [start[rows == c].clone() for c in order]
    curves = [curve[rows == c] for c in order]
    first = lr if schedule is None else lr * schedule(0.0)
    optimizer = torch.optim.SGD([{"params": [leaf]} for leaf in leaves], lr=first, momentum=momentum)
    for sweep in range(sweeps):
        for c, (leaf, each) in enumerate(zip(leaves, curves, strict=True)):
            if schedule is not None:
                optimizer.param_groups[c]["lr"] = lr * schedule(sweep / sweeps)
            for other in leaves:
                other.grad = torch.zeros_like(other)
            leaf.grad = sign * 2 * each * leaf
            optimizer.step()
    whole = torch.empty_like(start)
    for c, leaf in zip(order, leaves, strict=True):
        whole[rows == c] = leaf
    return whole


def joint(rule: SequentialSgd | Sgd, start, curve, sweeps) -> Tensor:
    leaf = start.clone()
    stepper = rule.bind(leaf)
    for sweep in range(sweeps):
        stepper.before()
        stepper.after(2 * curve * leaf, sweep / sweeps)
    return leaf


@pytest.mark.parametrize("classes", [1, 2, 10])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("ids", ["first", "spread"])
def test_is_the_literal_loop(classes: int, momentum: float, maximize: bool, ids: str) -> None:
    """Positions are ranks among the classes present, whatever their numbers."""
    rows, start, curve = problem(classes, 3, [c if ids == "first" else 7 * c + 3 for c in range(classes)])
    rule = SequentialSgd(0.03, momentum, rows, maximize=maximize)
    expected = literal(rows, start, curve, 6, 0.03, momentum, sign=-1.0 if maximize else 1.0)
    found = joint(rule, start, curve, 6)
    assert (expected - start).abs().max() > 0.05
    assert torch.allclose(found, expected, rtol=0, atol=1e-12 * max(1.0, float(expected.abs().max())))


def test_is_one_optimizer_over_one_tensor() -> None:
    """The oracle's many tensors move as the rows of a single one."""
    rows, start, curve = problem(3, 2, [0, 1, 2])
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.05, momentum=0.5)
    for _ in range(5):
        for c in range(3):
            optimizer.zero_grad()
            (curve * leaf.square())[rows == c].sum().backward()
            optimizer.step()
    found = joint(SequentialSgd(0.05, 0.5, rows), start, curve, 5)
    assert torch.allclose(found, leaf.detach(), rtol=0, atol=1e-12)


def test_a_schedule_changes_a_class_s_rate_with_its_gradient() -> None:
    rows, start, curve = problem(4, 2, [0, 1, 2, 3])
    expected = literal(rows, start, curve, 8, 0.05, 0.5, schedule=cosine)
    found = joint(SequentialSgd(0.05, 0.5, rows, schedule=cosine), start, curve, 8)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, joint(SequentialSgd(0.05, 0.5, rows), start, curve, 8), atol=1e-6)


@pytest.mark.parametrize("schedule", [None, cosine])
def test_without_momentum_it_is_sgd(schedule) -> None:
    rows, start, curve = problem(5, 2, list(range(5)))
    found = joint(SequentialSgd(0.05, 0.0, rows, schedule=schedule), start, curve, 7)
    assert torch.equal(found, joint(Sgd(0.05, schedule=schedule), start, curve, 7))


def test_one_class_is_sgd_with_momentum() -> None:
    rows, start, curve = problem(1, 4, [0])
    found = joint(SequentialSgd(0.05, 0.5, rows), start, curve, 7)
    assert torch.allclose(found, joint(Sgd(0.05, 0.5), start, curve, 7), rtol=0, atol=1e-15)


def test_a_gradient_counts_nearly_twice_in_its_sweep() -> None:
    """lr g (1 + m + m^2 + ...) over a sweep and the next: about 2 lr g for m = 0.5 and ten classes."""
    rows = torch.arange(10)
    leaf = torch.zeros(10, 1, dtype=torch.double)
    stepper = SequentialSgd(0.1, 0.5, rows).bind(leaf)
    stepper.before()
    stepper.after(torch.ones_like(leaf), 0.0)
    assert leaf[0].item() == pytest.approx(-0.1 * 2, rel=2e-3)
    assert leaf[9].item() == pytest.approx(-0.1)
    stepper.before()
    assert leaf[9].item() == pytest.approx(-0.1 * 2, rel=2e-3)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(load_real("digits"), 2, resolve_network("mlp", channels=1, classes=10, size=(8, 8)))


def square(context: Context) -> Tensor:
    return context.synthetic.x.square().sum()


def make_plan(task: Task, objective=square, steps: int = 4, **changes) -> Plan:
    start = torch.randn(20, 1, 8, 8, generator=Rng(0).generator("start"))
    rule = SequentialSgd(0.05, 0.5, task.labels)
    return Plan(Given(start), Pixels(), objective, update={"images": rule}, steps=steps, **changes)


def test_through_the_loop(task: Task) -> None:
    start = torch.randn(20, 1, 8, 8, generator=Rng(0).generator("start"))
    found = synthesize(make_plan(task), task).codes["images"]
    expected = literal(task.labels, start.double(), torch.ones(20, 1, 8, 8, dtype=torch.double), 4, 0.05, 0.5)
    assert torch.allclose(found.double(), expected, atol=1e-6)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_undone(task: Task, where: str) -> None:
    """`before` had moved the images and the momentum: both go back, bit by bit."""

    def objective(context: Context) -> Grads:
        x = context.synthetic.x.detach()
        bad = float("nan") if context.step in (0, 2, 3) else 0.0
        grad = 2 * x + (bad if where == "gradient" else 0)
        return Grads(loss=x.square().sum() + (bad if where == "loss" else 0), x=grad)

    outcome = synthesize(make_plan(task, objective, steps=7), task)
    assert outcome.skipped == 3
    assert torch.equal(outcome.codes["images"], synthesize(make_plan(task), task).codes["images"])


def test_resumes_exactly(task: Task, tmp_path) -> None:
    class Stop(Exception):
        pass

    class Breaks(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 4:
                raise Stop

    def scheduled() -> Plan:
        plan = make_plan(task, steps=6)
        plan.update["images"] = SequentialSgd(0.05, 0.5, task.labels, schedule=cosine)
        return plan

    keeper = Checkpointer(tmp_path, {}, every_steps=1, every_seconds=1e9)
    with pytest.raises(Stop):
        synthesize(scheduled(), task, checkpointer=keeper, callbacks=[Breaks()])
    resumed = synthesize(scheduled(), task, checkpointer=keeper)
    assert torch.equal(resumed.codes["images"], synthesize(scheduled(), task).codes["images"])


def test_blocks_of_some_classes_are_refused(task: Task) -> None:
    with pytest.raises(InputError, match="one block"):
        synthesize(make_plan(task, partition=ClassMajor(4)), task)
