"""What methods that are to come ask of the loop: a prototype in a few lines for each contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, load_distilled, load_real
from datastill.core import registry
from datastill.core.context import Context, class_means
from datastill.core.errors import InputError
from datastill.core.loop import Outcome, synthesize
from datastill.core.overrides import Override
from datastill.core.plan import AllAtOnce, Callback, ClassMajor, Codes, Grads, Plan, Synthetic, Task
from datastill.core.rng import Rng
from datastill.core.snapshot import Snapshot
from datastill.core.update import Adam, AdamW, SequentialSgd, Sgd
from datastill.core.wrapped import Ema, Every
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.job import prepare_job
from datastill.distillation.preparation import prepare, prepared_path
from datastill.models import resolve_network
from datastill.overrides.debias import Weights
from datastill.overrides.surrogates import Surrogates
from datastill.sampling.inits import Given
from datastill.sampling.weighted import WeightedClassBatches
from datastill.store import checkpoint
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


NETWORK = "convnet:width=4,depth=1"


def method_of(build: Callable[[Task], Plan]) -> registry.Method:
    """A method with this plan."""

    @dataclass(frozen=True)
    class Prototype(registry.Method):
        steps: int = 4

        def build(self, task: Task) -> Plan:
            return build(task)

    return Prototype()


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
    whole = synthesize(build(), task, prepared=PREPARED)
    keeper = Checkpointer(folder, {}, every_steps=1, every_seconds=1e9)
    with pytest.raises(Stop):
        synthesize(build(), task, checkpointer=keeper, callbacks=[StopAt(steps)], prepared=PREPARED)
    again = synthesize(build(), task, checkpointer=keeper, prepared=PREPARED)
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
        made = synthesize(plan(regression, labels=Learned(), update=self.rules, steps=1), task, prepared=PREPARED)
        targets = torch.eye(10) - 0.1
        mean = start().flatten(1).mean(1, keepdim=True)
        assert torch.allclose(made.y, 2 * (targets - 0.01 * (2 - 4 * (mean - 2 * targets))), atol=1e-6)

    def test_shared_leaves_after_preparation_of_which_some_are_kept(self, task: Task, tmp_path: Path) -> None:
        def leaves(context: Context) -> Codes:
            return {"psi": context.prepared["teacher"]["labels"][0] + 1, "lr": torch.tensor(0.5)}

        def objective(context: Context) -> Tensor:
            return (context.codes["psi"].sum() * context.codes["lr"]) * context.synthetic.x.square().mean()

        rules = {"images": Sgd(lr=0.1), "psi": Sgd(lr=0.1, maximize=True), "lr": Sgd(lr=1e-3)}
        built = plan(objective, shared=leaves, update=rules, keep=("lr",))
        made = resumed(lambda: built, task, tmp_path)
        assert set(made.shared) == {"psi", "lr"}
        assert (made.shared["psi"] > torch.eye(10)[0] + 1).all()
        assert made.shared["lr"] < 0.5
        with pytest.raises(InputError, match="one block"):
            synthesize(dataclasses.replace(built, partition=ClassMajor(4)), task, prepared=PREPARED)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"shared": {"images": torch.zeros(1)}}, "Two leaves of this plan are called 'images'"),
            ({"keep": ("psi",)}, "keeps 'psi'"),
            ({"update": {"image": Sgd(lr=0.1)}}, "rule for 'image', and the leaves are .'images'."),
            ({"shared": {"psi": torch.zeros(1)}, "update": {"psi": Sgd(lr=0.1)}}, "no gradient of it"),
        ],
    )
    def test_leaves_that_do_not_go_together_are_refused(self, task: Task, changes: dict, said: str) -> None:
        with pytest.raises(InputError, match=said):
            synthesize(plan(**changes), task)

    def test_a_set_keeps_learned_labels_and_chosen_leaves(self, digits: RealSet, tmp_path: Path) -> None:
        class FromOneHot(Learned):
            def leaves(self, context: Context, images: Tensor, extra: Codes) -> Codes:
                return {"targets": torch.eye(10)[context.block.y] - 0.1}

        shared = {"psi": torch.zeros(3), "lr": torch.tensor(0.5)}
        built = plan(regression, labels=FromOneHot(), shared=shared, keep=("lr",))
        made = distill(method_of(lambda task: built), digits, ipc=1, network=NETWORK, out=tmp_path / "run")
        again = load_distilled(tmp_path / "run")
        assert again.label_kind == "regression"
        assert torch.equal(again.labels, made.labels)
        assert set(again.extra) == {"lr", "classes"}
        assert set(again.codes) == {"images"}

    def test_gradients_of_images_alone_do_not_move_a_leaf(self, task: Task) -> None:
        def images_alone(context: Context) -> Grads:
            return Grads(torch.zeros(()), torch.zeros_like(context.synthetic.x))

        with pytest.raises(InputError, match="'targets' has an update rule, and the objective gives no gradient"):
            synthesize(plan(images_alone, labels=Learned(), update=self.rules), task, prepared=PREPARED)

    def test_learned_labels_have_a_row_for_each_image(self, task: Task) -> None:
        class Wrong(Learned):
            def leaves(self, context: Context, images: Tensor, extra: Codes) -> Codes:
                return {"targets": torch.zeros(3, 10)}

        with pytest.raises(InputError, match="learned labels of 10 images"):
            synthesize(plan(regression, labels=Wrong()), task)


class Latents:
    """A decoder as GLaD's: latents that a prepared generator turns into images."""

    def __init__(self) -> None:
        self.basis = torch.zeros(0)

    def begin(self, context: Context, images: Tensor, extra: Codes) -> Codes:
        self.basis = context.prepared["teacher"]["labels"]
        extra.pop("ranks", None)
        return {"w": images.flatten(1)[:, :10]}

    def encode(self, images: Tensor) -> Codes:
        raise AssertionError("latents do not come from images alone")

    def draw(self, generator: torch.Generator) -> None:
        return None

    def decode(self, codes: Codes, y: Tensor, record: object = None) -> Synthetic:
        x = F.pad(codes["w"] @ self.basis, (0, 54)).view(-1, 1, 8, 8)
        return Synthetic(x, y)

    def project(self, codes: Codes, context: Context, when: str) -> None: ...

    def describe(self) -> dict[str, object]:
        return {"decoder": "glad", "layers": 3}


class TestDecoders:
    @pytest.mark.parametrize("partition", [AllAtOnce(), ClassMajor(4)])
    def test_codes_begin_with_what_was_prepared(self, task: Task, tmp_path: Path, partition: AllAtOnce) -> None:
        def build() -> Plan:
            return plan(decoder=Latents(), update={"w": Sgd(lr=0.1)}, partition=partition)

        made = resumed(build, task, tmp_path)
        assert torch.allclose(made.codes["w"], start().flatten(1)[:, :10] * 0.8**4)

    @pytest.mark.parametrize("described", [{"decoder": "glad"}, {"decoder": "pixels", "layers": 3}])
    def test_one_that_could_not_be_read_back_is_refused_before_the_first_step(
        self, digits: RealSet, tmp_path: Path, described: dict
    ) -> None:
        class Lost(Pixels):
            def describe(self) -> dict[str, object]:
                return described

        def never(context: Context) -> Tensor:
            raise AssertionError("a step was made")

        made = method_of(lambda task: plan(never, decoder=Lost()))
        with pytest.raises(InputError, match=f"could not be read back.*decoders/{described['decoder']}.py"):
            distill(made, digits, ipc=1, network=NETWORK, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


class Clamped(Pixels):
    """Keeps images in [-1, 1], whatever the Space."""

    def project(self, codes: Codes, context: Context, when: str) -> None:
        codes["images"].clamp_(-1, 1)


class TestUpdateRules:
    @pytest.mark.parametrize("inner", [Sgd(lr=0.1, momentum=0.5), Adam(lr=0.1), AdamW(lr=0.1, weight_decay=0.5)])
    def test_an_average_is_that_of_the_images_after_each_step(self, task: Task, tmp_path: Path, inner: Sgd) -> None:
        seen: list[Tensor] = []

        class See(Callback):
            def after_step(self, context: Context) -> None:
                seen.append(context.codes["images"].clone())

        plain = synthesize(plan(decoder=Clamped(), update={"images": inner}), task, callbacks=[See()])
        made = resumed(lambda: plan(decoder=Clamped(), update={"images": Ema(inner, 0.9)}), task, tmp_path)
        weights = [0.9 ** (3 - k) for k in range(4)]
        mean = sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights)
        assert torch.allclose(made.codes["images"], mean, atol=1e-5)
        assert not torch.allclose(made.codes["images"], plain.codes["images"], atol=1e-3)

    def test_a_finished_checkpoint_is_not_averaged_again(self, task: Task, tmp_path: Path) -> None:
        built = plan(update={"images": Ema(Sgd(lr=0.1), 0.5)})
        runs = [synthesize(built, task, checkpointer=Checkpointer(tmp_path, {})) for _ in range(2)]
        assert torch.equal(runs[0].codes["images"], runs[1].codes["images"])

    def test_an_average_of_no_step_is_the_start(self, task: Task) -> None:
        made = synthesize(plan(update={"images": Ema(Sgd(lr=0.1), 0.5)}, steps=0), task)
        assert torch.equal(made.codes["images"], start())

    def test_an_average_around_early_moves_forgets_refused_steps(self, task: Task) -> None:
        """The step is undone with its average: the result is that of the good steps."""

        def bad(context: Context) -> Tensor:
            return square(context) * (float("nan") if context.step == 2 else 1.0)

        rule = Ema(SequentialSgd(lr=0.1, momentum=0.5, rows=torch.arange(10)), 0.5)
        good = synthesize(plan(update={"images": rule}, steps=3), task)
        made = synthesize(plan(bad, update={"images": rule}, steps=4), task)
        assert made.skipped == 1
        assert torch.equal(made.codes["images"], good.codes["images"])

    def test_a_leaf_may_move_now_and_then(self, task: Task, tmp_path: Path) -> None:
        """At the first and the third of four steps."""
        made = resumed(lambda: plan(update={"images": Every(Sgd(lr=0.1, momentum=0.5), 2)}), task, tmp_path)
        twice = synthesize(plan(steps=2), task)
        assert torch.equal(made.codes["images"], twice.codes["images"])

    @pytest.mark.parametrize("rule", [Ema(Sgd(lr=0.1), 1.0), Every(Sgd(lr=0.1), 0)])
    def test_impossible_values_are_refused(self, task: Task, rule: Ema) -> None:
        with pytest.raises(InputError):
            synthesize(plan(update={"images": rule}), task)


@dataclass(frozen=True)
class Unit:
    """Counts how often it ran, and adds up what it needs."""

    name: str
    needs: tuple[str, ...] = ()
    value: float = 1.0
    ran: list[str] = field(default_factory=list, compare=False)

    def macs(self, task: Task) -> float:
        return 0.0

    def key(self, task: Task) -> dict[str, float]:
        return {"value": self.value}

    def run(self, task: Task) -> dict[str, Tensor]:
        assert set(task.prepared) == set(self.needs)
        self.ran.append(self.name)
        return {"sum": self.value + sum((p["sum"] for p in task.prepared.values()), torch.zeros(()))}


class TestUnits:
    def test_they_run_after_what_they_need_and_see_it(self, task: Task) -> None:
        units = [Unit("c", ("b", "a")), Unit("b", ("a",)), Unit("a")]
        prepared, _ = prepare(plan(prepare=units), task)
        assert {name: float(made["sum"]) for name, made in prepared.items()} == {"a": 1, "b": 2, "c": 4}
        assert list(prepared) == ["a", "b", "c"]

    def test_their_files_depend_on_what_they_need(self, task: Task, tmp_path: Path) -> None:
        kept = dataclasses.replace(task, folder=tmp_path)
        ran: list[str] = []
        for value in (1.0, 1.0, 2.0):
            units = [Unit("b", ("a",), ran=ran), Unit("a", value=value, ran=ran)]
            prepared, _ = prepare(plan(prepare=units), kept)
            assert float(prepared["b"]["sum"]) == 1 + value
        assert ran == ["a", "b", "a", "b"]
        assert prepared_path(units[1], kept, units) == prepared_path(units[1], kept)

    def test_one_alone_brings_what_it_needs(self, task: Task) -> None:
        units = [Unit("c"), Unit("b", ("a",)), Unit("a")]
        assert list(prepare(plan(prepare=units), task, units[1])[0]) == ["a", "b"]

    @pytest.mark.parametrize(
        ("units", "said"),
        [
            ([Unit("a"), Unit("a")], "Two units that are prepared are called 'a'"),
            ([Unit("a", ("b",))], "'a' needs 'b'"),
            ([Unit("a", ("b",)), Unit("b", ("a",))], "'a' would be prepared after itself: a → b"),
        ],
    )
    def test_those_that_cannot_be_ordered_are_refused(self, digits: RealSet, units: list[Unit], said: str) -> None:
        with pytest.raises(InputError, match=said):
            distill(method_of(lambda task: plan(prepare=units)), digits, ipc=1, network=NETWORK)


def test_checkpoints_take_two_percent_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of 3 seconds puts the next one off by 150; one after every step is what 0 asks for."""
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "write_snapshot", lambda path, snapshot: now.__setitem__(0, now[0] + 3.0))
    keeper, always = (Checkpointer(tmp_path, {}, seconds, _last=0.0) for seconds in (15.0, 0.0))
    now[0] = 15.0
    assert keeper.due(1)
    keeper.write(0, Snapshot())
    always.write(0, Snapshot())
    now[0] = 18.0 + 149.0
    assert not keeper.due(2)
    assert always.due(2)
    now[0] = 18.0 + 150.0
    assert keeper.due(3)


@dataclass(frozen=True)
class Noisy(Override):
    """A toy of a privacy mechanism: noise on the statistics of the real images."""

    option = "privacy"

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        def noisy(values: Tensor, y: Tensor, weight: Tensor | None, context: Context) -> Tensor:
            means = class_means(values, y, context.task.classes, weight)
            return means + torch.randn(means.shape, generator=context.generator("noise"))

        return dataclasses.replace(plan, reduce=noisy)

    def describe(self) -> dict[str, object]:
        return {"noise": 1.0}


class TestReduce:
    settings: ClassVar = {"ipc": 1, "network": NETWORK, "steps": 2, "real_batch": 8}

    def test_an_override_replaces_it(self, digits: RealSet) -> None:
        plain, noisy = (prepare_job("dm", digits, overrides=o, **self.settings) for o in ((), (Noisy(),)))
        losses = [synthesize(job.plan(), job.task).losses for job in (plain, noisy, noisy)]
        assert not torch.equal(losses[0], losses[1])
        assert torch.equal(losses[1], losses[2])

    @pytest.mark.parametrize("method", ["dc", "idc"])
    def test_objectives_that_do_not_go_through_it_refuse(self, digits: RealSet, method: str) -> None:
        with pytest.raises(InputError, match=f"{method} does not take all that it sees of real images"):
            prepare_job(method, digits, overrides=(Noisy(),), **self.settings).plan()


@dataclass(frozen=True)
class Pairs:
    """A sampler and surrogates of a method's own, which are none of ours."""

    factory: object = None
    per_class: int | None = 5
    draws: str = "network"


class TestCapabilities:
    """An override takes what says that it can be exchanged, whatever its class is."""

    weights = Weights("kde", {"draw": True})

    @staticmethod
    def weighted(digits: RealSet) -> Task:
        return Task(digits.with_weights(torch.ones(len(digits))), 1, None)

    def test_samplers_that_draw_per_class(self, digits: RealSet) -> None:
        made = self.weights.apply(plan(sampler=Pairs()), "toy", self.weighted(digits))
        assert made.sampler == WeightedClassBatches(5)
        with pytest.raises(InputError, match="toy does not draw class batches"):
            self.weights.apply(plan(sampler=Pairs(per_class=None)), "toy", self.weighted(digits))

    def test_networks_that_others_stand_in_for(self, task: Task) -> None:
        pool = Surrogates.parse("dfa:count=2,steps=3")
        made = pool.apply(plan(surrogates=Pairs(task.network)), "toy", task)
        assert [unit.factory for unit in made.prepare] == [task.network] * 2
        assert not Surrogates.fits(plan(surrogates=Pairs(task.network, draws="segment")))
        with pytest.raises(InputError, match="toy does not match on fresh random networks"):
            pool.apply(plan(surrogates=Pairs(task.network, draws="segment")), "toy", task)
