"""FRePo against its formula written out, its pool against a script, LAMB against its definition."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, evaluate, load_real
from datastill.core.context import Context
from datastill.core.lamb import Lamb
from datastill.core.loop import gradients, synthesize
from datastill.core.plan import Callback, Plan, Task
from datastill.core.registry import get_method
from datastill.core.rng import Rng
from datastill.core.running import start
from datastill.data import RealSet
from datastill.engines.kernels import DenseKernel
from datastill.models import resolve_network
from datastill.objectives.kernel_ridge import margin_term
from datastill.store.artifact import DistilledSet

NETWORK = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, network: str = NETWORK, ipc: int = 2) -> Task:
    c, *size = real.shape
    return Task(real, ipc, resolve_network(network, channels=c, classes=real.classes, size=tuple(size)))


def plan_of(name: str, task: Task, **options: object) -> Plan:
    return get_method(name).cls(**{"steps": 5, "real_batch": 6, **options}).build(task)


def first_step(plan: Plan, task: Task) -> tuple[Context, Tensor, dict[str, Tensor]]:
    """The context at the first step, its loss and gradients."""
    running = start(plan, task, next(iter(plan.partition.blocks(task.labels))), [], {})
    context = running.context
    if plan.surrogates is not None:
        context.surrogate = plan.surrogates.draw(context)
    loss, grads = gradients(context, None)
    return context, loss, grads


def literal(f_t: Tensor, f_s: Tensor, y_s: Tensor, y_t: Tensor, lam: float) -> Tensor:
    """The regression's error as it is written, by an inverse."""
    gram = f_s @ f_s.T
    ridge = lam * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    return 0.5 * (f_t @ f_s.T @ torch.linalg.inv(gram + ridge) @ y_s - y_t).square().sum(1).mean()


@pytest.mark.parametrize("mirror", ["on", "off"])
def test_loss_and_gradients_are_the_formula(digits: RealSet, mirror: str) -> None:
    task = task_of(digits)
    plan = plan_of("frepo", task, mirror=mirror, ridge=1e-3)
    context, loss, grads = first_step(plan, task)
    batch = plan.sampler.draw(digits, context)
    network = context.surrogate.double()
    x, y = (context.codes[name].double().requires_grad_() for name in ("images", "labels"))
    support = torch.cat([x, x.flip(3)]) if mirror == "on" else x
    targets = torch.cat([y, y]) if mirror == "on" else y
    f_t, f_s = network.embed(batch.x.double()).detach(), network.embed(support)
    wanted = literal(f_t, f_s, targets, F.one_hot(batch.y, 10) - 0.1, 1e-3)
    top = y.sort(1, descending=True).values
    wanted = wanted - torch.minimum(top[:, 0] - top[:, 1], torch.tensor(0.1)).mean()
    by_hand = torch.autograd.grad(wanted, [x, y])
    assert float(loss) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name, gradient in zip(("images", "labels"), by_hand, strict=True):
        assert (grads[name] - gradient).norm() < 2e-3 * gradient.norm()


def test_no_gradient_reaches_the_network(digits: RealSet) -> None:
    task = task_of(digits)
    context, _, _ = first_step(plan_of("frepo", task), task)
    assert all(p.grad is None and not p.requires_grad for p in context.surrogate.parameters())
    assert not context.surrogate.training


def test_the_margin_saturates_at_one_part_of_the_classes() -> None:
    y = torch.tensor([[0.9, -0.1, -0.1, -0.1], [0.2, 0.1, -0.1, -0.1], [0.3, 0.3, 0.0, 0.0]]).requires_grad_()
    loss = margin_term(y)
    assert float(loss.detach()) == pytest.approx(-(0.25 + 0.1 + 0.0) / 3)
    (gradient,) = torch.autograd.grad(loss, y)
    assert gradient[0].tolist() == [0, 0, 0, 0]
    assert gradient[1].tolist() == pytest.approx([-1 / 3, 1 / 3, 0, 0])


def test_with_an_analytic_kernel_and_no_margin_it_is_kip(digits: RealSet) -> None:
    """Identity 8 of the family."""
    task, kip = task_of(digits), plan_of("kip", task_of(digits))
    frepo = plan_of("frepo", task, margin=False, mirror="off")
    frepo = dataclasses.replace(frepo, objective=dataclasses.replace(frepo.objective, kernel=DenseKernel()))
    (_, one, grads), (_, other, wanted) = first_step(frepo, task), first_step(kip, task)
    assert torch.equal(one, other)
    assert all(torch.equal(grads[name], wanted[name]) for name in ("images", "labels"))
    assert not torch.equal(first_step(plan_of("frepo", task, margin=False), task)[1], other)


def test_the_pool_is_the_scripted_one(digits: RealSet) -> None:
    """A network that was drawn with a counter above the horizon is replaced, any other is trained once."""
    task = task_of(digits, "convnet:width=2,depth=1", ipc=1)
    plan = plan_of("frepo", task, steps=60, pool=4, horizon=8, real_batch=1)
    seen: list[list[int]] = []

    class See(Callback):
        def after_step(self, context: Context) -> None:
            seen.append(list(context.plan.surrogates.counters))

    synthesize(plan, task, callbacks=[See()])
    counters, replaced = [0, 2, 4, 6], 0
    for step in range(59):
        drawn = int(torch.randint(4, (), generator=Rng(task.seed).generator("pool", 0, step)))
        replaced += counters[drawn] > 8
        counters[drawn] = 0 if counters[drawn] > 8 else counters[drawn] + 1
        assert seen[step] == counters
    assert replaced >= 2


def test_networks_take_one_step_of_adam_on_the_set(digits: RealSet) -> None:
    task = task_of(digits)
    plan = plan_of("frepo", task, net_lr=1e-2, pool=1)
    context, _, _ = first_step(plan, task)
    network = context.surrogate
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    leaves = {name: p.clone().requires_grad_() for name, p in before.items()}
    outputs = torch.func.functional_call(network, leaves, context.codes["images"])
    loss = 0.5 * (outputs - context.codes["labels"]).square().sum(1).mean()
    slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    plan.surrogates.advance(context)
    for name, p in network.named_parameters():
        moved = slopes[name].abs() > 1e-4  # Adam's first step is lr times the sign
        assert torch.allclose((p - before[name])[moved], -1e-2 * slopes[name].sign()[moved], rtol=1e-2)
    assert plan.surrogates.counters == [1]


def test_lamb_has_one_ratio_for_a_leaf() -> None:
    leaf = torch.randn(3, 4, generator=Rng(0).generator("leaf"))
    grads = [torch.randn(3, 4, generator=Rng(k).generator("grad")) for k in (1, 2)]
    x, m, v = leaf.clone(), torch.zeros(3, 4), torch.zeros(3, 4)
    stepper = Lamb(0.1, schedule=lambda progress: 1 - progress).bind(leaf)
    for k, g in enumerate(grads):
        stepper.after(g, progress=k / 2)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9 ** (k + 1)) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-6)
        x = x - 0.1 * (1 - k / 2) * x.norm() / u.norm() * u
        assert torch.allclose(leaf, x, atol=1e-6)
    zero = torch.zeros(2)
    Lamb(0.1).bind(zero).after(torch.tensor([1.0, -2.0]), 0.0)
    assert torch.allclose(zero, torch.tensor([-0.1, 0.1]), atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_resume_is_bit_identical(digits: RealSet, tmp_path: Path, norm: str) -> None:
    """Through replacements of networks, with counters, moments, statistics and labels."""

    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 17:
                raise KeyboardInterrupt

    options = {"ipc": 1, "network": f"{NETWORK},norm={norm}", "steps": 25, "real_batch": 4, "pool": 3, "horizon": 6}
    whole = distill("frepo", digits, **options)
    with pytest.raises(KeyboardInterrupt):
        distill("frepo", digits, out=tmp_path / "run", checkpoint_seconds=0.0, callbacks=[Stop()], **options)
    again = distill("frepo", digits, out=tmp_path / "run", resume=True, **options)
    assert torch.equal(again.labels, whole.labels)
    assert torch.equal(again.images, whole.images)


def test_mirrored_copies_of_an_odd_size_are_no_error() -> None:
    x = torch.rand(12, 3, 17, 17, generator=Rng(0).generator("odd"))
    real = load_real((x, torch.arange(12) % 2), holdout=0)
    made: DistilledSet = distill("frepo", real, ipc=1, network=NETWORK, steps=2, real_batch=3, mirror="on")
    assert torch.isfinite(made.images).all()


@pytest.mark.slow
def test_what_is_learned_beats_random_by_far(digits: RealSet) -> None:
    rates = {"image_lr": 5e-3, "label_lr": 5e-3, "net_lr": 5e-3}
    made = distill("frepo", digits, ipc=1, network="convnet:width=32,depth=2", steps=300, real_batch=40, **rates)
    found = evaluate(made, digits, networks=2)
    assert found.distilled.mean - found.random.mean > 0.15
