"""Representatives of classes: k-means of many classes at once, and the sample nearest to each centroid.

Of `sampling.selection.k_means`, by scikit-learn, which selects once and with care, this is the sibling for every few
steps of a run: it is several times as fast, stays on the device, and gives the same bits whatever threads do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Most passes of Lloyd's algorithm; far fewer than the sizes at hand need to stand still.
_PASSES = 50
#: Numbers that classes side by side may hold (8 MiB): larger ones leave a CPU's cache, and are taken one by one.
_TOGETHER = 2**21


def representatives(
    features: Sequence[Tensor], k: int, generator: torch.Generator, weights: Sequence[Tensor | None]
) -> list[tuple[Tensor, Tensor]]:
    """For each class the samples that stand for k clusters of it, and what each cluster weighs.

    The sample of a cluster is the one nearest to its centroid; one that is taken gives way to the next nearest of all.
    A class of no more than k samples gives all.

    Args:
        features: (n_c, d) of every class.
        k: clusters of a class.
        generator: of the first centroids.
        weights: (n_c,) of the samples of every class, not negative; None counts each as 1.

    Returns:
        For every class positions (min(k, n_c),) and weights of their clusters, on the CPU.
    """
    each = [
        x.new_ones(len(x)) if w is None else w.to(x.device, x.dtype) for x, w in zip(features, weights, strict=True)
    ]
    found: list[tuple[Tensor, Tensor]] = [(torch.arange(len(w)), w.cpu()) for w in each]
    large = [c for c, x in enumerate(features) if len(x) > k]
    if not large:
        return found
    widest = max(features[c].numel() for c in large)
    for group in torch.tensor(large).split(max(1, _TOGETHER // widest)):
        some = group.tolist()
        x = torch.nn.utils.rnn.pad_sequence([features[c] - features[c].mean(0) for c in some], batch_first=True)
        valid = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each[c]) for c in some], batch_first=True) > 0
        w = torch.nn.utils.rnn.pad_sequence([each[c] for c in some], batch_first=True)
        centers, mass = _lloyd(x, w, _first(x, w, k, generator))
        chosen = _nearest(_distances(x, x.square().sum(2), centers), valid).cpu()
        for c, positions, weight in zip(some, chosen, mass.cpu(), strict=True):
            found[c] = positions, weight
    return found


def spread(features: Tensor, k: int, count: int, generator: torch.Generator, weight: Tensor | None = None) -> Tensor:
    """Positions (count,) of distinct samples of one class that stand for k clusters of it, in the order of clusters.

    Each cluster gives its share of them by weight, rounded to the largest remainders: those nearest to its centroid.

    Args:
        features: (n, d), n >= count.
        k: clusters.
        count: how many samples.
        generator: of the first centroids.
        weight: (n,) of the samples, not negative; None counts each as 1.
    """
    x = (features - features.mean(0))[None]
    w = x.new_ones(1, len(features)) if weight is None else weight.to(x)[None]
    centers, mass = _lloyd(x, w, _first(x, w, k, generator))
    distance = _distances(x, x.square().sum(2), centers)
    repeated = distance.repeat_interleave(_shared(mass[0], count), 1)
    return _nearest(repeated, torch.ones_like(w) > 0)[0].cpu()


def _shared(mass: Tensor, count: int) -> Tensor:
    """Whole numbers (k,) that add up to `count`, in proportion to `mass` (k,) by largest remainder."""
    exact = mass.double() * count / mass.double().sum()
    whole = exact.floor()
    left = count - int(whole.sum())
    whole[(exact - whole).sort(descending=True, stable=True).indices[:left]] += 1
    return whole.long()


def _first(x: Tensor, w: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """First centroids (C, k, d) by greedy k-means++ (Arthur and Vassilvitskii, SODA 2007): far from those before.

    Of a few samples drawn in proportion to weight and squared distance, the one that leaves the least distance.
    """
    classes, _, d = x.shape
    tries, squares = 2 + int(math.log(k)), x.square().sum(2)
    near = torch.ones_like(w)
    chosen = []
    for j in range(k):
        reach = (near * w).double().cumsum(1)
        at = torch.rand(classes, tries if j else 1, dtype=torch.float64, generator=generator).to(x.device)
        drawn = torch.searchsorted(reach, at * reach[:, -1:], right=True).clamp_max(x.shape[1] - 1)
        points = x.gather(1, drawn[..., None].expand(-1, -1, d))
        distance = _distances(x, squares, points)
        left = torch.minimum(near[:, None], distance) if j else distance
        best = (left * w[:, None]).sum(2).argmin(1)
        near = left[torch.arange(classes, device=x.device), best]
        chosen.append(points[torch.arange(classes, device=x.device), best])
    return torch.stack(chosen, 1)


def _lloyd(x: Tensor, w: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids (C, k, d) that are the means of what is nearest to them, and the weight of that, (C, k)."""
    squares, before = x.square().sum(2), torch.full_like(w, -1, dtype=torch.int64)
    for _ in range(_PASSES):
        nearest = _distances(x, squares, centers).argmin(1)
        member = torch.nn.functional.one_hot(nearest, centers.shape[1]).to(x.dtype) * w[..., None]
        mass = member.sum(1)
        if torch.equal(nearest, before):
            break
        before = nearest
        means = (member.transpose(1, 2) @ x) / mass.clamp_min(torch.finfo(x.dtype).tiny)[..., None]
        centers = torch.where(mass[..., None] > 0, means, centers)
    return centers, mass


def _distances(x: Tensor, squares: Tensor, centers: Tensor) -> Tensor:
    """Squared, of every sample, whose squared lengths are given, to every centroid, (C, k, n)."""
    lengths = squares[:, None] + centers.square().sum(2)[..., None]
    return torch.baddbmm(lengths, centers, x.transpose(1, 2), alpha=-2).clamp_min(0)


def _nearest(distance: Tensor, free: Tensor) -> Tensor:
    """For every centroid in turn the nearest sample that is still free, (C, k)."""
    free, chosen = free.clone(), []
    for j in range(distance.shape[1]):
        chosen.append(distance[:, j].masked_fill(~free, torch.inf).argmin(1))
        free.scatter_(1, chosen[-1][:, None], False)
    return torch.stack(chosen, 1)
