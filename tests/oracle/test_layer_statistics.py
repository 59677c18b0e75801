"""G-VBSM's and EDC's statistics, averages and densification (checks GV-1 to GV-4, ED-1 and ED-2)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import datastill
from datastill.augment.strategies import strategy_for
from datastill.augment.trace import TraceSpec
from datastill.core.context import Context
from datastill.core.plan import Block, Plan
from datastill.core.rng import Rng, isolated
from datastill.decoders.pixels import Pixels
from datastill.engines.layer_statistics import matched_layers, moments_of, moments_per_image, patch_moments, watching
from datastill.objectives.densification import densification
from datastill.objectives.layer_match import LayerMatch
from datastill.sampling.inits import Noise
from datastill.surrogates import layer_targets
from datastill.surrogates.backbones import Backbone
from datastill.surrogates.layer_targets import LayerTargets
from datastill.surrogates.teachers import Brought
from decoupled_data import digits, task_of, teacher


def convolution(channels: int) -> nn.Conv2d:
    """One whose inputs are looked at; its weights are not."""
    with isolated(0):
        return nn.Conv2d(channels, 1, 1)


def test_patches_are_tiles_of_four_pixels() -> None:
    """GV-1: one value per tile, over two images and three channels."""
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = values.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(2, 3, 8, 8).clone()
    mean, variance = patch_moments(x)
    assert mean.tolist() == [1, 2, 3, 4]
    assert variance.tolist() == [0, 0, 0, 0]
    x[1, 2, 0, 4] += 96  # one of the 96 numbers of the second tile
    assert patch_moments(x)[0].tolist() == [1, 3, 3, 4]


def test_other_sides_are_enlarged_to_the_next_multiple_of_four() -> None:
    x = torch.randn(3, 2, 7, 9, generator=Rng(0).generator("x"))
    whole = nn.functional.interpolate(x, size=(8, 12), mode="bilinear", align_corners=False)
    for found, expected in zip(patch_moments(x), patch_moments(whole), strict=True):
        assert torch.equal(found, expected)
        assert len(found) == 6


@pytest.mark.parametrize("shape", [(3, 5, 8, 12), (2, 3, 6, 6)])
def test_four_statistics_and_their_gradient_are_those_of_autograd(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=Rng(1).generator("x")).requires_grad_()
    layer = convolution(shape[1])
    over = (0, 2, 3)
    centered = x - x.mean(over, keepdim=True)
    plain = (x.mean(over), centered.square().mean(over), *patch_moments(x))
    weights = [torch.randn(v.shape, dtype=v.dtype, generator=Rng(2).generator("w", i)) for i, v in enumerate(plain)]
    slopes = []
    for found in (moments_of(layer, x), plain):
        for a, b in zip(found, plain, strict=True):
            assert torch.allclose(a, b, atol=1e-12)
        loss = sum(((v * w).sum() for v, w in zip(found, weights, strict=True)), torch.zeros((), dtype=x.dtype))
        slopes.append(torch.autograd.grad(loss, x, retain_graph=True)[0])
    assert torch.allclose(*slopes, atol=1e-12)


def test_hooks_go_away_also_when_something_fails() -> None:
    network = teacher().network
    layers = dict(enumerate(matched_layers(network)))
    with pytest.raises(ZeroDivisionError), watching(layers, lambda j, x: None):
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in network.modules())


def run_targets(per_class: int = 20, **options: Any) -> tuple[dict[str, Tensor], LayerTargets]:
    """The targets of the digits' teacher."""
    source = Backbone(Brought(teacher()))
    unit = LayerTargets(source, per_class, **options)
    task = replace(task_of(digits()), prepared={"teacher": {"trial": torch.tensor(1.0)}})
    return unit.run(task), unit


def seen_images(per_class: int) -> list[tuple[Tensor, Tensor]]:
    """What the unit shows the backbone, batch by batch, drawn as its docstrings say."""
    real, rng = digits(), Rng(0).child("layer-targets")
    chosen = []
    for c in range(10):
        members = real.class_index(c)
        chosen.append(members[torch.randperm(len(members), generator=rng.generator("choice", c))[:per_class]])
    order = torch.cat(chosen)
    order = order[torch.randperm(len(order), generator=rng.generator("order"))]
    spec = TraceSpec(crop="padded", pad=1, flip="flip" in strategy_for(real.name, real.shape))
    batches = []
    for b, index in enumerate(order.split(layer_targets.BATCH)):
        batch = real.batch(index)
        trace = spec.sample(rng.generator("augment", b), len(index), real.shape)
        batches.append((trace.apply(batch.x), batch.y))
    return batches


def inputs(x: Tensor) -> dict[int, Tensor]:
    """What each layer is given."""
    network, found = teacher().network, dict[int, Tensor]()
    with torch.no_grad(), watching(dict(enumerate(matched_layers(network))), found.__setitem__):
        network(x)
    return found


def test_measured_targets_are_those_of_a_direct_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """GV-2: two batches of unequal sizes; means weigh as many images as there are."""
    monkeypatch.setattr(layer_targets, "BATCH", 130)
    found, _ = run_targets()
    batches = seen_images(20)
    assert [len(x) for x, _ in batches] == [130, 70]
    given = [inputs(x) for x, _ in batches]
    layers = matched_layers(teacher().network)
    convolutions = [j for j, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert {int(name.split("/")[1]) for name in found if name.startswith("layer")} == set(convolutions)
    for j in convolutions:
        for i, over in ((0, "mean"), (1, "var")):
            parts = [getattr(np, over)(g[j].double().numpy(), axis=(0, 2, 3)) for g in given]
            expected = (130 * parts[0] + 70 * parts[1]) / 200
            assert np.allclose(found[f"layer/{j}/{i}"].numpy(), expected, atol=1e-5)
        patches = [patch_moments(g[j].double()) for g in given]
        for i in (2, 3):
            expected_patch = (130 * patches[0][i - 2] + 70 * patches[1][i - 2]) / 200
            assert torch.allclose(found[f"layer/{j}/{i}"].double(), expected_patch, atol=1e-5)


@pytest.mark.parametrize("total", [True, False])
def test_statistics_of_a_class_are_those_of_its_images(total: bool) -> None:
    """ED-2: "total" is the pooled variance of the class."""
    found, _ = run_targets(classes=True, total=total)
    batches = seen_images(20)
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    for j, given in inputs(x).items():
        of_class = given[y == 7].double()
        mean, within = of_class.mean((0, 2, 3)), of_class.var((2, 3), correction=0).mean(0)
        pooled = of_class.var((0, 2, 3), correction=0)
        assert torch.allclose(found[f"class/{j}/0"][7].double(), mean, atol=1e-5)
        assert torch.allclose(found[f"class/{j}/1"][7].double(), pooled if total else within, atol=1e-4)
        assert not torch.allclose(pooled, within, atol=1e-4)


def test_statistics_per_image_are_those_of_blocks_of_one() -> None:
    x = torch.randn(3, 2, 6, 8, generator=Rng(3).generator("x"))
    for layer in (convolution(2), nn.BatchNorm2d(2)):
        each = moments_per_image(layer, x)
        for k in range(3):
            for one, alone in zip(each, moments_of(layer, x[k : k + 1]), strict=True):
                assert torch.allclose(one[k], alone, atol=1e-6)


def block_context(ipc: int = 2, **options: Any) -> tuple[Context, LayerMatch]:
    """A block of all digits, seen as it is by one backbone."""
    from datastill.augment.recovery_views import RecoveryViews

    found, unit = run_targets(classes=True)
    task = task_of(digits(), ipc=ipc)
    block = Block(0, torch.arange(10 * ipc), task.labels)
    context = Context(task, Plan(Noise(), Pixels()), block, Rng(0), (), steps=4, prepared={unit.name: found})
    context.surrogate = teacher().network
    return context, LayerMatch(RecoveryViews(), [unit.name], **{"r": 0.1, "first_layer": 1.0, **options})


def test_averages_have_the_value_of_the_mean_and_the_gradient_of_the_statistic() -> None:
    """GV-3, by closed form on the objective's own average."""
    context, match = block_context(decay=0.8)
    first, second = (torch.tensor([v, 2 * v], requires_grad=True) for v in (1.0, 6.0))
    assert match._averaged(first, "0/0/0", context).tolist() == [1, 2]
    found = match._averaged(second, "0/0/0", context)
    assert found.tolist() == pytest.approx([0.8 * 1 + 0.2 * 6, 0.8 * 2 + 0.2 * 12])
    assert torch.autograd.grad(found.sum(), second)[0].tolist() == [1, 1]
    released = replace(match, ema_start="zero")
    assert released._averaged(first, "0/1/0", context).tolist() == pytest.approx([0.2, 0.4])
    kept = context.state["ema/0/0/0"].clone()
    match._averaged(torch.tensor([math.nan, 1.0]), "0/0/0", context)
    assert torch.equal(context.state["ema/0/0/0"], kept)


def naive_loss(context: Context, x: Tensor, y: Tensor, category: float) -> float:
    """The first step's loss, layer by layer, on the moments that numpy takes."""
    network: Any = context.surrogate
    targets = next(iter(context.prepared.values()))
    total = 0.0
    for j, given in inputs(x).items():
        layer = matched_layers(network)[j]
        mean, var = given.mean((0, 2, 3)), given.var((0, 2, 3), correction=0)
        pairs = [(mean, "0"), (var, "1")]
        if isinstance(layer, nn.Conv2d):
            pairs += list(zip(patch_moments(given), "23", strict=True))
        for value, i in pairs:
            own: Any = {"0": layer.running_mean, "1": layer.running_var} if hasattr(layer, "running_mean") else {}
            target = own[i] if own else targets[f"layer/{j}/{i}"]
            of_class = torch.stack([targets[f"class/{j}/{i}"][c] for c in y.tolist()]).sum(0) / len(y)
            total += (1 - category) * float((value - target).norm()) + category * float((value - of_class).norm())
    return float(nn.functional.cross_entropy(network(x), y)) + 0.1 * total


@pytest.mark.parametrize("category", [0.0, 0.5])
def test_the_loss_is_that_of_plain_loops(category: float) -> None:
    """ED-1 among it: class targets are averaged over the labels of the block, each as often as it is there."""
    from datastill.core.plan import Synthetic

    context, match = block_context(category=category)
    x = torch.randn(3, 1, 8, 8, generator=Rng(5).generator("x"))
    y = torch.tensor([4, 4, 9])  # (2a + b) / 3
    context.synthetic = Synthetic(x, y)
    assert float(match(context)) == pytest.approx(naive_loss(context, x, y, category), rel=1e-4)


def test_dropped_convolutions_leave_batch_norm_alone() -> None:
    """GV-7: with probability 1 no convolution is watched, and every batch-norm layer is."""
    context, match = block_context(dropout=1.0)
    layers = matched_layers(teacher().network)
    _, noted = match._run(context.surrogate, torch.randn(2, 1, 8, 8, generator=Rng(0).generator("x")), context)
    assert {type(layers[j]) for j in noted} == {nn.BatchNorm2d}
    _, half = replace(match, dropout=0.5)._run(context.surrogate, torch.zeros(2, 1, 8, 8), context)
    assert set(noted) <= set(half) <= set(range(len(layers)))


class TestDensification:
    """GV-4."""

    def test_one_image_or_equal_eigenvalues_give_zero(self) -> None:
        with isolated(0):
            x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
        assert float(densification(x, torch.arange(3))) == 0
        apart = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
        assert float(densification(apart, torch.zeros(4, dtype=torch.int64))) == pytest.approx(0, abs=1e-12)

    def test_copies_score_higher_than_distinct_images_and_are_driven_apart(self) -> None:
        generator = Rng(0).generator("x")
        distinct = torch.randn(10, 3, 8, 8, dtype=torch.float64, generator=generator)
        copies = (distinct[:1] + 0.05 * distinct).requires_grad_()
        y = torch.zeros(10, dtype=torch.int64)
        loss = densification(copies, y)
        assert float(loss.detach()) > 10 * float(densification(distinct, y))
        (slope,) = torch.autograd.grad(loss, copies)

        def share(x: Tensor) -> float:
            rows = x.detach().flatten(1)
            values = torch.linalg.eigvalsh(rows @ rows.T)
            return float(values[-1] / values.sum())

        assert share(copies - 0.1 * slope / slope.norm()) < share(copies)
        assert float(densification(copies.detach(), y, scale="raw")) < 1e-6  # as released: nothing

    def test_the_gradient_is_that_of_finite_differences_at_a_fixed_target(self) -> None:
        x = torch.randn(3, 1, 3, 3, dtype=torch.float64, generator=Rng(1).generator("x")).requires_grad_()
        y = torch.zeros(3, dtype=torch.int64)

        def eigenvalues(v: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(v.flatten(1) @ v.flatten(1).T)

        scale = eigenvalues(x.detach()).mean()
        flat = (eigenvalues(x.detach()) / scale / 4).log_softmax(0)

        def fixed(v: Tensor) -> Tensor:
            return (flat.exp() * (flat - (eigenvalues(v) / scale).log_softmax(0))).sum()

        assert torch.autograd.gradcheck(fixed, (x,))
        loss = densification(x, y)
        assert float(loss.detach()) == pytest.approx(float(fixed(x.detach())), rel=1e-9)
        assert torch.allclose(*(torch.autograd.grad(one, x)[0] for one in (loss, fixed(x))), atol=1e-12)
        (slope,) = torch.autograd.grad(densification(100 * x, y, scale="raw"), x)
        assert bool(torch.isfinite(slope).all())

    def test_large_images_are_pooled(self) -> None:
        small = torch.randn(3, 1, 32, 32, generator=Rng(2).generator("x"))
        large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = torch.zeros(3, dtype=torch.int64)
        assert float(densification(large, y)) == pytest.approx(float(densification(small, y)), rel=1e-4)


def test_backbones_that_were_measured_on_the_digits_travel_in_one_file_each() -> None:
    names = {unit.name for unit in datastill.core.registry.get_method("g-vbsm").cls().build(task_of(digits())).prepare}
    assert names == {"teacher", "teacher-1", "statistics-of-teacher", "statistics-of-teacher-1"}
