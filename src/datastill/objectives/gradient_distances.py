"""Distances between the weight gradients of two batches, class by class (Zhao et al., arXiv:2006.05929).

Gradients are tensors (K, *parameter.shape) by parameter name; a distance is (K,), a sum and never a mean over weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from datastill.core.errors import InputError, nearest

Gradients = Mapping[str, Tensor]
Distance = Callable[[Gradients, Gradients], Tensor]

LAYERS = ("all", "matrices", "conv")

#: Squared norm below which a vector counts as zero: smaller squares lose their digits in float32.
_ZERO = 1e-32
#: Norm, in units of the rounding error of the longest row of its tensor, below which a row is rounding noise.
_NOISE = 10.0
#: What the released code adds to the product of two norms.
_PUBLISHED_EPS = 1e-6


def one_minus_cosine(dot: Tensor, aa: Tensor, bb: Tensor, live: Tensor, parity: bool = False) -> Tensor:
    """1 - <a, b> / (|a| |b|) from <a, b>, |a|^2 and |b|^2, all of one shape, and a mask of those that are not zero.

    It is exactly 0 for a = b of any length, and a constant 1 without gradient where the mask is off. With `parity` the
    denominator is the published |a| |b| + 1e-6, which leaves short a = b far from 0.
    """
    # cos(a, b) does not change with a common factor, which is therefore a constant for autograd too.
    scale = torch.where(live, torch.maximum(aa, bb), 1).detach()
    product = torch.where(live, (aa / scale) * (bb / scale), 1)
    if parity:
        return 1 - dot / (torch.where(live, product.sqrt() * scale, 0) + _PUBLISHED_EPS)
    return 1 - torch.where(live, dot / scale / product.sqrt(), 0)


def row_cosine(synthetic: Gradients, real: Gradients, *, parity: bool = False) -> Tensor:
    """sum_tensors sum_rows (1 - cosine of the row), one row per output of a layer; vectors (biases) are left out.

    Rows are (in * k * k) of a convolution, (in) of a linear layer, (H * W) of a layer norm over (C, H, W). Rows that
    are zero but for rounding, as those of dead filters are, cost 1 and have no gradient; with `parity` they are as
    published.
    """
    total: list[Tensor] = []
    for a, b in _pairs(synthetic, real):
        if a.ndim > 2:
            a, b = a.flatten(2), b.flatten(2)  # (K, rows, row)
            dot, aa, bb = (a * b).sum(2), (a * a).sum(2), (b * b).sum(2)  # (K, rows)
            live = _nonzero(aa, bb) if parity else _nonzero(aa, bb) & _above_noise(aa) & _above_noise(bb)
            total.append(one_minus_cosine(dot, aa, bb, live, parity).sum(1))
    if not total:
        raise InputError("The row cosine needs a weight of two axes or more, and none is matched.")
    return torch.stack(total).sum(0)


def cosine(synthetic: Gradients, real: Gradients, *, parity: bool = False) -> Tensor:
    """1 - the cosine of all tensors as one vector."""
    sums = [
        torch.stack([(a * b).flatten(1).sum(1), (a * a).flatten(1).sum(1), (b * b).flatten(1).sum(1)])
        for a, b in _pairs(synthetic, real)
    ]
    dot, aa, bb = torch.stack(sums).sum(0)
    return one_minus_cosine(dot, aa, bb, _nonzero(aa, bb), parity)


def squared_l2(synthetic: Gradients, real: Gradients) -> Tensor:
    """|| a - b ||^2 over all tensors."""
    return torch.stack([(a - b).square().flatten(1).sum(1) for a, b in _pairs(synthetic, real)]).sum(0)


def l1(synthetic: Gradients, real: Gradients) -> Tensor:
    """|| a - b ||_1 over all tensors."""
    return torch.stack([(a - b).abs().flatten(1).sum(1) for a, b in _pairs(synthetic, real)]).sum(0)


def make_distance(name: str, parity: bool = False) -> Distance:
    """A distance by name: "row-cosine", "cos", "mse" (a sum of squares, by its published name) or "l1".

    Raises:
        InputError: unknown name, or `parity` for a distance that has no epsilon.
    """
    cosines = {"row-cosine": row_cosine, "cos": cosine}
    others: dict[str, Distance] = {"mse": squared_l2, "l1": l1}
    if name in cosines:
        chosen = cosines[name]
        return lambda synthetic, real: chosen(synthetic, real, parity=parity)
    if name not in others:
        raise InputError(f"There is no distance {name!r}. {nearest(name, [*cosines, *others])}")
    if parity:
        raise InputError(f"The distance {name!r} has no epsilon; parity=True is for row-cosine and cos.")
    return others[name]


def parameter_names(network: nn.Module, layers: str) -> list[str]:
    """The parameters to match: "all", "matrices" (two axes or more: DC) or "conv" (weights of convolutions: IDC).

    A network without convolutions is matched on its matrices where "conv" is asked.

    Raises:
        InputError: unknown choice, or the network has no such parameter.
    """
    if layers not in LAYERS:
        raise InputError(f"There is no choice of layers {layers!r}. {nearest(layers, LAYERS)}")
    convolutions = {id(m.weight) for m in network.modules() if isinstance(m, _ConvNd)}
    if layers == "conv" and not convolutions:
        layers = "matrices"
    names = [
        name
        for name, p in network.named_parameters()
        if layers == "all" or (p.ndim >= 2 if layers == "matrices" else id(p) in convolutions)
    ]
    if not names:
        raise InputError(f"This network has no parameters to match with layers={layers!r}; use layers='all'.")
    return names


def _nonzero(aa: Tensor, bb: Tensor) -> Tensor:
    return torch.minimum(aa, bb) > _ZERO


def _above_noise(squares: Tensor) -> Tensor:
    """Which rows of a tensor are more than the rounding error of its longest; squared norms (K, rows) to a mask."""
    return squares > (_NOISE * torch.finfo(squares.dtype).eps) ** 2 * squares.amax(1, keepdim=True)


def _pairs(synthetic: Gradients, real: Gradients) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensor by tensor, in float32 at least."""
    for name, a in synthetic.items():
        b = real[name]
        dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        yield a.to(dtype), b.to(dtype)
