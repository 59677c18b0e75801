"""The loop's parts: generators, guard, blocks, update rules, callbacks, chained gradients."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill import distill, load_real
from datastill.core.batch import Batch
from datastill.core.context import Context, class_means
from datastill.core.errors import Diverged, InputError
from datastill.core.guard import Guard
from datastill.core.loop import Outcome, synthesize
from datastill.core.plan import Callback, ClassMajor, Grads, Plan, Stepper, Synthetic, Task, UpdateRule
from datastill.core.rng import Rng, isolated
from datastill.core.update import Adam, Sgd, cosine
from datastill.core.wrapped import Steady
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.result import rising, strayed
from datastill.methods.dm import DM
from datastill.models import resolve_network
from datastill.sampling.inits import Given, Noise, make_init
from datastill.store.checkpoint import Checkpointer


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def task(digits: RealSet) -> Task:
    return Task(digits, 1, resolve_network("convnet:width=4,depth=1", channels=1, classes=10, size=(8, 8)))


def start(n: int = 10) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=Rng(0).generator("start"))


def plan(objective, rule=None, steps: int = 3, **changes) -> Plan:
    return Plan(
        init=Given(start()),
        decoder=Pixels(),
        objective=objective,
        update={"images": rule or Sgd(lr=0.1)},
        steps=steps,
        **changes,
    )


def square(context: Context) -> Tensor:
    return context.synthetic.x.square().sum()


class TestRng:
    def test_keys_are_independent_and_repeatable(self) -> None:
        rng = Rng(7)
        draws = {key: torch.rand(3, generator=rng.generator(*key)).tolist() for key in [("a", 1), ("a", 2), ("b", 1)]}
        assert len({tuple(v) for v in draws.values()}) == 3
        assert torch.rand(3, generator=Rng(7).generator("a", 1)).tolist() == draws["a", 1]

    @given(st.integers(), st.text(), st.lists(st.integers() | st.text(), max_size=3))
    def test_numbers_and_words_never_collide(self, seed: int, purpose: str, key: list) -> None:
        rng = Rng(seed)
        assert 0 <= rng.derive(purpose, *key) < 2**63
        assert rng.derive(purpose, *key, 1) != rng.derive(purpose, *key, "1")

    def test_isolated_leaves_the_global_state(self) -> None:
        before = torch.get_rng_state()
        with isolated(3):
            one = torch.rand(2)
        with isolated(3):
            assert torch.equal(one, torch.rand(2))
        assert torch.equal(before, torch.get_rng_state())


class TestUpdate:
    def test_sgd_with_momentum_by_hand(self, task: Task) -> None:
        codes = synthesize(plan(square, Sgd(lr=0.1, momentum=0.5), steps=3), task).codes["images"]
        x, buffer = start(), torch.zeros(10, 1, 8, 8)
        for _ in range(3):
            buffer = 0.5 * buffer + 2 * x
            x = x - 0.1 * buffer
        assert torch.allclose(codes, x, atol=1e-6)

    def test_schedule_scales_the_rate(self, task: Task) -> None:
        codes = synthesize(plan(square, Sgd(lr=0.1, schedule=cosine), steps=2), task).codes["images"]
        assert torch.allclose(codes, start() * (1 - 0.2) * (1 - 0.1), atol=1e-6)

    def test_a_leaf_may_be_maximized(self, task: Task) -> None:
        codes = synthesize(plan(square, Sgd(lr=0.1, maximize=True), steps=1), task).codes["images"]
        assert torch.allclose(codes, start() * 1.2, atol=1e-6)

    def test_adam_resumes_exactly(self, task: Task, tmp_path) -> None:
        whole = synthesize(plan(square, Adam(lr=0.1), steps=6), task).codes["images"]

        class Stop(Exception):
            pass

        class Breaks(Callback):
            def after_step(self, context: Context) -> None:
                if context.step == 5:
                    raise Stop

        keeper = Checkpointer(tmp_path, {}, every_steps=1, every_seconds=1e9)
        with pytest.raises(Stop):
            synthesize(plan(square, Adam(lr=0.1), steps=6), task, checkpointer=keeper, callbacks=[Breaks()])
        resumed = synthesize(plan(square, Adam(lr=0.1), steps=6), task, checkpointer=keeper).codes["images"]
        assert torch.equal(whole, resumed)


class TestGuard:
    @pytest.mark.parametrize("where", ["loss", "gradient"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_bad_step_changes_nothing(self, task: Task, where: str, value: float) -> None:
        """One bad step among good ones: the result is that of the good ones, momentum included."""

        def objective(context: Context) -> Grads:
            x = context.synthetic.x.detach()
            bad = torch.tensor(value) if context.step == 1 else torch.tensor(0.0)
            grad = 2 * x + (bad if where == "gradient" else 0)
            return Grads(loss=x.square().sum() + (bad if where == "loss" else 0), x=grad)

        outcome = synthesize(plan(objective, Sgd(lr=0.1, momentum=0.5), steps=4), task)
        good = synthesize(plan(square, Sgd(lr=0.1, momentum=0.5), steps=3), task)
        assert outcome.skipped == 1
        assert torch.allclose(outcome.codes["images"], good.codes["images"], atol=1e-6)

    def test_too_many_in_a_row_stop(self, task: Task) -> None:
        def objective(context: Context) -> Tensor:
            return context.synthetic.x.sum() * float("nan")

        with pytest.raises(Diverged, match="25 times in a row"):
            synthesize(plan(objective, steps=100), task)

    def test_a_diverged_run_keeps_its_last_good_set(self, digits: RealSet, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("datastill.core.wrapped._TOO_LARGE", float("inf"))  # else the rate is lowered ...
        monkeypatch.setattr("datastill.core.guard.FARTHEST", float("inf"))  # ... or the first step is refused
        with pytest.raises(Diverged, match="learning rate"):
            distill("dm", digits, ipc=1, network="convnet:width=4,depth=1", steps=200, real_batch=4,
                    image_lr=1e38, out=tmp_path / "run", checkpoint_seconds=0.0)  # fmt: skip
        kept = Checkpointer(tmp_path / "run" / "checkpoints", {}).path(0)
        from datastill.store.checkpoint import read_snapshot

        assert torch.isfinite(read_snapshot(kept).group("codes")["images"]).all()


class Affine:
    """A decoder with a chain rule of its own: x = 3 * codes."""

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": images / 3}

    def draw(self, generator: torch.Generator) -> None:
        return None

    def decode(self, codes, y, record=None) -> Synthetic:
        return Synthetic(codes["images"] * 3, y)

    def backward(self, codes, y, record, grads):
        return {"images": grads * 3}

    def project(self, codes, context, when) -> None: ...

    def describe(self) -> dict:
        return {"decoder": "affine"}


def test_loss_and_gradients_of_images_are_one_contract(task: Task) -> None:
    """An objective may return its loss or d loss / d decoded images: the codes move alike."""

    def filled(context: Context) -> Grads:
        x = context.synthetic.x.detach()
        return Grads(loss=x.square().sum(), x=2 * x)

    by_loss, by_grads = (
        synthesize(dataclasses.replace(plan(o, steps=2), decoder=Affine()), task).codes["images"]
        for o in (square, filled)
    )
    assert torch.allclose(by_loss, by_grads, atol=1e-6)
    assert not torch.allclose(by_loss, start() / 3)


def test_blocks_are_independent_and_in_order(task: Task, tmp_path) -> None:
    """DM's classes do not meet: class-major blocks give whole sets, resumable one by one."""
    base = dataclasses.replace(DM(steps=3, real_batch=8).build(task), augment=None)
    blocks = dataclasses.replace(base, partition=ClassMajor(3))
    keeper = Checkpointer(tmp_path, {}, every_seconds=1e9)
    one = synthesize(blocks, task, checkpointer=keeper)
    assert one.codes["images"].shape == (10, 1, 8, 8)
    assert one.losses.shape == (4, 3)
    assert torch.equal(one.extra["selected"], synthesize(base, task).extra["selected"])
    keeper.path(2).unlink()
    again = synthesize(blocks, task, checkpointer=keeper)
    assert torch.equal(one.codes["images"], again.codes["images"])


def test_callbacks_see_and_change_the_run(task: Task) -> None:
    seen: list[tuple[int, int]] = []

    class Only(Callback):
        def before_real_batch(self, batch: Batch, context: Context) -> Batch:
            return batch.of(batch.y == batch.y)

        def after_step(self, context: Context) -> None:
            seen.append((context.step, context.skipped))

    class Poison(Callback):
        def before_real_batch(self, batch: Batch, context: Context) -> Batch:
            return dataclasses.replace(batch, x=torch.zeros_like(batch.x))

    build = DM(steps=3, real_batch=8).build(task)
    plain = synthesize(build, task).codes["images"]
    assert torch.equal(plain, synthesize(build, task, callbacks=[Only()]).codes["images"])
    assert seen == [(1, 0), (2, 0), (3, 0)]
    assert not torch.equal(plain, synthesize(build, task, callbacks=[Poison()]).codes["images"])


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 5))
def test_class_means_against_a_loop(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    values = torch.randn(len(y), 3, generator=Rng(seed).generator("v"), dtype=torch.double)
    weight = torch.rand(len(y), generator=Rng(seed).generator("w"), dtype=torch.double) + 0.1
    plain, weighted = class_means(values, y, 4), class_means(values, y, 4, weight)
    assert torch.equal(plain, class_means(values, y, 4, torch.ones(len(y))))
    for c in range(4):
        part = y == c
        if part.any():
            assert torch.allclose(plain[c], values[part].mean(0))
            expected = (values[part] * weight[part, None]).sum(0) / weight[part].sum()
            assert torch.allclose(weighted[c], expected)
        else:
            assert (plain[c] == 0).all()


def test_inits(task: Task, digits: RealSet) -> None:
    real = distill("random", digits, ipc=3)
    assert len(set(real.extra["selected"].tolist())) == 30
    assert torch.equal(digits.labels[real.extra["selected"]], real.labels)
    noise = Noise()
    from datastill.core.plan import Block

    whole = noise.images(task, Block(0, torch.arange(10), task.labels), Context(task, None, None, Rng(0)))[0]
    part = noise.images(task, Block(1, torch.arange(4, 7), task.labels[4:7]), Context(task, None, None, Rng(0)))[0]
    assert torch.equal(whole[4:7], part), "a partition must not change the start"
    assert make_init(whole).describe() != make_init(whole + 1).describe()


def test_bf16_is_close_and_is_recorded(digits: RealSet) -> None:
    settings = {"ipc": 1, "network": "convnet:width=16,depth=2", "steps": 1, "real_batch": 16}
    exact, low = (distill("dm", digits, precision=p, **settings) for p in ("float32", "bf16"))
    start = digits.batch(exact.extra["selected"]).x
    moved = (exact.images - start).norm()
    assert 0 < (low.images - exact.images).norm() < 0.05 * moved
    assert low.manifest["cost"]["precision"] == "bf16"
    assert low.images.dtype == torch.float32
    with pytest.raises(ValueError, match="float32"):
        distill("dm", digits, precision="float23", **settings)


def test_bf16_training_updates_every_step(digits: RealSet) -> None:
    """A cast weight that is cached would never see its update: the loss must fall as in float32."""
    from datastill import evaluate

    made = distill("random", digits, ipc=2)
    curves = [evaluate(made, digits, networks=1, random=False, precision=p) for p in ("float32", "bf16")]
    assert curves[1].distilled.losses[-1] < 0.1 * curves[1].distilled.losses[0]
    assert abs(curves[0].mean - curves[1].mean) < 0.05


def test_checks_watch_training_images_and_resume(digits: RealSet, tmp_path) -> None:
    """`--check-every`: a curve that changes nothing, reads no test image and survives a stop."""
    from datastill.core.errors import Interrupted
    from datastill.evaluation.check import Check

    settings = {"ipc": 1, "network": "convnet:width=4,depth=1", "steps": 6, "real_batch": 8}
    whole = Check(2, images=100)
    watched = distill("dm", dataclasses.replace(digits, test=None), callbacks=[whole], **settings)
    assert [step for step, _ in whole.accuracies] == [2, 4, 6]
    assert torch.equal(watched.images, distill("dm", digits, **settings).images)

    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        distill("dm", digits, out=tmp_path / "run", callbacks=[Check(2, images=100), Stop()], **settings)
    resumed = Check(2, images=100)
    distill("dm", digits, out=tmp_path / "run", resume=True, callbacks=[resumed], **settings)
    assert resumed.accuracies == whole.accuracies


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"debias": "kde"}, r"on other weights of real images \(--debias\); use the same"),
        ({"labels": 2}, "on other real images or labels; use the same"),
        ({"network": "convnet:width=2,depth=1"}, "its network.* use the same settings"),
    ],
)
def test_a_finished_run_says_in_words_what_another_one_differs_in(
    digits: RealSet, tmp_path, change: dict, told: str
) -> None:
    settings = {"ipc": 1, "network": "convnet:width=4,depth=1", "out": tmp_path / "run"}
    distill("random", digits, **settings)
    turned = dataclasses.replace(digits, labels=digits.labels.roll(change.pop("labels", 0)))
    with pytest.raises(InputError, match=told):
        distill("random", turned, resume=True, **{**settings, **change})


class TestRatesThatFit:
    """A published learning rate belongs to the networks of its paper."""

    @staticmethod
    def moved(gradients: list[float], rule: UpdateRule) -> tuple[list[float], Stepper]:
        leaf = torch.zeros(4)
        stepper = rule.bind(leaf)
        positions = []
        for value in gradients:
            stepper.after(torch.full((4,), value), 0.0)
            positions.append(float(leaf[0]))
        return positions, stepper

    def test_healthy_steps_are_those_of_the_rule(self) -> None:
        gradients = [0.5, -0.3, 0.9, 0.1, 0.2, 7.0]
        plain, _ = self.moved(gradients, Sgd(1.0, 0.5))
        steady, stepper = self.moved(gradients, Steady(Sgd(1.0, 0.5)))
        assert steady == plain
        assert stepper.note() == ""

    def test_steps_far_too_large_fall_to_a_hundredth_and_are_told(self) -> None:
        positions, stepper = self.moved([68.0] * 3, Steady(Sgd(1.0)))
        assert positions == pytest.approx([-0.01, -0.02, -0.03])
        assert "0.000147 instead of 1" in stepper.note()

    def test_a_method_may_know_a_lower_bound_but_no_higher_one(self) -> None:
        for most, moved in ((0.25, -0.01), (0.35, -0.3), (2.0, -0.3)):
            assert self.moved([0.3], Steady(Sgd(1.0), most=most))[0] == pytest.approx([moved]), most
        assert self.moved([3.0], Steady(Sgd(1.0), most=5.0))[0] == pytest.approx([-0.01])

    def test_later_gradients_decide_nothing(self) -> None:
        positions, _ = self.moved([50.0] * 5 + [5.0], Steady(Sgd(1.0)))
        assert positions[-1] - positions[-2] == pytest.approx(-0.001, abs=1e-6)

    def test_it_goes_on_where_it_was_and_from_checkpoints_of_before_as_they_were(self) -> None:
        _, one = self.moved([40.0, 30.0], Steady(Sgd(1.0, 0.9)))
        other = Steady(Sgd(1.0, 0.9)).bind(torch.zeros(4))
        other.load(one.state())
        old = Steady(Sgd(1.0, 0.9)).bind(torch.zeros(4))
        old.load({name: value for name, value in one.state().items() if name not in ("seen", "total")})
        for stepper in (one, other, old):
            stepper.after(torch.full((4,), 20.0), 0.0)
        assert torch.equal(one.state()["momentum_buffer"], other.state()["momentum_buffer"])
        assert other.note() == one.note() != ""
        assert old.note() == ""

    def test_numbers_that_run_away_end_the_run_with_the_way_out(self) -> None:
        with pytest.raises(Diverged, match="have run away"):
            Guard().holds({"images": torch.full((3,), 60.0)}, step=7)
        Guard().holds({"images": torch.full((3,), 40.0), "order": torch.arange(100)}, step=7)

    def test_pixels_that_left_the_range_of_images_are_told(self) -> None:
        network = "convnet:width=8,depth=1"
        made = distill("dm", load_real("digits"), ipc=1, steps=24, network=network, real_batch=8, image_lr=0.1)
        assert not any("outside" in note or "rose" in note for note in made.manifest["notes"])
        far = dataclasses.replace(made, codes={"images": made.codes["images"] * 30})
        assert "far outside of the range of images" in strayed(far)[0]

    def test_another_network_trains_at_the_default(self) -> None:
        """A residual network's pixels went from -442 to 598 in 30 steps."""
        made = distill("dm", load_real("digits"), ipc=1, steps=3, network="resnet18:norm=batch", real_batch=4)
        assert made.images.abs().max() < 4
        assert any("the rate is that of other networks" in note for note in made.manifest["notes"])

    @pytest.mark.parametrize(
        ("losses", "told"),
        [([1.0] * 20 + [4.0] * 20, True), ([4.0] * 20 + [1.0] * 20, False), ([1.0, 9.0], False)],
    )
    def test_a_loss_that_rises(self, losses: list[float], told: bool) -> None:
        outcome = Outcome({}, torch.zeros(0), losses=torch.tensor([losses]))
        assert bool(rising(outcome)) == told
