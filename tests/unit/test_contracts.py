"""What methods that are to come ask of the loop: a prototype in a few lines for each contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from datastill import distill, load_distilled, load_real
from datastill.core import registry
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import Outcome, synthesise
from datastill.core.plan import AllAtOnce, Callback, ClassMajor, Codes, Grads, Plan, Task
from datastill.core.rng import Rng
from datastill.core.update import Sgd
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.models import resolve_network
from datastill.sampling.inits import Given
from datastill.store.checkpoint import Checkpointer

PREPARED = {"teacher": {"labels": torch.eye(10)}}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def task(digits: RealSet) -> Task:
    return Task(digits, 1, resolve_network("convnet:width=4,depth=1", channels=1, classes=10, size=(8, 8)))


def start(n: int = 10) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=Rng(0).generator("start"))


def square(context: Context) -> Tensor:
    return context.synthetic.x.square().sum()


def plan(objective: Callable[[Context], Tensor | Grads] = square, **changes: object) -> Plan:
    base = Plan(
        init=Given(start()),
        decoder=Pixels(),
        objective=objective,
        update={"images": Sgd(lr=0.1, momentum=0.5)},
        steps=4,
    )
    return dataclasses.replace(base, **changes)


class Stop(Exception):
    pass


class StopAt(Callback):
    """A crash after so many steps of all blocks."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def after_step(self, context: Context) -> None:
        self.left -= 1
        if not self.left:
            raise Stop


def resumed(build: Callable[[], Plan], task: Task, folder: Path, steps: int = 3) -> Outcome:
    """The outcome, which is the same when the run crashes after so many steps and goes on from its checkpoint."""
    whole = synthesise(build(), task, prepared=PREPARED)
    keeper = Checkpointer(folder, {}, every_steps=1, every_seconds=1e9)
    with pytest.raises(Stop):
        synthesise(build(), task, checkpointer=keeper, callbacks=[StopAt(steps)], prepared=PREPARED)
    again = synthesise(build(), task, checkpointer=keeper, prepared=PREPARED)
    for one, other in ((whole.codes, again.codes), (whole.shared, again.shared), ({"y": whole.y}, {"y": again.y})):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    return again


class Learned:
    """Labels as FRePo and KIP learn them: a row for each image, at first its class in a centered one-hot code."""

    kind = "regression"

    def leaves(self, context: Context, images: Tensor, extra: Codes) -> Codes:
        assert images.shape[0] == len(context.block.y)
        assert "images" in context.codes
        return {"targets": context.prepared["teacher"]["labels"][context.block.y] - 0.1}

    def during(self, context: Context) -> Tensor:
        assert context.codes["targets"].requires_grad
        return 2 * context.codes["targets"]

    def final(self, context: Context) -> Tensor:
        return 2 * context.codes["targets"]


def regression(context: Context) -> Tensor:
    """Of the labels on the images, by a fixed linear map."""
    synthetic = context.synthetic
    head = torch.ones(64, 10) / 64
    return (synthetic.x.flatten(1) @ head - synthetic.y).square().sum() + synthetic.y.sum()


class TestLeaves:
    rules: ClassVar = {"images": Sgd(lr=0.01), "targets": Sgd(lr=0.01, momentum=0.5)}

    @pytest.mark.parametrize("partition", [AllAtOnce(), ClassMajor(4)])
    def test_labels_are_learned(self, task: Task, tmp_path: Path, partition: AllAtOnce | ClassMajor) -> None:
        learned = plan(regression, labels=Learned(), update=self.rules, partition=partition)
        made = resumed(lambda: learned, task, tmp_path)
        assert set(made.codes) == {"images"}
        assert made.shared == {}
        moved = made.y - 2 * (torch.eye(10) - 0.1)
        assert made.y.shape == (10, 10)
        assert (moved.abs() > 1e-3).all()

    def test_labels_move_as_by_hand(self, task: Task) -> None:
        """One step: d/dt sum((m - 2t)^2 + 2t) = -4 (m - 2t) + 2."""
        made = synthesise(plan(regression, labels=Learned(), update=self.rules, steps=1), task, prepared=PREPARED)
        targets = torch.eye(10) - 0.1
        mean = start().flatten(1).mean(1, keepdim=True)
        assert torch.allclose(made.y, 2 * (targets - 0.01 * (2 - 4 * (mean - 2 * targets))), atol=1e-6)

    def test_shared_leaves_after_preparation_of_which_some_are_kept(self, task: Task, tmp_path: Path) -> None:
        def leaves(context: Context) -> Codes:
            return {"psi": context.prepared["teacher"]["labels"][0] + 1, "lr": torch.tensor(0.5)}

        def objective(context: Context) -> Tensor:
            return (context.codes["psi"].sum() * context.codes["lr"]) * context.synthetic.x.square().mean()

        rules = {"images": Sgd(lr=0.1), "psi": Sgd(lr=0.1, maximise=True), "lr": Sgd(lr=1e-3)}
        built = plan(objective, shared=leaves, update=rules, keep=("lr",))
        made = resumed(lambda: built, task, tmp_path)
        assert set(made.shared) == {"psi", "lr"}
        assert (made.shared["psi"] > torch.eye(10)[0] + 1).all()
        assert made.shared["lr"] < 0.5
        with pytest.raises(InputError, match="one block"):
            synthesise(dataclasses.replace(built, partition=ClassMajor(4)), task, prepared=PREPARED)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"shared": {"images": torch.zeros(1)}}, "Two leaves of this plan are called 'images'"),
            ({"keep": ("psi",)}, "keeps 'psi'"),
        ],
    )
    def test_leaves_that_do_not_go_together_are_refused(self, task: Task, changes: dict, said: str) -> None:
        with pytest.raises(InputError, match=said):
            synthesise(plan(**changes), task)

    def test_a_set_keeps_learned_labels_and_chosen_leaves(self, digits: RealSet, tmp_path: Path) -> None:
        @dataclass(frozen=True)
        class Method(registry.Method):
            steps: int = 2

            def build(self, task: Task) -> Plan:
                shared = {"psi": torch.zeros(3), "lr": torch.tensor(0.5)}
                return plan(regression, labels=FromOneHot(), shared=shared, keep=("lr",), steps=self.steps)

        class FromOneHot(Learned):
            def leaves(self, context: Context, images: Tensor, extra: Codes) -> Codes:
                return {"targets": torch.eye(10)[context.block.y] - 0.1}

        made = distill(Method(), digits, ipc=1, network="convnet:width=4,depth=1", out=tmp_path / "run")
        again = load_distilled(tmp_path / "run")
        assert again.label_kind == "regression"
        assert torch.equal(again.labels, made.labels)
        assert set(again.extra) == {"lr", "classes"}
        assert set(again.codes) == {"images"}

    def test_learned_labels_have_a_row_for_each_image(self, task: Task) -> None:
        class Wrong(Learned):
            def leaves(self, context: Context, images: Tensor, extra: Codes) -> Codes:
                return {"targets": torch.zeros(3, 10)}

        with pytest.raises(InputError, match="learned labels of 10 images"):
            synthesise(plan(regression, labels=Wrong()), task)
