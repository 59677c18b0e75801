"""Recovery and directed weight adjustment: mechanics (checks RL, ST-4 and DW)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import datastill
from datastill.augment.recovery_views import RecoveryViews
from datastill.core.context import Context
from datastill.core.errors import InputError, ShareDone
from datastill.core.loop import synthesize
from datastill.core.plan import AllAtOnce, Block, Callback, Plan, Synthetic
from datastill.core.rng import Rng, isolated
from datastill.decoders.pixels import Pixels
from datastill.methods.cda import CDA
from datastill.methods.dwa import DWA
from datastill.methods.sre2l import SRe2L
from datastill.objectives.recovery import Recovery, total_variation
from datastill.sampling.inits import RandomReal
from datastill.surrogates.perturbed import Perturbed
from datastill.surrogates.pretrained import Pretrained
from datastill.surrogates.teachers import Brought, Teacher
from decoupled_data import NETWORK, digits, task_of, teacher


def recover(method: str = "sre2l", **hyper: Any) -> datastill.DistilledSet:
    """Two images of each digit in six steps."""
    values = {"ipc": 2, "steps": 6, "jitter": 2, "teacher": teacher(), "network": NETWORK, **hyper}
    return datastill.distill(method, digits(), **values)


class Seen(Callback):
    """Keeps what a step sees."""

    def __init__(self) -> None:
        self.bounds: list[tuple[float, float]] = []
        self.surrogates: dict[int, Any] = {}

    def after_step(self, context: Context) -> None:
        images = context.codes["images"]
        low, high = context.task.real.space.bounds()
        self.bounds.append((float((images - low).min()), float((high - images).min())))
        self.surrogates[context.block.key] = context.surrogate


def test_pixels_stay_valid_after_every_step():
    seen = Seen()
    recover(callbacks=[seen], image_lr=3.0)
    assert len(seen.bounds) == 12
    assert min(min(pair) for pair in seen.bounds) >= -1e-6


def test_learning_rate_is_the_cosine_in_closed_form():
    plan = SRe2L(teacher=teacher(), steps=8, image_lr=0.25).build(task_of(digits()))
    rule = plan.update["images"]
    for t in (0, 4, 7):
        leaf = torch.zeros(3)
        stepper = rule.bind(leaf)
        stepper.after(torch.ones(3), t / 8)  # Adam's first step moves by the rate
        expected = 0.25 * 0.5 * (1 + math.cos(math.pi * t / 8))
        assert float(-leaf[0]) == pytest.approx(expected, rel=1e-6)


def test_teacher_is_bit_for_bit_as_it_was():
    mine = teacher()
    before = {n: t.clone() for n, t in mine.network.state_dict().items()}
    for method in ("sre2l", "dwa", "cda"):
        recover(method, teacher=mine)
        assert all(torch.equal(before[n], t) for n, t in mine.network.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in mine.network.parameters())
        assert not any(m.training or m._forward_pre_hooks or m._forward_hooks for m in mine.network.modules())


def test_blocks_in_reverse_order_give_the_same_images(monkeypatch: pytest.MonkeyPatch):
    from datastill.sampling.partitions import IpcMajor

    forward = recover("dwa", block_classes=4)
    blocks = IpcMajor.blocks
    monkeypatch.setattr(IpcMajor, "blocks", lambda self, y: reversed(list(blocks(self, y))))
    assert torch.equal(recover("dwa", block_classes=4).images, forward.images)


def test_two_processes_and_shares_give_the_images_of_one(tmp_path: Path):
    hyper = {"teacher": "", "squeeze_passes": 2, "block_classes": 4, "seed": 3}
    one = recover("dwa", out=tmp_path / "one", **hyper)
    two = recover("dwa", out=tmp_path / "two", workers=2, **hyper)
    assert torch.equal(one.images, two.images)
    for share in ((0, 2), (1, 2)):
        with pytest.raises(ShareDone, match=rf"Share {share[0]}/2 is done: 3 of 6 blocks"):
            recover("dwa", out=tmp_path / "parts", shard=share, resume=share[0] > 0, **hyper)
    assert torch.equal(recover("dwa", out=tmp_path / "parts", resume=True, **hyper).images, one.images)


def test_blocks_over_processes_need_a_folder():
    with pytest.raises(InputError, match="--out"):
        recover(workers=2)
    with pytest.raises(InputError, match="share"):
        recover(shard=(2, 2), out="unused")


def test_a_stopped_run_goes_on_to_the_same_images(tmp_path: Path):
    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.block.key == 1 and context.step == 3:
                raise KeyboardInterrupt

    whole = recover("dwa", block_classes=4)
    with pytest.raises(KeyboardInterrupt):
        recover("dwa", block_classes=4, out=tmp_path / "run", callbacks=[Stop()], checkpoint_seconds=0.0)
    again = recover("dwa", block_classes=4, out=tmp_path / "run", resume=True)
    assert torch.equal(again.images, whole.images)


def test_without_perturbation_or_curriculum_it_is_sre2l_bit_for_bit():
    plain = recover(init="real", r_bn=0.05)
    for hyper in ({"ascent_steps": 0}, {"radius": 0.0}):
        assert torch.equal(recover("dwa", variance_weight=1.0, r_bn=0.05, **hyper).images, plain.images)
    assert not torch.equal(recover("dwa", variance_weight=1.0, r_bn=0.05).images, plain.images)
    assert torch.equal(recover("cda", milestone=0.0).images, recover(crop=True).images)


def test_pixel_terms_are_not_computed_when_off(monkeypatch: pytest.MonkeyPatch):
    import datastill.objectives.recovery as module

    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed")

    monkeypatch.setattr(module, "total_variation", refuse)
    recover()
    x = torch.randn(3, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    naive = sum(
        math.sqrt(sum(float((x[n, 0, i, j] - x[n, 0, i + di, j + dj]) ** 2) for n in range(3)
                      for i in range(5) for j in range(6) if 0 <= i + di < 5 and 0 <= j + dj < 6))
        for di, dj in ((0, 1), (1, 0), (1, -1), (1, 1))
    )  # fmt: skip
    assert float(total_variation(x)) == pytest.approx(naive, rel=1e-5)


def linear_context(images: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> tuple[Context, Pretrained, Any]:
    """A block of given images before a linear softmax teacher."""
    real = digits()
    with isolated(0):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False)).double()
    network[1].weight.data.copy_(weight)
    source = Brought(Teacher(network, real.space, real.class_names, 1, (8, 8)))
    pretrained = Pretrained(source)
    plan = Plan(init=RandomReal(), decoder=Pixels(), surrogates=pretrained)
    task = task_of(real, ipc=1)
    block = next(AllAtOnce().blocks(y))
    context = Context(task, plan, block, Rng(0), (), steps=1, prepared={"teacher": {"trial": torch.tensor(1.0)}})
    context.codes = {"images": images}
    return context, pretrained, network


def test_plain_ascent_on_a_linear_model_is_the_analytic_gradient():
    g = torch.Generator().manual_seed(1)
    y = torch.arange(10)
    images = torch.randn(10, 1, 8, 8, dtype=torch.float64, generator=g)
    weight = 0.1 * torch.randn(10, 64, dtype=torch.float64, generator=g)
    context, pretrained, network = linear_context(images, y, weight)
    moved = Perturbed(pretrained, RecoveryViews(), steps=1, radius=0.5, normalize=False)
    moved.begin(context)
    change = moved.draw(context)[1].weight - weight
    x = images.flatten(1)
    p = (x @ weight.T).softmax(1)
    expected = 0.5 * (p - F.one_hot(y, 10)).T @ x / len(x)
    torch.testing.assert_close(change, expected)
    assert torch.equal(network[1].weight, weight)
    assert network[1].weight.grad is None


def test_normalized_ascent_goes_a_fixed_way_and_raises_the_loss():
    g = torch.Generator().manual_seed(2)
    y = torch.arange(10)
    images = torch.randn(10, 1, 8, 8, dtype=torch.float64, generator=g)
    weight = 0.1 * torch.randn(10, 64, dtype=torch.float64, generator=g)
    context, pretrained, network = linear_context(images, y, weight)
    losses = [float(F.cross_entropy(network(images), y))]
    for steps in (1, 4):
        moved = Perturbed(pretrained, RecoveryViews(), steps=steps, radius=0.3)
        moved.begin(context)
        made = moved.draw(context)
        length = float((made[1].weight - weight).norm())
        assert length == pytest.approx(0.3, rel=1e-9) if steps == 1 else length <= 0.3 * (1 + 1e-9)
        losses.append(float(F.cross_entropy(made(images), y)))
    assert losses[1] > losses[0]
    assert losses[2] > losses[0]


@dataclass(frozen=True)
class Ordered:
    """Given blocks in a given order."""

    given: tuple[Block, ...]

    def blocks(self, y: torch.Tensor) -> Iterator[Block]:
        return iter(self.given)

    def describe(self) -> dict[str, Any]:
        return {}


def test_every_block_has_a_teacher_of_its_own_whatever_came_before():
    found = []
    task = task_of(digits(), ipc=3)
    for backwards in (False, True):
        seen = Seen()
        plan = DWA(teacher=teacher(), steps=1).build(task)
        unit = plan.prepare[0]
        blocks = tuple(plan.partition.blocks(task.labels))
        order = Ordered(blocks[::-1] if backwards else blocks)
        synthesize(replace(plan, partition=order), task, callbacks=[seen], prepared={"teacher": unit.run(task)})
        found.append({k: [p.clone() for p in net.parameters()] for k, net in seen.surrogates.items()})
    first, second = found
    assert all(torch.equal(a, b) for k in first for a, b in zip(first[k], second[k], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))


def test_statistics_of_the_base_network_differ_from_those_of_the_perturbed():
    assert not torch.equal(recover("dwa", bn_on="base").images, recover("dwa").images)


def test_real_batches_can_direct_the_adjustment():
    a, b = recover("dwa", batch="real"), recover("dwa", batch="real")
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, recover("dwa").images)


def test_finished_blocks_keep_neither_networks_nor_optimizers():
    alive: list[weakref.ref[Any]] = []

    class Watch(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 1:
                alive.append(weakref.ref(context.surrogate))
            assert sum(ref() is not None for ref in alive) == 1, "one perturbed teacher at a time"

    recover("dwa", block_classes=2, steps=2, callbacks=[Watch()])
    assert len(alive) == 10


def test_objective_weighs_means_and_variances_apart():
    real, mine = digits(), teacher()
    x = real.batch(torch.arange(10)).x
    task = task_of(real, ipc=1)
    values = {}
    for weight in (0.0, 1.0, 3.0):
        plan = SRe2L(teacher=mine).build(task)
        context = Context(task, plan, next(AllAtOnce().blocks(torch.arange(10))), Rng(0), (), steps=1)
        context.synthetic, context.surrogate = Synthetic(x, torch.arange(10)), mine.network
        values[weight] = float(Recovery(RecoveryViews(), 1.0, variance_weight=weight)(context))
    assert values[3.0] - values[0.0] == pytest.approx(3 * (values[1.0] - values[0.0]), rel=1e-4)


def test_the_set_says_that_a_teacher_labels_it_and_brings_it_along(tmp_path: Path):
    made = recover(out=tmp_path / "run")
    assert made.manifest["student"] == {"protocol": "soft-quick-v1", "labels": "teacher"}
    assert made.manifest["companions"]["teacher"]["trial_accuracy"] > 0.9
    result = datastill.evaluate(datastill.load_distilled(tmp_path / "run"), networks=1, protocol="soft-quick-v1")
    assert any("by the teacher" in note for note in result.notes)
    hard = datastill.evaluate(made, digits(), networks=1, labels="hard")
    assert any("hard" in note for note in hard.notes)
    assert not torch.equal(hard.distilled.accuracies, result.distilled.accuracies)


def test_soft_protocols_without_a_teacher_say_what_to_do():
    made = datastill.distill("random", digits(), ipc=1)
    with pytest.raises(InputError, match="--teacher FOLDER"):
        datastill.evaluate(made, digits(), protocol="soft-quick-v1", networks=1)
    with pytest.raises(InputError, match="labels of the set"):
        datastill.evaluate(made, digits(), protocol="dc-v1", labels="hard", networks=1)
    with pytest.raises(InputError, match=r"auto, hard, soft .* or teacher"):
        datastill.evaluate(made, digits(), labels="firm", networks=1)


def test_curriculum_reaches_the_views():
    views = CDA(curriculum="linear").views()
    assert views.crop is not None
    assert views.crop(0.5) == pytest.approx((0.54, 1.0))
