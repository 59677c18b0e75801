"""Labels that are learned: where they begin, how they move, what the artifact says, what evaluation makes of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import compare, distill, evaluate, load_distilled, load_real
from datastill.core import registry
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import Block, Grads, Plan, Task
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.core.update import Sgd
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.evaluation.check import Check
from datastill.evaluation.evaluate import trained
from datastill.evaluation.protocols import Protocol
from datastill.labels.learned import Learned
from datastill.models import resolve_network
from datastill.sampling.inits import RandomReal
from datastill.training.regression import SquaredError, published_steps
from datastill.training.trainers import Labeled

NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def task(digits: RealSet) -> Task:
    return Task(digits, 2, resolve_network(NETWORK, channels=1, classes=10, size=(8, 8)))


def through_autograd(context: Context) -> Tensor:
    """A regression of the labels on the images, by a fixed linear map."""
    return (context.synthetic.x.flatten(1)[:, :10] - context.synthetic.y).square().sum()


def through_grads(context: Context) -> Grads:
    """The same by hand."""
    difference = context.synthetic.x.flatten(1)[:, :10].detach() - context.synthetic.y.detach()
    x = F.pad(2 * difference, (0, 54)).view(-1, 1, 8, 8)
    return Grads(difference.square().sum(), x, {"labels": -2 * difference})


@dataclass(frozen=True)
class Prototype(registry.Method):
    labels: object = dataclasses.field(default_factory=Learned)
    objective: object = through_autograd
    rate: float = 0.01
    steps: int = 3

    def build(self, task: Task) -> Plan:
        return Plan(
            init=RandomReal(),
            decoder=Pixels(),
            objective=self.objective,
            labels=self.labels,
            update={"images": Sgd(lr=0.1), "labels": Sgd(lr=self.rate, momentum=0.5)},
            steps=self.steps,
        )


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_they_begin_as_centered_one_hot_rows(task: Task, scale: float) -> None:
    made = synthesize(Prototype(Learned(scale=scale), steps=0).build(task), task)
    wanted = torch.full((20, 10), -0.1) + torch.eye(10).repeat_interleave(2, 0)
    assert torch.allclose(made.y, scale * wanted)


def test_autograd_and_grads_move_them_alike_at_a_rate_of_their_own(task: Task) -> None:
    runs = [synthesize(Prototype(objective=f).build(task), task) for f in (through_autograd, through_grads)]
    assert torch.allclose(runs[0].y, runs[1].y, atol=1e-6)
    assert torch.allclose(runs[0].codes["images"], runs[1].codes["images"], atol=1e-6)
    begin = synthesize(Prototype(steps=0).build(task), task)
    one = synthesize(Prototype(steps=1, rate=0.02).build(task), task)
    difference = begin.codes["images"].flatten(1)[:, :10] - begin.y
    assert torch.allclose(one.y - begin.y, 0.04 * difference, atol=1e-6)


def test_they_may_begin_as_something_else(task: Task) -> None:
    made = synthesize(Prototype(Learned("logits", start=lambda _, x: x.flatten(1)[:, :10]), steps=0).build(task), task)
    assert torch.equal(made.y, made.codes["images"].flatten(1)[:, :10])
    with pytest.raises(InputError, match="20 rows of 10 numbers"):
        synthesize(Prototype(Learned(start=lambda _, x: x.flatten(1))).build(task), task)


def test_the_artifact_says_that_they_are_no_probabilities(digits: RealSet, tmp_path: Path) -> None:
    made = distill(Prototype(), digits, ipc=1, network=NETWORK, out=tmp_path / "run")
    again = load_distilled(tmp_path / "run")
    assert again.label_kind == "regression"
    assert again.record.student.protocol == "frepo-quick-v1"
    assert torch.equal(again.labels, made.labels)
    assert (again.labels < 0).any()
    assert again.hard_labels.tolist() == list(range(10))


def test_a_check_trains_on_learned_labels(digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits as their softmax; targets of a regression are none that a check trains on."""
    taken: list[Tensor] = []

    def kept(network: object, x: Tensor, y: Tensor, *rest: object, **others: object) -> None:
        taken.append(y.clone())

    monkeypatch.setattr("datastill.evaluation.check.train", kept)
    for kind in ("logits", "regression"):
        context = Context(
            task := Task(digits, 1, resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))),
            Prototype(Learned(kind)).build(task), Block(0, torch.arange(10), torch.arange(10)), Rng(0), step=1,
        )  # fmt: skip
        context.codes = {"images": torch.zeros(10, 1, 8, 8), "labels": torch.randn(10, 10, generator=torch.Generator())}
        Check(1, images=10).after_step(context)
        expected = context.codes["labels"].softmax(1) if kind == "logits" else torch.arange(10)
        assert torch.equal(taken.pop(), expected)


def test_a_protocol_of_hard_labels_refuses_targets_and_names_others(digits: RealSet) -> None:
    made = distill(Prototype(), digits, ipc=1, network=NETWORK)
    with pytest.raises(
        InputError,
        match=r"are regression, and dc-v1 trains on .*; take krr-v1 or .* or frepo-v1 or frepo-quick-v1",
    ):
        evaluate(made, digits, protocol="dc-v1", networks=1)


def test_a_comparison_under_one_is_refused_before_any_work(digits: RealSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labels of frepo are regression, and dc-v1 trains on"):
        compare(["dm", "frepo"], digits, ipc=1, protocol="dc-v1", out=tmp_path / "all")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.json"))


def test_logits_are_trained_on_by_their_softmax(digits: RealSet) -> None:
    short = Protocol("short", "two passes", passes=2)
    made = distill(Prototype(Learned("logits", scale=3.0)), digits, ipc=1, network=NETWORK)
    manifest = {**made.manifest, "label_kind": "probabilities"}
    soft = dataclasses.replace(made, labels=made.labels.softmax(1), manifest=manifest)
    one, other = (trained(s, digits, protocol=short)[0].state_dict() for s in (made, soft))
    assert all(torch.equal(one[name], other[name]) for name in one)
    hard = dataclasses.replace(made, labels=made.hard_labels)
    third = trained(hard, digits, protocol=short)[0].state_dict()
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_targets_are_learned_by_a_squared_error(digits: RealSet) -> None:
    """Scaled targets give scaled outputs, which a softmax would not."""
    batch = digits.batch(torch.arange(20))
    factory = resolve_network("convnet:width=8,depth=1", channels=1, classes=10, size=(8, 8))
    fit = SquaredError(10, lr=1e-2, most=300, warmup=10)
    targets = 5 * torch.randn(20, 10, generator=Rng(0).generator("targets"))
    found = fit.train(factory, Labeled(batch.x, targets), [Rng(0)], Runtime.of("cpu"), lambda *_: None)
    with torch.no_grad():
        error = (found.networks[0](batch.x) - targets).square().mean().sqrt()
    assert error < 1
    assert found.losses[0][-1] < 0.1 * found.losses[0][0]


def test_classes_are_centered_one_hot_targets(digits: RealSet) -> None:
    batch = digits.batch(torch.arange(10))
    factory = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))
    fit = SquaredError(10, lr=1e-2, most=5)
    rows = F.one_hot(batch.y, 10).float() - 0.1
    ends = [
        fit.train(factory, Labeled(batch.x, y), [Rng(0)], Runtime.of("cpu"), lambda *_: None).networks[0].state_dict()
        for y in (batch.y, rows)
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    fit = SquaredError(10, lr=1.0, warmup=500)
    assert [fit.factor(step, 2000) for step in (0, 499, 500)] == pytest.approx([1 / 500, 1, 1])
    assert fit.factor(1999, 2000) == pytest.approx(0.01, abs=1e-4)
    assert [published_steps(n) for n in (10, 100, 200, 1000, 2000, 9000)] == [1000, 2000, 20000, 10000, 40000, 40000]
