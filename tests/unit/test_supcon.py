"""The contrastive loss against a naive double loop, and where it is easily wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill.core.errors import InputError
from datastill.training.supcon import pair_log_probabilities, supcon_loss


def unit_rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    z = torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return F.normalize(z, dim=1)


def naive(z: list[list[float]], y: list[int], tau: float, q: float = 0.0) -> float:
    """The definition, number by number."""
    dot = [[sum(a * b for a, b in zip(u, v)) for v in z] for u in z]
    anchors = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and y[p] == y[i]]
        if not positives:
            continue
        below = sum(math.exp(dot[i][a] / tau) for a in range(len(z)) if a != i)
        total = 0.0
        for p in positives:
            probability = math.exp(dot[i][p] / tau) / below
            total += math.log(probability) * (q * probability**q if q else 1.0)
        anchors.append(-total / len(positives))
    return sum(anchors) / len(anchors) if anchors else 0.0


@settings(deadline=None, max_examples=60)
@given(
    y=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    d=st.integers(1, 5),
    tau=st.sampled_from([0.07, 0.1, 0.5, 2.0]),
    q=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 99),
)
def test_equals_the_definition(y: list[int], d: int, tau: float, q: float, seed: int) -> None:
    z = unit_rows(len(y), d, seed)
    expected = naive(z.tolist(), y, tau, q)
    found = supcon_loss(z, torch.tensor(y), tau, q=q)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(supcon_loss(z.float(), torch.tensor(y), tau, q=q)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_rows_are_distributions_without_the_sample_itself() -> None:
    log_p = pair_log_probabilities(unit_rows(6, 3), 0.2)
    assert torch.allclose(log_p.exp().sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.isneginf(log_p.diagonal()).all()


def test_invariant_to_order() -> None:
    z, y = unit_rows(20, 8), torch.arange(20) % 3
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(supcon_loss(z, y), supcon_loss(z[order], y[order]), rtol=1e-12)


def test_lower_for_clustered_classes() -> None:
    centers, y = torch.eye(4, dtype=torch.float64), torch.arange(40) % 4
    z = F.normalize(centers[y] + 0.1 * unit_rows(40, 4), dim=1)
    shuffled = y[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert supcon_loss(z, y) < 0.8 * supcon_loss(z, shuffled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_at_a_small_temperature_in_half_precision(dtype: torch.dtype) -> None:
    """exp(1 / 0.01) overflows even float32; half precision would round the exponents by more than 0.05."""
    z = torch.cat([unit_rows(16, 8, dtype=torch.float32)] * 2).requires_grad_()
    y = (torch.arange(16) % 4).repeat(2)
    whole = supcon_loss(z.double(), y, 0.01).detach()
    with torch.autocast("cpu", dtype=dtype):
        cast = supcon_loss(z, y, 0.01)
    assert cast.dtype == torch.float32
    assert float(cast.detach()) == pytest.approx(float(whole), rel=1e-4)
    (gradient,) = torch.autograd.grad(cast, z)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    rounded = z.detach().to(dtype)
    assert float(supcon_loss(rounded, y, 0.01)) == pytest.approx(
        float(supcon_loss(rounded.double(), y, 0.01)), rel=1e-4
    )


def test_gradient_is_that_of_the_definition() -> None:
    z, y = unit_rows(7, 3).requires_grad_(), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    assert torch.autograd.gradcheck(lambda t: supcon_loss(t, y, 0.3), (z,))


def test_easy_pairs_are_weighted_by_constants() -> None:
    """The factor q p^q has no gradient: dL = q p^q d(-log p)."""
    z, y, q = unit_rows(6, 3).requires_grad_(), torch.tensor([0, 0, 1, 1, 0, 1]), 0.7
    (found,) = torch.autograd.grad(supcon_loss(z, y, 0.2, q=q), z)
    log_p = pair_log_probabilities(z, 0.2)
    positive = (y[:, None] == y[None]) & ~torch.eye(6, dtype=torch.bool)
    factor = q * log_p.detach().exp() ** q
    loss = -(torch.where(positive, log_p, 0.0) * torch.where(positive, factor, 0.0)).sum(1) / positive.sum(1)
    (expected,) = torch.autograd.grad(loss.mean(), z)
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("y", [[0], [0, 1, 2]])
def test_no_positive_at_all_is_zero_with_a_gradient_of_zero(y: list[int]) -> None:
    z = unit_rows(len(y), 4).requires_grad_()
    loss = supcon_loss(z, torch.tensor(y), 0.1)
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient == 0).all()


def test_lonely_anchors_change_nothing_but_the_sums() -> None:
    """A sample alone in its class is no anchor, and still a negative of others."""
    z, y = unit_rows(5, 3), torch.tensor([0, 0, 1, 1, 2])
    log_p = pair_log_probabilities(z, 0.1)
    expected = -(log_p[0, 1] + log_p[1, 0] + log_p[2, 3] + log_p[3, 2]) / 4
    assert float(supcon_loss(z, y)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("z", "y", "options"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), {}),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), {}),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), {"tau": 0.0}),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), {"tau": math.nan}),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), {"q": -1.0}),
    ],
)
def test_bad_input_is_refused(z: Tensor, y: Tensor, options: dict) -> None:
    with pytest.raises(InputError):
        supcon_loss(z, y, **options)
