"""A finished set in fewer bits, still a distilled set: it is loaded and evaluated as any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.ranges import Amount, Bits, checked
from datastill.decoders.encoded import INNER, Encoded, patches_of, per_pixel, stream_of
from datastill.exchange.refine import rounded
from datastill.store.artifact import DistilledSet
from datastill.store.rendering import decoder_of

#: Side of a patch, and groups of patches, below 8 bits (arXiv:2603.13346 has 5 pixels).
PATCH, GROUPS = 5, 32


@dataclass(frozen=True)
class _Quantized:
    q: Tensor  #: (n, c, h, w) uint8
    group: Tensor | None  #: of patches (n, p) uint8
    low: list[float]
    step: list[float]


@dataclass(frozen=True)
class _Groups:
    where: Tensor  #: patch of each pixel (h * w,)
    of: Tensor  #: of patches (n, p)
    least: Tensor  #: of the values of each group (g,)
    most: Tensor


@checked
def encode(distilled: DistilledSet, bits: Bits = 8, most: Amount = 0, refine: Amount = 0) -> DistilledSet:
    """The set with its stored images in `bits` bits a value, or as many as fit in `most` bytes.

    Args:
        distilled: of pixels or mosaics.
        bits: from 1 to 8; 8 are those of image files.
        most: bytes that the images may take; 0 takes `bits` whatever they take.
        refine: below 8 bits, steps to round values up or down so that networks see less of it (see `exchange.refine`).

    Raises:
        InputError: images that are no pixels of channels, a set that is encoded already or has a teacher, or too few
            bytes.
    """
    if distilled.record.companions:
        raise InputError("A set with a teacher beside it cannot be encoded; export it as tensors.")
    pixels, constants = _stored_pixels(distilled)
    groups = cache(lambda: _grouped(pixels))
    for fewer in range(bits, 0, -1):
        for steps in dict.fromkeys((0, refine)):  # refined only where they fit, which may take some more bytes
            found = _encoded(distilled, pixels, constants, fewer, groups, steps)
            fits = not most or len(found.codes["blob"].flatten()) <= most
            if fits and steps == refine:
                return found
            if not fits:
                break
    least = len(found.codes["blob"].flatten())
    raise InputError(f"{most} bytes are too few for {len(pixels)} images: they take {least} with one bit a value.")


def _stored_pixels(distilled: DistilledSet) -> tuple[Tensor, dict[str, Any]]:
    """Stored images as pixels in [0, 1], and what the decoder normalizes them by."""
    record = distilled.record.decoder.plain()
    if record["decoder"] not in INNER:
        raise InputError(f"Only stored pixels can be encoded, and this set stores {record['decoder']}.")
    images, space = distilled.codes["images"].detach().cpu().float(), distilled.space
    if not bool(torch.isfinite(images).all()):
        raise InputError("The images hold numbers that are not finite, which no encoding holds; distill again.")
    if record.get("mean") is not None or space.kind == "raw":
        return images.clamp(0, 1), {}
    if space.kind == "zca":
        raise InputError("ZCA-whitened images are no pixels of channels; export them as parquet or tensors.")
    return space.decode(images).clamp(0, 1), {"mean": list(space.mean), "std": list(space.std)}


def _encoded(
    distilled: DistilledSet,
    pixels: Tensor,
    constants: dict[str, Any],
    bits: int,
    groups: Callable[[], _Groups],
    refine: int,
) -> DistilledSet:
    patch, refine = (0, 0) if bits == 8 else (PATCH, refine)
    found = _whole(pixels) if bits == 8 else _in_patches(pixels, bits, groups())
    if refine:
        found = replace(found, q=_refined(distilled, pixels, constants, found, groups(), 2**bits - 1, refine))
    stream = stream_of(found.group, found.q)
    decoder = Encoded(
        pixels.shape[1:], found.low, found.step, len(stream), patch, inner=distilled.record.decoder.plain(), **constants
    )
    rows = -(-len(stream) // len(pixels))
    blob = np.frombuffer(stream.ljust(rows * len(pixels), b"\0"), np.uint8).copy()
    manifest = copy.deepcopy(distilled.manifest)
    took = f"{len(stream):,} bytes, {8 * len(stream) / pixels.numel():.2f} bits a value"
    how = f", refined in {refine} steps" if refine else ""
    note = f"images encoded with {bits} bits a value{how}, in {took} once compressed"
    manifest.update(decoder=decoder.describe(), notes=[*distilled.record.notes, note])
    leaf = torch.from_numpy(blob).view(len(pixels), rows)
    return DistilledSet({"blob": leaf}, distilled.labels, distilled.space, manifest, dict(distilled.extra))


def _refined(
    distilled: DistilledSet,
    pixels: Tensor,
    constants: dict[str, Any],
    found: _Quantized,
    groups: _Groups,
    levels: int,
    steps: int,
) -> Tensor:
    """Values that are rounded to where the decoded images lose least, uint8."""
    inner, labels = decoder_of(distilled.record.decoder.plain()), distilled.labels
    mean, std = (torch.tensor(constants.get(name, [d])).view(1, -1, 1, 1) for name, d in (("mean", 0.0), ("std", 1.0)))
    h, w = pixels.shape[2:]
    low, step = (per_pixel(torch.tensor(row), groups.of, groups.where, (h, w)) for row in (found.low, found.step))

    def decoded(images: Tensor, index: Tensor) -> Tensor:
        return inner.decode({"images": (images - mean) / std}, labels[index]).x

    values = ((pixels - low) / step).clamp(0, levels)
    read_back = lambda q, index: low[index] + step[index] * q  # noqa: E731
    return rounded(values, levels, read_back, (pixels, decoded), len(distilled.class_names), steps).to(torch.uint8)


def _whole(pixels: Tensor) -> _Quantized:
    """Each value by itself, in 8 bits."""
    return _Quantized((255 * pixels).round().to(torch.uint8), None, [0.0], [1 / 255])


def _grouped(pixels: Tensor) -> _Groups:
    """Patches by k-means in their range, each group on the range of its members."""
    from sklearn.cluster import KMeans

    n, c, h, w = pixels.shape
    where = patches_of(h, w, PATCH)
    flat = pixels.view(n, c, h * w)
    count = int(where.max()) + 1
    index = where.expand(n, c, -1)
    low = torch.zeros(n, c, count).scatter_reduce(2, index, flat, "amin", include_self=False).amin(1)
    high = torch.zeros(n, c, count).scatter_reduce(2, index, flat, "amax", include_self=False).amax(1)
    ranges = torch.stack([low, high - low], dim=2).view(-1, 2)
    groups = min(GROUPS, len(ranges.unique(dim=0)))
    of = KMeans(n_clusters=groups, n_init=1, random_state=0).fit_predict(ranges.double().numpy())
    group = torch.from_numpy(np.unique(of, return_inverse=True)[1])
    used = int(group.max()) + 1
    least = torch.full((used,), np.inf).scatter_reduce(0, group, low.flatten(), "amin")
    most = torch.full((used,), -np.inf).scatter_reduce(0, group, high.flatten(), "amax")
    return _Groups(where, group.view(n, count), least, most)


def _in_patches(pixels: Tensor, bits: int, groups: _Groups) -> _Quantized:
    """Each value on the scale of its patch's group."""
    levels = 2**bits - 1
    step = ((groups.most - groups.least) / levels).clamp_min(1e-6)
    h, w = pixels.shape[2:]
    a, z = (per_pixel(row, groups.of, groups.where, (h, w)) for row in (step, groups.least))
    q = ((pixels - z) / a).round().clamp(0, levels).to(torch.uint8)
    of = groups.of.to(torch.uint8) if len(step) > 1 else None
    return _Quantized(q, of, groups.least.tolist(), step.tolist())
