"""Densities and weights against a double loop, invariances, and cases with a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill.core.errors import InputError
from datastill.debias import kde
from datastill.debias.kde import densities, density, inverse_density, median_variance, per_class, spread_variance


def points(n: int, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels(n: int, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(100 + seed))


def naive(z: Tensor, y: list[int], variance: float, scope: str = "class", leave_one_out: bool = False) -> list[float]:
    """The definition, pair by pair, in Python's floats."""
    rows = z.double().tolist()
    rows = [[v / math.sqrt(sum(a * a for a in row)) for v in row] for row in rows]
    found = []
    for i, u in enumerate(rows):
        total, count = 0.0, 0
        for j, v in enumerate(rows):
            if (scope == "class" and y[i] != y[j]) or (leave_one_out and i == j):
                continue
            total += math.exp(-sum((a - b) ** 2 for a, b in zip(u, v)) / (2 * variance))
            count += 1
        size = count + leave_one_out
        found.append(max(total / count, 1 / size) if leave_one_out and count else total / count if count else 1.0)
    return found


@pytest.mark.parametrize("scope", ["class", "global"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_equals_the_double_loop_whatever_the_chunk(scope: str, leave_one_out: bool) -> None:
    z, y = points(200), labels(200)
    expected = torch.tensor(naive(z, y.tolist(), 0.1, scope, leave_one_out), dtype=torch.float64)
    for chunk in (1, 7, 64, 1000, None):
        found = density(z, y, 0.1, scope=scope, leave_one_out=leave_one_out, chunk=chunk)
        assert found.dtype == torch.float64
        assert torch.allclose(found, expected, rtol=1e-10)
        for given_y in (y, None):
            weights = inverse_density(found, given_y, power=1.5).float()
            raw = expected**-1.5
            total = raw.sum() if given_y is None else torch.stack([raw[y == c].sum() for c in y])
            assert torch.allclose(weights.double(), raw / total, rtol=1e-5, atol=0)


def test_chunks_give_the_same_weights() -> None:
    z, y = points(300), labels(300)
    whole = inverse_density(density(z, y, 0.05), y).float()
    for chunk in (1, 13, 299):
        assert torch.allclose(inverse_density(density(z, y, 0.05, chunk=chunk), y).float(), whole, rtol=1e-6, atol=0)


def test_the_default_chunk_holds_few_distances_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = kde.squared_distances
    monkeypatch.setattr(kde, "_DISTANCES", 1000)
    monkeypatch.setattr(kde, "squared_distances", lambda a, b: sizes.append(len(a) * len(b)) or original(a, b))
    density(points(90), torch.zeros(90, dtype=torch.int64))
    assert max(sizes) <= 1000
    assert sum(sizes) == 90 * 90


def test_several_variances_at_once() -> None:
    z, y = points(80), labels(80)
    together = densities(z, y, [0.01, 0.1, 1.0])
    assert torch.equal(together, torch.stack([density(z, y, v) for v in (0.01, 0.1, 1.0)]))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    d=st.integers(2, 6),
    variance=st.sampled_from([1e-8, 0.003, 0.03, 0.3, 1e8]),
    power=st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0]),
    seed=st.integers(0, 99),
)
def test_positive_bounded_and_normalized(n: int, d: int, variance: float, power: float, seed: int) -> None:
    z, y = points(n, d, seed), labels(n, 4, seed)
    f = density(z, y, variance)
    counts = torch.bincount(y)[y].double()
    assert (f >= (1 - 1e-6) / counts).all()
    assert (f <= 1 + 1e-12).all()
    weights = inverse_density(f, y, power)
    assert (weights > 0).all()
    for c in y.unique():
        assert float(weights[y == c].sum()) == pytest.approx(1)
    assert float(inverse_density(f, None, power).sum()) == pytest.approx(1)
    heaviest = weights.max() / weights.min()
    assert len(y.unique()) > 1 or heaviest <= n**power * (1 + 1e-6), "the self term bounds the weights"


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), d=st.integers(2, 6), seed=st.integers(0, 99), power=st.sampled_from([0.4, 1.0, 2.0]))
def test_invariant_to_order_rotation_and_length(n: int, d: int, seed: int, power: float) -> None:
    z, y = points(n, d, seed, torch.float64), labels(n, 3, seed)
    weights = inverse_density(density(z, y, 0.05), y, power)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(inverse_density(density(z[order], y[order], 0.05), y[order], power), weights[order])
    rotation = torch.linalg.qr(points(d, d, seed + 1, torch.float64)).Q
    assert torch.allclose(inverse_density(density(z @ rotation, y, 0.05), y, power), weights, rtol=1e-9)
    lengths = 0.1 + torch.rand(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(inverse_density(density(z * lengths, y, 0.05), y, power), weights, rtol=1e-9)
    f = density(z, y, 0.05)
    for c in y.unique():  # heavier means rarer, and the other way round, whatever the power
        mine = y == c
        rising = f[mine].argsort()
        assert (weights[mine][rising].diff() <= 1e-12).all()


@pytest.mark.parametrize("tau_w", [0.1, 2 / 3, 1.0, 5.0, 1e3])
@pytest.mark.parametrize("variance", [0.05, 0.1, 1.0])
def test_a_rarer_sample_is_heavier_at_any_temperature(tau_w: float, variance: float) -> None:
    """Weights f^(-1 / tau_w) are in the reverse order of the densities, without ties."""
    f = density(points(60), torch.zeros(60, dtype=torch.int64), variance)
    assert f.sort().values.diff().min() > 0
    weights = inverse_density(f, power=1 / tau_w)
    assert weights.argsort().tolist() == f.argsort(descending=True).tolist()
    assert weights.sort().values.diff().min() > 0


@pytest.mark.parametrize("variance", [1e-4, 0.05, 1.0])
def test_copies_are_alike_at_any_variance(variance: float) -> None:
    z = points(12, 4)
    repeated = torch.cat([z, z[3:4].expand(5, 4)])
    weights = inverse_density(density(repeated, torch.zeros(17, dtype=torch.int64), variance))
    assert torch.allclose(weights[12:], weights[3].expand(5), rtol=1e-12)
    assert not torch.allclose(weights[:3], weights[3].expand(3), rtol=1e-3)


def test_copies_weigh_as_one_point() -> None:
    """With a vanishing kernel k copies of a point have 1/k of a single point's weight each."""
    z = points(6, 4, dtype=torch.float64)
    repeated = torch.cat([z, z[:1], z[:1], z[:1]])
    y = torch.zeros(9, dtype=torch.int64)
    weights = inverse_density(density(repeated, y, 1e-4), power=1.0)
    copies = weights[[0, 6, 7, 8]]
    assert torch.allclose(copies, copies[:1].expand(4), rtol=1e-12)
    assert torch.allclose(weights[1:6], weights[1].expand(5), rtol=1e-9)
    assert float(copies.sum()) == pytest.approx(float(weights[1]), rel=1e-9)


def test_the_circle_is_uniform() -> None:
    angle = torch.arange(60) * (2 * math.pi / 60)
    z, y = torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(60, dtype=torch.int64)
    weights = inverse_density(density(z, y, 0.05), y)
    assert torch.allclose(weights * 60, torch.ones(60, dtype=torch.float64), rtol=1e-6, atol=0)


def two_clusters(large: int, small: int) -> tuple[Tensor, Tensor]:
    center = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    side = torch.cat([torch.zeros(large, dtype=torch.int64), torch.ones(small, dtype=torch.int64)])
    return center[side] + 1e-4 * points(large + small, 3), side


def test_two_clusters_weigh_the_same() -> None:
    z, side = two_clusters(95, 5)
    weights = inverse_density(density(z, torch.zeros_like(side), 0.03), power=1.0)
    assert float(weights[side == 1].sum()) == pytest.approx(0.5, abs=1e-3)
    sharper = inverse_density(density(z, torch.zeros_like(side), 0.03), power=1.5)
    odds = (95 / 5) ** 0.5  # n f^-p with f ~ n: the mass of a cluster is n^(1 - p)
    assert float(sharper[side == 1].sum()) == pytest.approx(odds / (1 + odds), abs=1e-3)


def test_scopes_see_other_samples() -> None:
    """A class's few samples inside another class's cluster: rare in their class, common in the whole set."""
    z, side = two_clusters(95, 5)
    z, y = torch.cat([z, z[side == 1].repeat(19, 1)]), torch.cat([torch.zeros(100), torch.ones(95)]).long()
    conflicting = torch.cat([side == 1, torch.zeros(95, dtype=torch.bool)])
    own = inverse_density(density(z, y, 0.03, scope="class"), y, 1.0)
    everyone = inverse_density(density(z, y, 0.03, scope="global"), y, 1.0)
    assert float(own[conflicting].sum()) == pytest.approx(0.5, abs=1e-3)
    assert float(everyone[conflicting].sum()) == pytest.approx(1 / 21, abs=1e-3), "95 at 1/95, 5 at 1/100"


def test_batch_scope_is_the_class_scope_of_each_batch() -> None:
    z, y = points(60), labels(60, 2)
    one_batch = density(z, y, 0.05, scope="batch", batch=60)
    assert torch.allclose(one_batch, density(z, y, 0.05), rtol=1e-12), "a batch that is the whole class"
    small = density(z, y, 0.05, scope="batch", batch=10)
    assert (small >= 0.1 - 1e-12).all(), "each of at most ten sees itself"
    assert not torch.allclose(small, one_batch)
    assert torch.equal(small, density(z, y, 0.05, scope="batch", batch=10))
    assert not torch.equal(small, density(z, y, 0.05, scope="batch", batch=10, seed=1))


@pytest.mark.parametrize("variance", [1e-8, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_the_bandwidth_are_uniform(variance: float, dtype: torch.dtype) -> None:
    z, y = points(150, dtype=dtype), labels(150)
    weights = inverse_density(density(z, y, variance), y) * torch.bincount(y)[y]
    assert torch.allclose(weights, torch.ones_like(weights), atol=1e-4, rtol=0)
    between = inverse_density(density(z, y, 0.3), y) * torch.bincount(y)[y]
    assert (between - 1).abs().max() > 0.1, "this set is not uniform at a variance in between"


def test_power_zero_and_large_temperatures_are_uniform() -> None:
    f, y = density(points(50), labels(50), 0.1), labels(50)
    for power in (0.0, 1e-6):
        weights = inverse_density(f, y, power) * torch.bincount(y)[y]
        assert torch.allclose(weights, torch.ones_like(weights), atol=1e-4, rtol=0)
    assert torch.isfinite(inverse_density(f, y, 400.0)).all(), "powers are taken as exponents"


def test_a_batch_that_is_the_whole_class_renormalizes_to_the_same() -> None:
    f, y = density(points(50), labels(50), 0.1), labels(50)
    weights = inverse_density(f, y)
    whole = (y == 1).nonzero().squeeze(1)
    assert torch.allclose(per_class(weights[whole]), weights[whole])
    part = whole[:4]
    assert torch.allclose(per_class(weights[part]), weights[part] / weights[part].sum())


def test_a_row_of_zeros_and_a_class_of_one_are_no_special_case() -> None:
    z = torch.cat([torch.zeros(2, 3), points(3, 3)])
    f = density(z, torch.tensor([0, 0, 0, 0, 1]), 0.1)
    assert torch.isfinite(f).all()
    assert float(f[0]) == pytest.approx((2 + 2 * math.exp(-1 / 0.2)) / 4)
    assert float(f[4]) == 1
    assert float(density(z, torch.tensor([0, 0, 0, 0, 1]), 0.1, leave_one_out=True)[4]) == 1


def test_rules_find_the_scale_between_clusters_and_noise() -> None:
    """Ten tight groups: a variance far below their distances, and not below their own width."""
    groups = torch.nn.functional.normalize(points(10, 16, seed=3), dim=1)
    member = torch.arange(200) % 10
    z = groups[member] + 0.02 * points(200, 16, seed=4)
    y = torch.zeros(200, dtype=torch.int64)
    distances = torch.cdist(z.double(), z.double()).square()
    within = distances[member[:, None] == member[None]].quantile(0.9)
    between = distances[member[:, None] != member[None]].min()
    median = median_variance(z, y)
    assert 0.1 * within < median < between
    normal = z / z.norm(dim=1, keepdim=True)
    others = [torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(torch.cdist(normal, normal).square())]
    naive_median = torch.stack([row.sort().values[9] for row in others]).median()  # 5 % of 199 others: the tenth
    assert median == pytest.approx(float(naive_median), rel=1e-3)
    assert median_variance(z, y, most=100) == pytest.approx(median, rel=0.7)
    assert math.isnan(median_variance(z, torch.arange(200))), "classes of one sample have no distances"


def test_the_spread_rule_takes_the_variance_of_most_unequal_weights() -> None:
    z, y = points(120), labels(120)
    grid = (1e-4, 0.01, 0.1, 1.0, 100.0)
    spread = []
    for variance in grid:
        weights = inverse_density(density(z, y, variance), y, 1.5)
        spread.append(sum(float(weights[y == c].std(correction=0) / weights[y == c].mean()) for c in range(3)))
    assert spread_variance(z, y, variances=grid) == grid[spread.index(max(spread))]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variance": 0.0}, "variance"),
        ({"variance": math.inf}, "variance"),
        ({"scope": "klass"}, "class"),
        ({"chunk": 0}, "chunk"),
        ({"scope": "batch", "batch": 0}, "batch"),
    ],
)
def test_bad_numbers_are_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        density(points(4), labels(4), **options)


def test_bad_embeddings_and_powers_are_refused() -> None:
    y = labels(4)
    with pytest.raises(InputError, match="NaN"):
        density(torch.full((4, 2), math.nan), y)
    with pytest.raises(InputError, match="one for each"):
        density(points(4), y[:3])
    with pytest.raises(InputError, match=r"\(n, d\)"):
        density(torch.ones(4), y)
    with pytest.raises(InputError, match="power"):
        inverse_density(torch.ones(4), y, -1.0)
    with pytest.raises(InputError, match="above 0"):
        inverse_density(torch.zeros(4), y)
