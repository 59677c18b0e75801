"""Selections against brute force and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill import distill, load_real
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.sampling.selection import by_count, herding, k_center, k_means
from datastill.training.feature_network import ForgettingCounter

NET = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def points(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=Rng(seed).generator("points"), dtype=torch.double)


def test_herding_by_hand() -> None:
    """Features 0, 1, 2, 3, 10 have mean 3.2: first 3, then what brings the running mean nearest to 3.2."""
    chosen = herding(torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]]), 3)
    assert chosen.tolist() == [3, 2, 1]  # (3 + 2)/2 = 2.5 beats (3 + 10)/2 = 6.5; then 6/3 = 2 beats 15/3 = 5


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 3))
def test_herding_is_greedy(seed: int, n: int, d: int) -> None:
    features = points(n, d, seed)
    mean = features.mean(0)
    chosen: list[int] = []
    for _ in range(n):
        free = [i for i in range(n) if i not in chosen]
        chosen.append(min(free, key=lambda i: float((features[[*chosen, i]].mean(0) - mean).norm())))
    ours = herding(features, n).tolist()
    assert sorted(ours) == list(range(n))
    for j in range(1, n + 1):
        reached, best = (float((features[c[:j]].mean(0) - mean).norm()) for c in (ours, chosen))
        assert reached == pytest.approx(best, abs=1e-9) or ours[: j - 1] != chosen[: j - 1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 2, 4])
def test_k_center_is_within_twice_the_best_radius(seed: int, k: int) -> None:
    features = points(12, 2, seed)

    def radius(chosen) -> float:
        return float(torch.cdist(features, features[list(chosen)]).min(1).values.max())

    best = min(radius(c) for c in itertools.combinations(range(12), k))
    chosen = k_center(features, k).tolist()
    assert len(set(chosen)) == k
    assert radius(chosen) <= 2 * best + 1e-9
    assert chosen[0] == int((features - features.mean(0)).norm(dim=1).argmin())


def test_k_center_takes_copies_once_each() -> None:
    assert sorted(k_center(torch.zeros(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]


def test_k_means_takes_one_of_each_cluster() -> None:
    centers = torch.tensor([[0.0, 0], [20, 0], [0, 20], [20, 20]])
    features = (centers[:, None] + points(4 * 15, 2, 0).view(4, 15, 2).float()).reshape(-1, 2)
    chosen = k_means(features, 4, seed=0)
    assert sorted((chosen // 15).tolist()) == [0, 1, 2, 3]
    assert len(set(k_means(torch.zeros(6, 2) + torch.arange(6)[:, None] % 2, 4, seed=1).tolist())) == 4


def test_forgetting_by_hand() -> None:
    """Rows are visits; a sample forgets where 1 is followed by 0; one that is never right counts as infinite."""
    table = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    counter = ForgettingCounter(4)
    for row in table:
        counter.visit(torch.tensor([3, 1]), row[[3, 1]])
        counter.visit(torch.tensor([0, 2]), row[[0, 2]])
    assert counter.counts().tolist() == [2, float("inf"), 0, 1]


def test_by_count() -> None:
    counts = torch.tensor([2.0, float("inf"), 0.0, 1.0, 1.0])
    generator = Rng(0).generator("ties")
    assert by_count(counts, 2, "most", generator).tolist() == [1, 0]
    assert by_count(counts, 1, "least", generator).tolist() == [2]
    ties = {int(by_count(torch.zeros(4), 1, "most", Rng(s).generator("ties"))) for s in range(30)}
    assert ties == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["herding", "kcenter", "kmeans", "forgetting", "random"])
def test_exactly_ipc_distinct_images_of_each_class(name: str, digits: RealSet) -> None:
    passes = {} if name == "random" else {"feature_passes": 1}
    made = distill(name, digits, ipc=4, network=NET, **passes)
    chosen = made.extra["selected"]
    assert len(set(chosen.tolist())) == 40
    assert torch.equal(digits.labels[chosen], made.labels)
    assert torch.equal(digits.batch(chosen).x, made.images)


def test_forgetting_order_matters(digits: RealSet) -> None:
    most, least = (
        distill("forgetting", digits, ipc=5, network=NET, feature_passes=15, order=o).extra["selected"]
        for o in ("most", "least")
    )
    # a class that is never right, or always, leaves both orders to the same ties
    assert len(set(most.tolist()) & set(least.tolist())) <= 15


def test_prepared_features_are_kept_and_reused(digits: RealSet, tmp_path) -> None:
    """A killed run finds its feature network again; another setting trains another."""
    import shutil

    out = tmp_path / "run"
    first = distill("herding", digits, ipc=2, network=NET, feature_passes=1, out=out)
    (unit,) = (out / "prepare").iterdir()
    stamp = unit.stat().st_mtime_ns
    (out / "manifest.json").unlink()
    shutil.rmtree(out / "checkpoints")
    again = distill("herding", digits, ipc=2, network=NET, feature_passes=1, out=out, resume=True)
    assert torch.equal(first.images, again.images)
    assert unit.stat().st_mtime_ns == stamp


def test_dm_fast_is_dm_when_asked_alike(digits: RealSet) -> None:
    """Identity: full width, DM's batch and augmentation: the same method, bit for bit."""
    common = {"ipc": 2, "network": NET, "steps": 4, "real_batch": 16, "augment": "none", "decay": "none"}
    fast = distill("dm-fast", digits, width=0, **common)
    assert torch.equal(fast.images, distill("dm", digits, **common).images)
    narrow = distill("dm-fast", digits, width=4, **common)
    assert not torch.equal(fast.images, narrow.images)
    assert narrow.manifest["network"]["spec"].startswith("convnet:width=8"), "it is scored at full width"


def test_herding_follows_the_weighted_mean():
    features = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    assert herding(features, 1, torch.tensor([1.0, 1.0, 1.0, 1.0])).tolist() == herding(features, 1).tolist()
    assert herding(features, 1, torch.tensor([1.0, 0.0, 0.0, 5.0])).tolist() == [3]
    repeated = torch.cat([features, features[3:], features[3:]])  # the last sample three times
    weighted = herding(features, 2, torch.tensor([1.0, 1.0, 1.0, 3.0]))
    assert features[weighted[0]] == repeated[herding(repeated, 1)[0]]


def test_k_means_looks_at_weights():
    features = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
    weights = torch.tensor([1.0, 1e-6, 1e-6, 1.0, 1e-6])
    assert sorted(k_means(features, 2, 0, weights).tolist()) == [0, 3]
    plain = k_means(features, 2, 0)
    assert torch.equal(plain, k_means(features, 2, 0, torch.ones(5)))
