"""Views of the recovery and the curriculum of CDA (checks RL and CU)."""

from __future__ import annotations

import pytest
import torch

from datastill.augment.recovery_views import EasyToHard, RecoveryViews
from datastill.core.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("step", (1, 1, 1, 1, 0.08)),
        ("linear", (1, 0.77, 0.54, 0.31, 0.08)),
        ("cosine", (1, 0.86527, 0.54, 0.21473, 0.08)),
    ],
)
@pytest.mark.parametrize("milestone", [1.0, 0.5])
def test_curriculum_follows_the_table(kind, shares, milestone):
    curriculum = EasyToHard(kind, milestone=milestone)
    for quarter, share in enumerate(shares):
        low, high = curriculum(quarter / 4 * milestone)
        assert low == pytest.approx(share, abs=1e-5)
        assert high == 1.0


def test_milestone_zero_is_the_plain_crop():
    assert EasyToHard(milestone=0.0)(0.0) == (0.08, 1.0)


def test_bad_curriculum_is_refused():
    with pytest.raises(InputError, match="curriculum"):
        EasyToHard("exponential")
    with pytest.raises(InputError, match="lower bound"):
        EasyToHard(low=0.0)


def test_one_draw_for_the_whole_batch_or_one_for_each_image():
    x = torch.arange(6 * 64, dtype=torch.float32).view(6, 1, 8, 8)
    x = x - x.amin((1, 2, 3), keepdim=True)  # all images are equal
    together = RecoveryViews(EasyToHard(milestone=0.0), True, 3)
    seen = together.apply(x, together.draw(generator(3), 6, x.shape, 0.5))
    assert all(torch.equal(seen[0], image) for image in seen)
    apart = RecoveryViews(EasyToHard(milestone=0.0), True, 3, per_sample=True)
    seen = apart.apply(x, apart.draw(generator(3), 6, x.shape, 0.5))
    assert any(not torch.equal(seen[0], image) for image in seen)


def test_jitter_is_a_circular_shift_by_zero_to_j_pixels():
    views, x = RecoveryViews(jitter=2), torch.zeros(1, 1, 5, 5)
    x[0, 0, 0, 0] = 1
    found = set()
    for seed in range(200):
        down, right = (views.apply(x, views.draw(generator(seed), 1, x.shape, 0.0))[0, 0] == 1).nonzero()[0].tolist()
        found.add((down, right))
    assert found == {(a, b) for a in range(3) for b in range(3)}
    signed = RecoveryViews(jitter=1, signed=True)
    shifts = {tuple(signed.draw(generator(s), 1, x.shape, 0.0)["shifts"][0].tolist()) for s in range(200)}
    assert shifts == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)}


def test_whole_images_pass_unchanged():
    views, x = RecoveryViews(), torch.randn(2, 3, 8, 8, generator=generator())
    assert views.apply(x, views.draw(generator(), 2, x.shape, 0.0)) is x


def test_gradient_is_zero_outside_the_crop():
    views = RecoveryViews(lambda progress: (0.1, 0.2))
    x = torch.randn(2, 1, 12, 12, generator=generator(), requires_grad=True)
    record = views.draw(generator(1), 2, x.shape, 0.0)
    views.apply(x, record).square().sum().backward()
    top, left, height, width = record["boxes"][0].tolist()
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert (x.grad[:, :, ~inside] == 0).all()
    assert (x.grad[:, :, inside] != 0).any()
