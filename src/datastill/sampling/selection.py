"""Rules that pick real images by their features; each returns distinct positions."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from datastill.core.rng import undisturbed


def herding(features: Tensor, k: int, weights: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
    """Greedy running mean (Welling, ICML 2009): minimize || (j+1) mu - sum of chosen - f_i || at each j.

    Args:
        features: (n, d) of one class.
        k: how many to choose, at most n.
        weights: (n,) of the mean mu, or None.
        mean: mu itself, (d,), where it is known otherwise.
    """
    if mean is None:
        mean = features.mean(0) if weights is None else (weights / weights.sum()).to(features.dtype) @ features
    chosen: list[int] = []
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool)
    for j in range(k):
        distance = ((j + 1) * mean - total - features).square().sum(1)
        i = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(i)
        free[i] = False
        total = total + features[i]
    return torch.tensor(chosen)


def k_center(features: Tensor, k: int) -> Tensor:
    """Farthest-first traversal from the sample nearest to the mean: within twice the best covering radius."""
    nearest_to_mean = int((features - features.mean(0)).square().sum(1).argmin())
    chosen = [nearest_to_mean]
    free = torch.ones(len(features), dtype=torch.bool)
    free[nearest_to_mean] = False
    reach = (features - features[nearest_to_mean]).square().sum(1)
    while len(chosen) < k:
        i = int(reach.masked_fill(~free, -1.0).argmax())
        chosen.append(i)
        free[i] = False
        reach = torch.minimum(reach, (features - features[i]).square().sum(1))
    return torch.tensor(chosen)


def k_means(features: Tensor, k: int, seed: int, weights: Tensor | None = None) -> Tensor:
    """The sample nearest to each of k centroids; a sample taken already gives way to the next nearest.

    Args:
        features: (n, d) of one class.
        k: how many to choose, at most n.
        weights: (n,) of the samples in the centroids, or None.
    """
    points = features.double().numpy()
    with undisturbed(), warnings.catch_warnings():
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than centroids: handled below
        fitted = KMeans(n_clusters=k, n_init=3, random_state=seed % 2**32).fit(
            points, sample_weight=None if weights is None else weights.double().numpy()
        )
    centers = torch.from_numpy(fitted.cluster_centers_).to(features)
    distance = torch.cdist(centers, features)
    chosen: list[int] = []
    for row in distance:
        row = row.clone()
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen)


def by_count(counts: Tensor, k: int, order: str, generator: torch.Generator) -> Tensor:
    """The k largest ("most") or smallest ("least") counts, ties in random order."""
    shuffled = torch.randperm(len(counts), generator=generator)
    ranked = counts[shuffled].argsort(stable=True, descending=order == "most")
    return shuffled[ranked[:k]]
