"""ZCA whitening, fitted on training images and invertible."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.space import Space

LARGEST = 12288  #: D up to 3 x 64 x 64; the matrices grow with D squared, their fitting with D cubed


def fit_zca(pixels: Tensor | Iterable[Tensor], ratio: float = 0.1, base_space: Space | None = None) -> Space:
    """The Space that whitens these images.

    With cov = X'X/n of the centered, flattened images (D = c*h*w), cov = U L U' and r = ratio * tr(cov)/D:
    W = U (L + r I)^(-1/2) U', and its inverse has the power +1/2. Where there are fewer images than
    dimensions, the directions in which the images do not vary are left as they are (factor 1). Centered
    images vary in n - 1 directions at most; published code cuts at the n-th, which is one arbitrary
    direction more.

    Args:
        pixels: training images, (n, c, h, w) in [0, 1], or an iterable of such pieces.
        ratio: r in units of the mean eigenvalue, above 0.
        base_space: the per-channel Space applied before whitening, raw or normalized.

    Returns:
        A "zca" Space with float32 tensors center (1, c, h, w), whiten and unwhiten (D, D).

    Raises:
        InputError: no images, a ratio that is not positive, a base that is ZCA already, or D above 12,288.
    """
    base = base_space or Space()
    if base.kind == "zca":
        raise InputError("ZCA starts from a raw or normalized space, and this one is ZCA already.")
    if not ratio > 0:
        raise InputError(f"The ZCA ratio is {ratio}; it must be above 0 (0.1 is usual).")
    count, mean, cov, shape = _moments([pixels] if isinstance(pixels, Tensor) else pixels, base)
    size = len(mean)
    values, vectors = torch.linalg.eigh(cov)  # ascending
    scale = (values.clamp(min=0) + ratio * cov.trace() / size).sqrt()  # (D,)
    if count < size:
        flat = values < 1e-9 * cov.trace() / size
        flat[: size - count + 1] = True
        scale[flat] = 1.0
    if not (scale > 0).all():
        raise InputError("All images are identical, so there is nothing to whiten; use space='normalized'.")
    tensors = {
        "centre": mean.view(1, *shape).float(),
        "whiten": ((vectors / scale) @ vectors.T).float(),
        "unwhiten": ((vectors * scale) @ vectors.T).float(),
    }
    return Space("zca", base.mean, base.std, base.source or "measured", tensors)


def _moments(pieces: Iterable[Tensor], base: Space) -> tuple[int, Tensor, Tensor, tuple[int, ...]]:
    """Count, mean (D,) and covariance (D, D) in float64, of images in the base space, one piece at a time."""
    count, shape = 0, tuple[int, ...]()
    total = product = shift = torch.zeros(0, dtype=torch.float64)
    for piece in pieces:
        if not len(piece):
            continue
        shape = tuple(piece.shape[1:])
        size = piece[0].numel()
        if size > LARGEST:
            raise InputError(
                f"ZCA of {size} numbers per image needs matrices of {size} x {size}; resize the images "
                f"(size=32) or use space='normalized' (at most {LARGEST} numbers are whitened)."
            )
        flat = base.encode(piece.double()).flatten(1)  # (n, D)
        if count == 0:
            # moments about the first image, so that subtracting the squared mean loses no digits
            shift = flat[0]
            total = torch.zeros(size, dtype=torch.float64)
            product = torch.zeros(size, size, dtype=torch.float64)
        flat = flat - shift
        total += flat.sum(0)
        product.addmm_(flat.T, flat)
        count += len(flat)
    if count == 0:
        raise InputError("ZCA needs at least one image to be fitted on.")
    offset = total / count
    return count, offset + shift, product / count - torch.outer(offset, offset), shape


def fit_absolute_zca(pieces: Iterable[Tensor], shape: tuple[int, int, int], eps: float) -> dict[str, Tensor]:
    """Center, whiten and unwhiten, as the released trajectory-matching codes fit them.

    With cov = X'X/(n-1) of the centered training images in [0, 1], without mean and std, and cov = U L U':
    W = U (L + eps I)^(-1/2) U'.

    Args:
        pieces: training images, (n, c, h, w) in [0, 1], piece by piece.
        shape: (c, h, w).
        eps: added to the eigenvalues, 0.1 in released codes.
    """
    size, n = math.prod(shape), 0
    total = torch.zeros(size, dtype=torch.float64)
    product = torch.zeros(size, size, dtype=torch.float64)
    for piece in pieces:
        flat = piece.double().flatten(1) - 0.5  # about the middle, so that squares lose no digits
        n += len(flat)
        total += flat.sum(0)
        product.addmm_(flat.T, flat)
    mean = total / n
    values, vectors = torch.linalg.eigh((product - n * torch.outer(mean, mean)) / max(1, n - 1))
    scale = (values.clamp(min=0) + eps).sqrt()
    return {
        "centre": (mean + 0.5).view(1, *shape).float(),
        "whiten": ((vectors / scale) @ vectors.T).float(),
        "unwhiten": ((vectors * scale) @ vectors.T).float(),
    }
