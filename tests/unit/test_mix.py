"""CutMix records: the box and the shares are exact, pairs are over the whole batch, nothing else is touched."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from datastill.augment.mix import CutMix, MixRecord, apply, mixed_targets
from datastill.core.errors import InputError
from datastill.core.rng import Rng

ALWAYS = CutMix(1.0)


def draws(cutmix: CutMix, count: int, n: int = 6, size: tuple[int, int] = (8, 12)) -> list[MixRecord | None]:
    return [cutmix.draw(n, size, Rng(0).generator("cutmix", k)) for k in range(count)]


def test_images_are_pasted_pixel_by_pixel() -> None:
    x = torch.randn(6, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    for record in draws(ALWAYS, 20):
        assert record is not None
        top, left, bottom, right = record.box
        mixed = apply(x, record)
        for i in range(6):
            for row in range(8):
                for column in range(12):
                    inside = top <= row < bottom and left <= column < right
                    source = int(record.partner[i]) if inside else i
                    assert torch.equal(mixed[i, :, row, column], kept[source, :, row, column])
    assert torch.equal(x, kept)


def test_the_share_is_the_area_that_is_left_after_clipping() -> None:
    areas, clipped = set(), 0
    for record in draws(ALWAYS, 300):
        assert record is not None
        top, left, bottom, right = record.box
        assert 0 <= top <= bottom <= 8
        assert 0 <= left <= right <= 12
        mask = torch.zeros(8, 12)
        mask[top:bottom, left:right] = 1
        assert record.share == 1 - int(mask.sum()) / 96
        areas.add(record.share)
        clipped += top == 0 or left == 0 or bottom == 8 or right == 12
    assert len(areas) > 20
    assert clipped > 50


def test_the_draw_is_as_published() -> None:
    """rand_bbox of the released code, from the same uniform numbers."""
    for k in range(50):
        _, lam, cy, cx = torch.rand(4, dtype=torch.float64, generator=Rng(0).generator("cutmix", k)).tolist()
        height, width = 8, 12
        cut_h, cut_w = int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam))
        y, x = int(cy * height), int(cx * width)
        expected = (
            max(0, y - cut_h // 2),
            max(0, x - cut_w // 2),
            min(height, y + cut_h // 2),
            min(width, x + cut_w // 2),
        )
        record = ALWAYS.draw(6, (height, width), Rng(0).generator("cutmix", k))
        assert record is not None
        assert record.box == expected


def test_partners_are_a_permutation_of_the_whole_batch() -> None:
    seen: set[tuple[int, ...]] = set()
    for record in draws(ALWAYS, 40):
        assert record is not None
        assert sorted(record.partner.tolist()) == list(range(6))
        seen.add(tuple(record.partner.tolist()))
    assert len(seen) > 30


def test_the_probability_is_of_batches() -> None:
    assert all(record is None for record in draws(CutMix(0.0), 50))
    mixed = sum(record is not None for record in draws(CutMix(0.3), 1000))
    assert 250 < mixed < 350


def test_targets_are_mixed_by_area() -> None:
    y = torch.tensor([0, 2, 1])
    record = MixRecord((4, 4), torch.tensor([1, 2, 0]), (0, 0, 2, 2))
    expected = torch.tensor([[0.75, 0, 0.25], [0, 0.25, 0.75], [0.25, 0.75, 0]])
    assert torch.equal(mixed_targets(y, record, 3), expected)
    one_hot = F.one_hot(y, 3).float()
    assert torch.equal(mixed_targets(one_hot, record, 3), expected)
    assert torch.equal(mixed_targets(y, None, 3), one_hot)
    logits = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    two_terms = 0.75 * F.cross_entropy(logits, y) + 0.25 * F.cross_entropy(logits, y[record.partner])
    mixed = F.cross_entropy(logits, mixed_targets(y, record, 3, torch.float64))
    assert torch.allclose(mixed, two_terms, atol=1e-15)


def test_one_image_is_mixed_with_itself() -> None:
    x, y = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([1])
    for record in draws(ALWAYS, 20, n=1):
        assert torch.equal(apply(x, record), x)
        assert torch.allclose(mixed_targets(y, record, 3), torch.tensor([[0.0, 1.0, 0.0]]))


def test_nothing_drawn_gives_the_images_themselves() -> None:
    x = torch.zeros(2, 1, 4, 4)
    assert apply(x, None) is x


def test_what_does_not_fit_is_refused() -> None:
    record = ALWAYS.draw(2, (4, 4), Rng(0).generator("cutmix"))
    with pytest.raises(InputError, match="drawn for 2 images"):
        apply(torch.zeros(3, 1, 4, 4), record)
    with pytest.raises(InputError, match="drawn for 2 images"):
        apply(torch.zeros(2, 1, 4, 5), record)
    for probability in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="must lie in"):
            CutMix(probability)
