"""Kernel density of embeddings, and the weights that undo it.

f(x_i) = (1/n) sum_j K(|z_i - z_j|),   K(d) = exp(-d^2 / (2 s^2)),   w_i ~ f(x_i)^-p

z are embeddings scaled to unit length, so that one variance s^2 serves every data set; the sum runs over the samples of
x_i's own class, x_i included. Where the embedding tells bias groups apart, f is the share of a group, and p = 1 gives
every group the same weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.rng import Rng

SCOPES = ("class", "global", "batch")

#: Variances among which `spread_variance` looks.
VARIANCES: tuple[float, ...] = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)

#: Distances held at once by default: 32 MB of them.
_DISTANCES = 1 << 22

#: Squared distances below this are rounding of float32 embeddings.
_ROUNDING = 1e-12


def density(
    z: Tensor,
    y: Tensor,
    variance: float = 0.03,
    *,
    scope: str = "class",
    leave_one_out: bool = False,
    chunk: int | None = None,
    batch: int = 256,
    seed: int = 0,
) -> Tensor:
    """The density at every sample, among those that `scope` compares it with.

    Computed in float64: a variance may be far below the rounding of float32 distances. The samples of a scope are
    taken `chunk` rows at a time, which bounds the memory and changes the result by float64 rounding only.

    Args:
        z: embeddings, (n, d); scaled to unit length here.
        y: class positions, (n,).
        variance: s^2 of the kernel, above 0.
        scope: "class"; "global", all samples; "batch", the samples of one batch when each class is cut into batches
            at random once (both for comparison).
        leave_one_out: leave the sample itself out of its sum. The density is then held at 1/n at least, which the
            sample itself would bring.
        chunk: rows of distances at once, at least 1; None takes as many as fill about 32 MB, at most 1,024.
        batch: samples per batch in scope "batch".
        seed: of the cut in scope "batch".

    Returns:
        (n,) float64 on the CPU, in [1/n, 1] with n the samples of the scope.

    Raises:
        InputError: shapes do not agree, an unknown scope, numbers out of range, or embeddings that are not finite.
    """
    return densities(
        z, y, [variance], scope=scope, leave_one_out=leave_one_out, chunk=chunk, batch=batch, seed=seed
    ).squeeze(0)


def densities(
    z: Tensor,
    y: Tensor,
    variances: Sequence[float],
    *,
    scope: str = "class",
    leave_one_out: bool = False,
    chunk: int | None = None,
    batch: int = 256,
    seed: int = 0,
) -> Tensor:
    """`density` for several variances at the price of one set of distances, (variances, n) float64."""
    if any(not (math.isfinite(v) and v > 0) for v in variances):
        raise InputError(f"The kernel's variance must be a finite number above 0, not {variances}.")
    if (chunk is not None and chunk < 1) or batch < 1:
        raise InputError(f"chunk and batch are numbers of samples, at least 1, not {chunk} and {batch}.")
    z = unit(z)
    if y.shape != (len(z),):
        raise InputError(f"There are {len(z)} embeddings and labels of shape {tuple(y.shape)}; give one for each.")
    y = y.cpu()
    found = z.new_zeros(len(variances), len(z))
    for members in _compared(y, scope, batch, seed):
        here = members.to(z.device)
        found[:, here] = _within(z[here], variances, leave_one_out, chunk)
    return found.cpu()


def _within(z: Tensor, variances: Sequence[float], leave_one_out: bool, chunk: int | None = None) -> Tensor:
    """Densities (variances, n) of samples that are all compared with one another; z (n, d)."""
    n = len(z)
    chunk = chunk or max(1, min(1024, _DISTANCES // max(1, n)))
    total = z.new_zeros(len(variances), n)
    for start in range(0, n, chunk):
        squared = squared_distances(z[start : start + chunk], z)
        for row, variance in zip(total, variances, strict=True):
            row[start : start + chunk] = (squared / (-2 * variance)).exp_().sum(1)
    if leave_one_out:
        return ((total - 1) / max(1, n - 1)).clamp_min(1 / n)
    return total / n


def _compared(y: Tensor, scope: str, batch: int, seed: int) -> Iterator[Tensor]:
    """Positions of samples that are compared with one another, group after group."""
    if scope not in SCOPES:
        raise InputError(f"There is no scope {scope!r}. {nearest(scope, SCOPES)}")
    if scope == "global":
        yield torch.arange(len(y))
        return
    for c in y.unique().tolist():
        members = (y == c).nonzero().squeeze(1)
        if scope == "class":
            yield members
        else:
            generator = Rng(seed).generator("density", int(c))
            yield from members[torch.randperm(len(members), generator=generator)].split(batch)


def unit(z: Tensor) -> Tensor:
    """Rows of z (n, d) scaled to length 1 in float64; a row of zeros stays. On the CPU where the device lacks float64.

    Raises:
        InputError: not two axes, or numbers that are not finite.
    """
    if z.ndim != 2:
        raise InputError(f"Embeddings are (n, d), not {tuple(z.shape)}.")
    z = (z.cpu() if z.device.type == "mps" else z).detach().double()
    if not torch.isfinite(z).all():
        raise InputError("The embeddings hold NaN or infinite numbers; train the extractor at a lower learning rate.")
    return z / z.norm(dim=1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, (n, m), not negative."""
    return torch.addmm((a * a).sum(1)[:, None] + (b * b).sum(1)[None], a, b.T, alpha=-2).clamp_min_(0)


def inverse_density(f: Tensor, y: Tensor | None = None, power: float = 1.5) -> Tensor:
    """Weights f^-power that sum to 1 in every class, or over all samples without labels.

    Args:
        f: densities, (n,), above 0.
        y: class positions, (n,), or None.
        power: p of at least 0: 1 is the plain inverse, larger is sharper, 0 is uniform. A temperature of the weights
            is 1 / p.

    Returns:
        (n,) float64, above 0.

    Raises:
        InputError: a density is not above 0, or `power` is negative.
    """
    if not (math.isfinite(power) and power >= 0):
        raise InputError(f"The power of the weights must be a finite number of at least 0, not {power}.")
    f = f.double()
    if not bool((f > 0).all()):
        raise InputError("Densities must be above 0 to be inverted; keep the sample itself in its sum.")
    position, groups = _positions(y, len(f))
    exponent = -power * f.log()
    top = exponent.new_full((groups,), -torch.inf).scatter_reduce(0, position, exponent, "amax")
    return per_class((exponent - top[position]).exp(), y)


def per_class(weights: Tensor, y: Tensor | None = None) -> Tensor:
    """Weights (n,) scaled to sum to 1 in every class, or over all samples without labels; what weighs nothing stays."""
    position, groups = _positions(y, len(weights))
    total = weights.new_zeros(groups).index_add(0, position, weights)
    return weights / total.clamp_min(torch.finfo(weights.dtype).tiny)[position]


def _positions(y: Tensor | None, n: int) -> tuple[Tensor, int]:
    """Which group every sample belongs to, (n,), and how many groups there are."""
    if y is None:
        return torch.zeros(n, dtype=torch.int64), 1
    if y.shape != (n,):
        raise InputError(f"There are {n} weights and labels of shape {tuple(y.shape)}; give one label for each.")
    return y.cpu(), int(y.max()) + 1 if n else 0


def median_variance(z: Tensor, y: Tensor, *, share: float = 0.05, most: int = 1000, seed: int = 0) -> float:
    """A variance from the data: the median over samples of the squared distance within which `share` of the class lies.

    The distance is the smallest within which that share of the other samples of the class lies, and of at least one.
    At most `most` random samples of each class are looked at, and classes of one sample are not.

    Returns:
        s^2; NaN where no class has two samples, or all are alike.
    """
    reach = []
    for group in _sampled(unit(z), y, most, seed):
        near = squared_distances(group, group).fill_diagonal_(torch.inf)
        if len(group) > 1:
            reach.append(near.kthvalue(max(1, round(share * (len(group) - 1))), dim=1).values)
    found = float(torch.cat(reach).median()) if reach else math.nan
    return found if found > _ROUNDING else math.nan


def spread_variance(
    z: Tensor, y: Tensor, *, variances: Sequence[float] = VARIANCES, power: float = 1.5, most: int = 1000, seed: int = 0
) -> float:
    """The variance, of those given, at which the weights within a class vary most (coefficient of variation).

    Far too small and far too large a variance both give equal weights; this is the one in between. At most `most`
    random samples of each class are looked at. NaN where the weights vary at none of them.
    """
    spread = torch.zeros(len(variances), dtype=torch.float64)
    for group in _sampled(unit(z), y, most, seed):
        for v, f in enumerate(_within(group, variances, False)):
            weights = inverse_density(f.cpu(), None, power) * len(f)
            spread[v] += (weights - 1).square().mean().sqrt()
    return float(variances[int(spread.argmax())]) if float(spread.max()) > _ROUNDING else math.nan


def _sampled(z: Tensor, y: Tensor, most: int, seed: int) -> Iterator[Tensor]:
    """Embeddings of at most `most` random samples of every class."""
    for members in _compared(y.cpu(), "class", 1, seed):
        c = int(y[members[0]])
        drawn = torch.randperm(len(members), generator=Rng(seed).generator("bandwidth", c))[:most]
        yield z[members[drawn].to(z.device)]
