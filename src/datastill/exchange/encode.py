"""A finished set in fewer bits, still a distilled set: it is loaded and evaluated as any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.ranges import Amount, Bits, checked
from datastill.core.rng import undisturbed
from datastill.decoders.encoded import INNER, LEAVES, Encoded, patches_of, per_pixel, stream_of
from datastill.exchange.refine import rounded
from datastill.store.artifact import DistilledSet
from datastill.store.rendering import decoder_of

#: Side of a patch, and groups of patches, below 8 bits (arXiv:2603.13346 has 5 pixels).
PATCH, GROUPS = 5, 32


@dataclass(frozen=True)
class _Groups:
    where: Tensor  #: patch of each pixel (h * w,)
    of: Tensor  #: of patches (n, p)
    least: Tensor  #: of the values of each group (g,)
    most: Tensor


@dataclass(frozen=True)
class _Scales:
    low: Tensor  #: of each group (g,)
    step: Tensor
    highest: int  #: value


@checked
def encode(distilled: DistilledSet, bits: Bits = 8, most: Amount = 0, refine: Amount = 0) -> DistilledSet:
    """The set with its stored images in `bits` bits a value, or as many as fit in `most` bytes.

    Args:
        distilled: of pixels, mosaics or frequencies.
        bits: of a value, from 1 to 8. For pixels 8 are those of image files. For frequencies they are a mean: one step
            for all of them, so that those of wide range take more bits.
        most: bytes that the images may take; 0 takes `bits` whatever they take.
        refine: below 8 bits, steps to round values up or down so that networks see less of it (see `exchange.refine`).

    Raises:
        InputError: images that are neither pixels of channels nor frequencies, a set that is encoded already or has a
            teacher, or too few bytes.
    """
    if distilled.record.companions:
        raise InputError("A set with a teacher beside it cannot be encoded; export it as tensors.")
    values, constants = _stored(distilled)
    groups = cache(lambda: _frequencies(values) if _in_frequencies(distilled) else _grouped(values))
    for fewer in range(bits, 0, -1):
        for steps in dict.fromkeys((0, refine)):  # refined only where they fit, which may take some more bytes
            found = _encoded(distilled, values, constants, fewer, groups, steps)
            fits = not most or len(found.codes["blob"].flatten()) <= most
            if fits and steps == refine:
                return found
            if not fits:
                break
    least = len(found.codes["blob"].flatten())
    raise InputError(f"{most} bytes are too few for {len(values)} images: they take {least} with one bit a value.")


def _in_frequencies(distilled: DistilledSet) -> bool:
    return distilled.record.decoder.plain()["decoder"] == "dct"


def _stored(distilled: DistilledSet) -> tuple[Tensor, dict[str, Any]]:
    """Stored images as pixels in [0, 1], and what the decoder normalizes them by; or frequencies, as they are."""
    record = distilled.record.decoder.plain()
    if record["decoder"] not in INNER:
        if record["decoder"] == "encoded":
            raise InputError("This set is encoded already; export the one that it was made of.")
        raise InputError(f"Only stored pixels or frequencies can be encoded, and this set stores {record['decoder']}.")
    images, space = distilled.codes[LEAVES[record["decoder"]]].detach().cpu().float(), distilled.space
    if not bool(torch.isfinite(images).all()):
        raise InputError("The images hold numbers that are not finite, which no encoding holds; distill again.")
    if _in_frequencies(distilled):
        return images, {}
    if record.get("mean") is not None or space.kind == "raw":
        return images.clamp(0, 1), {}
    if space.kind == "zca":
        raise InputError("ZCA-whitened images are no pixels of channels; export them as parquet or tensors.")
    return space.decode(images).clamp(0, 1), {"mean": list(space.mean), "std": list(space.std)}


def _encoded(
    distilled: DistilledSet,
    values: Tensor,
    constants: dict[str, Any],
    bits: int,
    groups: Callable[[], _Groups],
    refine: int,
) -> DistilledSet:
    whole, frequencies = bits == 8 and not _in_frequencies(distilled), _in_frequencies(distilled)
    patch = 0 if whole else 1 if frequencies else PATCH
    group, (low, step) = None, ([0.0], [1 / 255])
    if whole:
        q, refine = (255 * values).round().to(torch.uint8), 0
    else:
        of = groups()
        scales = _one_step(of, bits) if frequencies else _own_steps(of, bits)
        q = _nearest(values, of, scales)
        if refine:
            q = _refined(distilled, values, constants, of, scales, refine)
        low, step = scales.low.tolist(), scales.step.tolist()
        if len({*zip(low, step, strict=True)}) > 1:
            group = of.of.to(torch.uint8)
        else:
            low, step = low[:1], step[:1]
    stream = stream_of(group, q)
    inner = distilled.record.decoder.plain()
    decoder = Encoded(values.shape[1:], low, step, len(stream), patch, inner=inner, **constants)
    rows = -(-len(stream) // len(values))
    blob = np.frombuffer(stream.ljust(rows * len(values), b"\0"), np.uint8).copy()
    manifest = copy.deepcopy(distilled.manifest)
    took = f"{len(stream):,} bytes, {8 * len(stream) / values.numel():.2f} bits a value"
    how = f", refined in {refine} steps" if refine else ""
    note = f"images encoded with {bits} bit{'s' * (bits > 1)} a value{how}, in {took} once compressed"
    manifest.update(decoder=decoder.describe(), notes=[*distilled.record.notes, note])
    leaf = torch.from_numpy(blob).view(len(values), rows)
    # of the rest, positions of the start in the real set weigh more than the images
    extra = {name: one for name, one in distilled.extra.items() if name == "classes"}
    return DistilledSet({"blob": leaf}, distilled.labels, distilled.space, manifest, extra)


def _refined(
    distilled: DistilledSet,
    values: Tensor,
    constants: dict[str, Any],
    groups: _Groups,
    scales: _Scales,
    steps: int,
) -> Tensor:
    """Values that are rounded to where the decoded images lose least, uint8."""
    record, labels = distilled.record.decoder.plain(), distilled.labels
    inner, name = decoder_of(record), LEAVES[record["decoder"]]
    mean, std = (torch.tensor(constants.get(key, [d])).view(1, -1, 1, 1) for key, d in (("mean", 0.0), ("std", 1.0)))
    low, step = _of_values(values, groups, scales)

    def decoded(images: Tensor, index: Tensor) -> Tensor:
        return inner.decode({name: (images - mean) / std}, labels[index]).x

    wanted = ((values - low) / step).clamp(0, scales.highest)
    read_back = lambda q, index: low[index] + step[index] * q  # noqa: E731
    classes = len(distilled.class_names)
    return rounded(wanted, scales.highest, read_back, (values, decoded), classes, steps).to(torch.uint8)


def _grouped(pixels: Tensor) -> _Groups:
    """Patches by k-means in their range, each group on the range of its members."""
    n, c, h, w = pixels.shape
    where = patches_of(h, w, PATCH)
    flat = pixels.view(n, c, h * w)
    count = int(where.max()) + 1
    index = where.expand(n, c, -1)
    low = torch.zeros(n, c, count).scatter_reduce(2, index, flat, "amin", include_self=False).amin(1)
    high = torch.zeros(n, c, count).scatter_reduce(2, index, flat, "amax", include_self=False).amax(1)
    group = _alike(torch.stack([low, high - low], dim=2).view(-1, 2))
    used = int(group.max()) + 1
    least = torch.full((used,), np.inf).scatter_reduce(0, group, low.flatten(), "amin")
    most = torch.full((used,), -np.inf).scatter_reduce(0, group, high.flatten(), "amax")
    return _Groups(where, group.view(n, count), least, most)


def _frequencies(values: Tensor) -> _Groups:
    """Frequencies of channels by k-means in the logarithm of their size, which is the same for all images."""
    n, _, c, m = values.shape
    size = values.abs().amax(dim=(0, 1)).flatten().clamp_min(1e-6)
    group = _alike(size.log()[:, None])
    most = torch.zeros(int(group.max()) + 1).scatter_reduce(0, group, size, "amax")
    return _Groups(patches_of(c, m, 1), group.expand(n, -1), -most, most)


def _alike(features: Tensor) -> Tensor:
    """Groups by k-means, (n,) from 0 on, none of them empty."""
    with undisturbed():  # importing it draws from Python's own generator
        from sklearn.cluster import KMeans

    groups = min(GROUPS, len(features.unique(dim=0)))
    found = KMeans(n_clusters=groups, n_init=1, random_state=0).fit_predict(features.double().numpy())
    return torch.from_numpy(np.unique(found, return_inverse=True)[1])


def _own_steps(groups: _Groups, bits: int) -> _Scales:
    """Every group has `bits` bits for its range."""
    highest = 2**bits - 1
    return _Scales(groups.least, ((groups.most - groups.least) / highest).clamp_min(1e-6), highest)


def _one_step(groups: _Groups, bits: int) -> _Scales:
    """One step for all groups, so that values take `bits` bits on average before they are compressed.

    It loses least of all in the squared error, as long as a group has values left (reverse water-filling). No group has
    more than 255 values, so those of wide range have a longer step where that is not enough.
    """
    size = groups.most.double()
    shortest = size / 127
    of_all = size[groups.of[0]]
    few, many = 0.0, float(2 * size.max())  # steps that take too many bits, and too few
    for _ in range(60):
        middle = (few + many) / 2
        taken = float((2 * of_all / (of_all / 127).clamp_min(middle) + 1).log2().mean())
        few, many = (few, middle) if taken <= bits else (middle, many)
    step = shortest.clamp_min(many).float()
    return _Scales(-127 * step, step, 254)


def _of_values(values: Tensor, groups: _Groups, scales: _Scales) -> tuple[Tensor, Tensor]:
    """Least value and step of every value's group, (n, 1, h, w)."""
    h, w = values.shape[2:]
    low, step = (per_pixel(row, groups.of, groups.where, (h, w)) for row in (scales.low, scales.step))
    return low, step


def _nearest(values: Tensor, groups: _Groups, scales: _Scales) -> Tensor:
    """Each value on the scale of its group, uint8."""
    low, step = _of_values(values, groups, scales)
    return ((values - low) / step).round().clamp(0, scales.highest).to(torch.uint8)
