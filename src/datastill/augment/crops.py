"""Crop boxes in whole pixels, and crops resized by them: exact, differentiable, shared by a batch or one per image.

A box is four integers, top, left, height and width, so a stored box gives the same crop everywhere. Drawing and
cropping are apart:

    boxes = resized_crop_boxes(generator, 1, (32, 32), scale=(0.08, 1.0))  # one row: shared by the whole batch
    view = crop_resize(x, boxes)

The draw is that of "inception style" random resized crops (Szegedy et al., CVPR 2015, arXiv:1409.4842), as SRe2L
(arXiv:2306.13092) and its successors use them while images are recovered, labeled and trained on.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.augment import operations
from datastill.core.errors import InputError

#: Draws of area and shape before the box falls back to the center.
_ATTEMPTS = 10


def resized_crop_boxes(
    generator: torch.Generator,
    rows: int,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes of uniform area and log-uniform shape at uniform places.

    A box that does not fit is drawn again, ten times at most; then it is the largest centered one whose shape is
    within `ratio`, which for a square image is the whole image. So scale (1, 1) gives whole images there.

    Args:
        generator: a CPU generator.
        rows: how many boxes.
        size: height and width of the images, pixels.
        scale: smallest and largest area, fractions of the image's, in (0, 1].
        ratio: smallest and largest width over height.

    Returns:
        (rows, 4) int64: top, left, height, width; inside the image.

    Raises:
        InputError: a scale or a ratio out of range.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"The areas of crops are fractions 0 < low <= high <= 1 of the image, not {scale}.")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"The shapes of crops are 0 < low <= high, width over height, not {ratio}.")
    height, width = size
    u = torch.rand(rows, 2 * _ATTEMPTS + 2, dtype=torch.float64, generator=generator)
    area = height * width * _between(u[:, :_ATTEMPTS], *scale)
    shape = _between(u[:, _ATTEMPTS:-2], math.log(ratio[0]), math.log(ratio[1])).exp()
    heights = (area / shape).sqrt().round().long()  # (rows, attempts)
    widths = (area * shape).sqrt().round().long()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.int().argmax(1, keepdim=True)
    h, w = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    top, left = (u[:, -2] * (height - h + 1)).floor().long(), (u[:, -1] * (width - w + 1)).floor().long()
    boxes = torch.stack([top, left, h, w], 1)
    return torch.where(fits.any(1, keepdim=True), boxes, torch.tensor(_centered(size, ratio)))


def pad_crop_boxes(generator: torch.Generator, rows: int, size: tuple[int, int], pad: int) -> Tensor:
    """Boxes of the image's own size, moved by up to `pad` pixels each way; what lies outside is 0 when cropped.

    Args:
        generator: a CPU generator.
        rows: how many boxes.
        size: height and width of the images, pixels.
        pad: the furthest move, pixels, at least 0.

    Returns:
        (rows, 4) int64: top, left, height, width; top and left are in -pad..pad.

    Raises:
        InputError: a negative pad.
    """
    if pad < 0:
        raise InputError(f"The padding of crops is a number of pixels from 0, not {pad}.")
    u = torch.rand(rows, 2, dtype=torch.float64, generator=generator)
    offset = (u * (2 * pad + 1)).floor().long() - pad
    return torch.cat([offset, torch.tensor([size]).expand(rows, 2)], 1)


def edges(side: int, factor: int) -> list[tuple[int, int]]:
    """Where the tiles of a side begin and end; what is left over goes to the first, as where tiles are shuffled."""
    bounds = [0, *itertools.accumulate(side // factor + (k < side % factor) for k in range(factor))]
    return list(itertools.pairwise(bounds))


def crop_resize(x: Tensor, boxes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Crop images and resize the crops: bilinear, pixel centers (align_corners=False), no antialiasing.

    Equal to `F.interpolate` of each crop. The gradient is exactly 0 outside the crop. Pixels of a box that lie
    outside the image are 0.

    Args:
        x: images, (n, c, h, w) float.
        boxes: (1, 4), shared by the batch, or (n, 4), int64 and best on the CPU: top, left, height, width in pixels.
        size: height and width to resize to; None means the images' own.

    Returns:
        (n, c, *size); x itself where every box is the whole image and nothing is resized.

    Raises:
        InputError: boxes of another shape, or empty ones.
    """
    n, height, width = len(x), x.shape[2], x.shape[3]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) not in (1, n):
        raise InputError(f"Boxes are (1, 4) or ({n}, 4) for {n} images, not {tuple(boxes.shape)}.")
    if bool((boxes[:, 2:] < 1).any()):
        raise InputError("A box of a crop has at least one pixel each way.")
    out = (height, width) if size is None else size
    if out == (height, width) and bool((boxes == torch.tensor([0, 0, height, width], device=boxes.device)).all()):
        return x
    x, boxes = _padded(x, boxes)
    if len(boxes) == 1:
        return _resized(x, boxes[0].tolist(), out)
    return _one_by_one(x, boxes, out) if x.device.type == "cpu" else _all_at_once(x, boxes, out)


def flip(x: Tensor, mask: Tensor) -> Tensor:
    """Mirror left-right where `mask` is set: (1,) bool for the whole batch, or (n,), one for each image."""
    if len(mask) == 1 and len(x) != 1:
        return x.flip(3) if bool(mask) else x
    return operations.mirror(x, mask.to(x.device))


def roll(x: Tensor, shifts: Tensor) -> Tensor:
    """Circular shift, down and to the right.

    Args:
        x: images, (n, c, h, w).
        shifts: (1, 2), shared by the batch, or (n, 2), int64: pixels along rows, then columns; may be negative.
    """
    if len(shifts) == 1:
        down, right = shifts[0].tolist()
        return x.roll((down, right), (2, 3)) if down or right else x
    shifts = shifts.to(x.device)
    rows = (torch.arange(x.shape[2], device=x.device) - shifts[:, :1]) % x.shape[2]
    columns = (torch.arange(x.shape[3], device=x.device) - shifts[:, 1:]) % x.shape[3]
    return take(take(x, rows, 2), columns, 3)


def take(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Rows (dim 2) or columns (dim 3) of each image (n, c, h, w) by positions (n, length) of its own."""
    if x.device.type == "cpu":
        return torch.cat([image.index_select(dim, row) for image, row in zip(x.split(1), index, strict=True)])
    return _gather(x, index, dim)


def _gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    n, c, h, w = x.shape
    length = index.shape[1]
    if dim == 2:
        return x.gather(2, index.view(n, 1, length, 1).expand(n, c, length, w))
    return x.gather(3, index.view(n, 1, 1, length).expand(n, c, h, length))


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


def _centered(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest centered box whose width over height is within `ratio`."""
    height, width = size
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _padded(x: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Images with zeros around them, as far as the boxes reach outside, and the boxes in the larger images."""
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    top, left = (-first.amin(0)).clamp_min(0).tolist()
    bottom, right = (last.amax(0) - torch.tensor(x.shape[2:], device=boxes.device)).clamp_min(0).tolist()
    if not (top or left or bottom or right):
        return x, boxes
    return F.pad(x, (left, right, top, bottom)), boxes + torch.tensor([top, left, 0, 0], device=boxes.device)


def _resized(x: Tensor, box: list[int], out: tuple[int, int]) -> Tensor:
    """One box of all images (n, c, h, w), resized."""
    top, left, h, w = box
    crop = x[:, :, top : top + h, left : left + w]
    return crop if (h, w) == out else F.interpolate(crop, size=out, mode="bilinear", align_corners=False)


def _one_by_one(x: Tensor, boxes: Tensor, out: tuple[int, int]) -> Tensor:
    """Crops by a loop, on a CPU two to five times faster than gathering four neighbors for each pixel."""
    return torch.cat([_resized(image, box, out) for image, box in zip(x.split(1), boxes.tolist(), strict=True)])


def _all_at_once(x: Tensor, boxes: Tensor, out: tuple[int, int]) -> Tensor:
    """Crops without a loop, for devices on which each small kernel waits to be launched."""
    x = _resample(x, boxes[:, 0], boxes[:, 2], out[0], 2)
    return _resample(x, boxes[:, 1], boxes[:, 3], out[1], 3)


def _resample(x: Tensor, start: Tensor, length: Tensor, out: int, dim: int) -> Tensor:
    """Each image's pixels start..start+length-1 along one axis, linearly resampled to `out`.

    Positions have the precision, and the rounding, that they have in `F.interpolate`.
    """
    exact = bool((length == out).all())
    start, length = start.to(x.device)[:, None], length.to(x.device)[:, None]
    place = torch.arange(out, device=x.device)
    if exact:
        return _gather(x, start + place, dim)
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = (length.to(precision) / out).double()
    source = ((place + 0.5) * scale - 0.5).clamp_min(0).to(precision)  # (n, out), rounded once, as if fused
    low = torch.minimum(source.long(), length - 1)
    high = torch.minimum(low + 1, length - 1)
    weight = (source - low).to(x.dtype).view(len(x), 1, *((out, 1) if dim == 2 else (1, out)))
    return _gather(x, start + low, dim) * (1 - weight) + _gather(x, start + high, dim) * weight
