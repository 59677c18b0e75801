"""Recorded augmentation: views are a function of the record, records come back from a seed or from their fields."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.augment.trace import Trace, TraceSpec
from datastill.core.errors import InputError

SPECS = [
    TraceSpec(crop=crop, shuffle=shuffle, mix=mix, flip=flip, pad=2, alpha=alpha)
    for crop, shuffle, mix, flip, alpha in (
        ("none", 1, "none", False, 1.0),
        ("none", 1, "none", True, 1.0),
        ("resized", 2, "cutmix", True, 1.0),
        ("padded", 3, "mixup", True, 0.8),
        ("padded", 1, "cutmix", False, 0.5),
        ("resized", 1, "mixup", False, 2.0),
    )
]


def images(n: int = 6, height: int = 6, width: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def tiles(x: torch.Tensor, grid: int) -> list[tuple[float, ...]]:
    """The grid x grid patches of one image (c, h, w), as tuples, sorted."""
    _, h, w = x.shape
    edges = [(k * h // grid, k * w // grid) for k in range(grid + 1)]
    cut = (x[:, a:b, c:d] for (a, _), (b, _) in pairwise(edges) for (_, c), (_, d) in pairwise(edges))
    return sorted(tuple(patch.flatten().tolist()) for patch in cut)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SPECS), st.integers(0, 2**63 - 1), st.integers(1, 5), st.integers(3, 9), st.integers(3, 9))
def test_seed_and_fields_give_the_same_views(spec: TraceSpec, seed: int, n: int, height: int, width: int) -> None:
    x = images(n, height, width)
    kept = x.clone()
    trace = spec.replay(seed, n, x.shape[1:])
    views = trace.apply(x)
    assert torch.equal(x, kept)
    assert views.shape == x.shape
    assert torch.equal(spec.replay(seed, n, (height, width)).apply(x), views)
    narrow = {name: t if t.is_floating_point() else t.to(torch.int16) for name, t in trace.tensors().items()}
    again = Trace.from_tensors((height, width), narrow)
    assert again == trace
    assert torch.equal(again.apply(x), views)


PINNED = {
    "row_order": [[1, 0], [1, 0], [1, 0]],
    "column_order": [[0, 1], [1, 0], [1, 0]],
    "boxes": [[3, 2, 2, 2], [2, 1, 3, 3], [0, 0, 5, 4]],
    "flips": [True, True, False],
    "partner": [0, 2, 1],
    "box": [3, 2, 5, 4],
}
PINNED_MIXUP = {
    "boxes": [[-2, -2, 6, 4], [3, 1, 6, 4], [4, 3, 6, 4]],
    "partner": [2, 1, 0],
    "lam": 0.26763200759887695,
}


def test_the_draws_of_a_seed_are_pinned() -> None:
    """A stored seed means these numbers; whoever changes them must raise `trace.VERSION`."""
    trace = TraceSpec(crop="resized", shuffle=2, mix="cutmix").replay(7, 3, (3, 6, 4))
    found = {name: t.tolist() for name, t in trace.tensors().items()}
    assert found == PINNED
    mixed = TraceSpec(crop="padded", flip=False, mix="mixup", alpha=0.8).replay(7, 3, (3, 6, 4))
    found = {name: t.tolist() for name, t in mixed.tensors().items()}
    assert found == PINNED_MIXUP


def test_cutmix_on_a_rectangle_is_a_direct_paste() -> None:
    x, y = images(), torch.tensor([0, 1, 2, 3, 0, 1])
    spec, shares = TraceSpec(flip=False, mix="cutmix"), set()
    for seed in range(60):
        trace = spec.replay(seed, 6, x.shape[1:])
        assert trace.box is not None
        assert trace.partner is not None
        assert sorted(trace.partner.tolist()) == list(range(6))
        top, left, bottom, right = trace.box.tolist()
        assert 0 <= top <= bottom <= 6
        assert 0 <= left <= right <= 4
        views, own = trace.apply(x), 0
        for row, column in itertools.product(range(6), range(4)):
            inside = top <= row < bottom and left <= column < right
            own += not inside
            source = trace.partner if inside else torch.arange(6)
            assert torch.equal(views[:, :, row, column], x[source, :, row, column])
        assert trace.share == pytest.approx(own / 24, abs=1e-12)
        expected = own / 24 * F.one_hot(y, 4) + (1 - own / 24) * F.one_hot(y[trace.partner], 4)
        assert torch.allclose(trace.hard_targets(y, 4), expected, atol=1e-6)
        shares.add(own)
    assert len(shares) >= 6


def test_the_box_is_as_published() -> None:
    """int(side * sqrt(1 - lambda)) around a uniform center, each side of its own length, clipped."""
    spec = TraceSpec(flip=False, mix="cutmix")
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        lam, cy, cx = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        box = []
        for side, center in ((6, cy), (4, cx)):
            half, middle = int(side * math.sqrt(1 - lam)) // 2, int(center * side)
            box.append((max(0, middle - half), min(side, middle + half)))
        trace = spec.replay(seed, 5, (6, 4))
        assert trace.box is not None
        assert trace.box.tolist() == [box[0][0], box[1][0], box[0][1], box[1][1]]


def test_mixup_is_a_weighted_sum() -> None:
    x, y = images(), torch.tensor([0, 1, 2, 3, 0, 1])
    spec = TraceSpec(flip=False, mix="mixup", alpha=0.8)
    shares = []
    for seed in range(400):
        trace = spec.replay(seed, 6, x.shape[1:])
        assert trace.partner is not None
        share = trace.share
        assert torch.allclose(trace.apply(x), share * x + (1 - share) * x[trace.partner], atol=1e-6)
        expected = share * F.one_hot(y, 4) + (1 - share) * F.one_hot(y[trace.partner], 4)
        assert torch.allclose(trace.hard_targets(y, 4), expected, atol=1e-6)
        shares.append(share)
    found = torch.tensor(shares)
    assert 0 <= found.min() < 0.05
    assert 0.95 < found.max() <= 1
    assert float(found.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(found.var()) == pytest.approx(1 / (4 * 2.6), abs=0.02)  # of Beta(a, a): 1 / (4 (2 a + 1))


@pytest.mark.parametrize("grid", [2, 3])
def test_shuffled_patches_are_the_same_patches(grid: int) -> None:
    x = images(20, 6, 12)
    views = TraceSpec(flip=False, shuffle=grid).replay(0, 20, x.shape[1:]).apply(x)
    assert not torch.equal(views, x)
    for view, image in zip(views, x, strict=True):
        assert tiles(view, grid) == tiles(image, grid)


def test_every_order_of_strips_occurs() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    spec = TraceSpec(flip=False, shuffle=3)
    seen = {tuple(spec.replay(seed, 1, (3, 3)).apply(x).flatten().tolist()) for seed in range(600)}
    assert len(seen) == 36  # 3! orders of rows, 3! of columns


def test_uneven_strips_keep_every_pixel() -> None:
    x = torch.arange(34.0 * 5).view(1, 1, 34, 5).expand(8, -1, -1, -1)
    trace = TraceSpec(flip=False, shuffle=3).replay(3, 8, (34, 5))
    views = trace.apply(x)
    assert trace.row_order is not None
    assert trace.column_order is not None
    rows, columns = torch.arange(34).split([12, 11, 11]), torch.arange(5).split([2, 2, 1])
    for i in range(8):
        row = torch.cat([rows[k] for k in trace.row_order[i].tolist()])
        column = torch.cat([columns[k] for k in trace.column_order[i].tolist()])
        assert torch.equal(views[i, 0], x[i, 0][row][:, column])


def test_the_order_is_patches_crop_mirror_mix() -> None:
    spec = TraceSpec(crop="resized", shuffle=2, mix="cutmix")
    x = images(5, 8, 8)
    trace = spec.replay(11, 5, x.shape[1:])
    assert trace.boxes is not None
    assert trace.flips is not None
    assert trace.row_order is not None
    assert trace.column_order is not None
    one_by_one = []
    for i in range(5):
        order, across = trace.row_order[i].tolist(), trace.column_order[i].tolist()
        image = torch.cat([x[i].chunk(2, 1)[k] for k in order], 1)
        image = torch.cat([image.chunk(2, 2)[k] for k in across], 2)
        top, left, h, w = trace.boxes[i].tolist()
        crop = image[None, :, top : top + h, left : left + w]
        image = F.interpolate(crop, size=(8, 8), mode="bilinear", align_corners=False)[0]
        one_by_one.append(image.flip(2) if trace.flips[i] else image)
    apart = torch.stack(one_by_one)
    assert trace.box is not None
    assert trace.partner is not None
    top, left, bottom, right = trace.box.tolist()
    expected = apart.clone()
    expected[:, :, top:bottom, left:right] = apart[trace.partner, :, top:bottom, left:right]
    assert torch.allclose(trace.apply(x), expected, atol=1e-6)


def test_gradients_reach_the_images() -> None:
    x = images(4, 8, 8).double().requires_grad_()
    trace = TraceSpec(crop="padded", shuffle=2, mix="mixup").replay(1, 4, (8, 8))
    assert torch.autograd.gradcheck(lambda v: trace.apply(v), (x,), fast_mode=True)


def test_nothing_drawn_gives_the_images_and_their_own_targets() -> None:
    x = images()
    trace = TraceSpec(flip=False).replay(0, 6, x.shape[1:])
    assert trace.apply(x) is x
    assert trace.share == 1
    soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    assert trace.hard_targets(soft, 4) is soft
    assert torch.equal(trace.hard_targets(torch.tensor([1, 0]), 3), torch.tensor([[0.0, 1, 0], [1, 0, 0]]))


def test_a_description_comes_back() -> None:
    for spec in SPECS:
        assert TraceSpec.from_description(spec.describe()) == spec
    with pytest.raises(InputError, match="version 0"):
        TraceSpec.from_description({**SPECS[0].describe(), "version": 0})
    with pytest.raises(InputError, match="has the fields"):
        TraceSpec.from_description({**SPECS[0].describe(), "colour": 1})


def test_what_does_not_fit_is_refused() -> None:
    trace = SPECS[2].replay(0, 6, (6, 4))
    for other in (images(5), images(6, 4, 6)):
        with pytest.raises(InputError, match=r"drawn for 6 images of \(6, 4\) pixels"):
            trace.apply(other)
    with pytest.raises(InputError, match="cannot be cut"):
        TraceSpec(shuffle=5).replay(0, 6, (6, 4))
    for wrong in (
        {"crop": "zoom"},
        {"mix": "blend"},
        {"min_scale": 0.0},
        {"min_scale": 0.9, "max_scale": 0.5},
        {"max_scale": 1.5},
        {"pad": -1},
        {"shuffle": 0},
        {"alpha": 0.0},
        {"alpha": float("nan")},
    ):
        with pytest.raises(InputError):
            TraceSpec(**wrong)  # type: ignore[arg-type]
    whole = trace.tensors()
    for missing in ("partner", "box", "row_order"):
        with pytest.raises(InputError, match="not the fields"):
            Trace.from_tensors((6, 4), {name: t for name, t in whole.items() if name != missing})
    with pytest.raises(InputError, match="not the fields"):
        Trace.from_tensors((6, 4), {**whole, "colour": whole["flips"]})
