"""Which Space a real set gets: the field's conventional constants where it has them, else measured ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.space import Space, normalized
from datastill.data.cache import cache_folder, kept
from datastill.data.store import Store, as_pixels
from datastill.data.zca import LARGEST, fit_absolute_zca, fit_zca
from datastill.store.files import digest, read_tensors, write_tensors
from datastill.store.schema import SPACE

#: Per-channel mean and std of the training pixels, as published code has them. CIFAR-10's std is the
#: mean of per-image stds, not the true one (.2470 .2435 .2616); kept, so that published numbers compare.
CONVENTIONAL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashionmnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tinyimagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

SPACES = ("auto", "raw", "normalized", "zca", "zca-absolute")
#: What released trajectory-matching codes add to the eigenvalues of pixels in [0, 1], and how such a Space is recorded.
ABSOLUTE, _BY_EPSILON = 0.1, "absolute epsilon"
#: Taken until 1.0.
_OLD_NAMES = {"normalised": "normalized"}


def resolve_space(space: str | Space, name: str, store: Store) -> Space:
    """The Space for a training store.

    Args:
        space: a Space, or "auto" and "normalized" (per-channel mean and std), "raw", "zca" (`fit_zca`), "zca-absolute"
            (`fit_absolute_zca` with 0.1, as the published settings of MTT and TESLA mean it).
        name: of the set; its last path component decides on conventional constants.
        store: training images; measured where no constants are known.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(space, Space):
        return space
    space = _OLD_NAMES.get(space, space)
    if space not in SPACES:
        raise InputError(f"Unknown space {space!r}. {nearest(str(space), SPACES)}")
    if space == "raw":
        return Space()
    if space == "zca-absolute":
        return absolute_zca(store)
    base = conventional(name, store.shape[0]) or measure(store)
    return cached_zca(store, base) if space == "zca" else base


def cached_zca(store: Store, base: Space) -> Space:
    """`fit_zca` of the stored images, or the same from the cache folder: CIFAR-10 takes half a minute.

    The cache also keeps a Space's id from depending on the number of threads that fitted it.
    """
    pixels = (as_pixels(chunk) for chunk in store.chunks())
    key = digest([store.content(), base.id, list(store.shape)])
    return replace(base, kind="zca", tensors=_cached(key, lambda: fit_zca(pixels, base_space=base).tensors))


def absolute_zca(store: Store, eps: float = ABSOLUTE) -> Space:
    """`fit_absolute_zca` of the stored images, from the cache folder where it was fitted before.

    Raises:
        InputError: eps is not above 0, or the images are too large to whiten.
    """
    if not eps > 0 or not math.isfinite(eps):
        raise InputError(f"The epsilon of ZCA is {eps}; it must be above 0 (released codes take 0.1).")
    size, shape = math.prod(store.shape), store.shape
    if size > LARGEST:
        raise InputError(f"ZCA of {size} numbers per image is too large; at most {LARGEST} are whitened.")
    source = f"{_BY_EPSILON} {eps:g}"
    pixels = (as_pixels(chunk) for chunk in store.chunks())
    key = digest([source, store.content(), list(shape)])
    return Space("zca", source=source, tensors=_cached(key, lambda: fit_absolute_zca(pixels, shape, eps)))


def _cached(key: str, fit: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    entry = cache_folder() / "zca" / f"{key}.safetensors"
    with contextlib.suppress(InputError):
        tensors, _ = read_tensors(entry, {"*": SPACE})
        if set(tensors) == {"centre", "whiten", "unwhiten"}:
            return tensors
    fitted = fit()
    with kept("The whitening is"):
        write_tensors(entry, dict(fitted))
    return fitted


def name_of(space: Space) -> str:
    """What `resolve_space` calls such a Space."""
    return "zca-absolute" if space.kind == "zca" and space.source == f"{_BY_EPSILON} {ABSOLUTE:g}" else space.kind


def conventional(name: str, channels: int) -> Space | None:
    """The conventional Space of a well-known set, if `name` is one and the channels agree."""
    key = name.rstrip("/").rsplit("/", 1)[-1].lower().replace("-", "").replace("_", "")
    known = CONVENTIONAL.get(key)
    if known is None or len(known[0]) != channels:
        return None
    return normalized(*known, source="conventional")


def measure(store: Store) -> Space:
    """Per-channel mean and std over all pixels, rounded to 6 digits; a constant channel gets std 1."""
    total = np.zeros(store.shape[0])
    squares = np.zeros(store.shape[0])
    for chunk in store.chunks():
        if chunk.dtype == torch.uint8:  # exact: integers below 2^53 in all
            by_channel = chunk.transpose(0, 1).flatten(1)
            histogram = np.stack([np.bincount(row, minlength=256) for row in by_channel.numpy()])
            total += histogram @ np.arange(256.0)
            squares += histogram @ np.arange(256.0) ** 2
        else:
            total += chunk.double().sum((0, 2, 3)).numpy()
            squares += chunk.double().square().sum((0, 2, 3)).numpy()
        unit = 255.0 if chunk.dtype == torch.uint8 else 1.0
    pixels = len(store) * store.shape[1] * store.shape[2]
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0)) / unit
    return normalized(
        tuple(round(float(v), 6) for v in mean / unit),
        tuple(round(float(v), 6) or 1.0 for v in std),
        source="measured",
    )
