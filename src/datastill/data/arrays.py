"""Real sets out of arrays and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from datastill.core.errors import InputError
from datastill.data.classes import read_labels
from datastill.data.decode import refit
from datastill.data.raw import LabelId, Raw, Request, Split
from datastill.data.store import MemoryStore


def from_arrays(source: Any, request: Request) -> Raw:
    """`(x, y)`, `((x, y), (x_test, y_test))` or `{"train": (x, y), "test": (x, y)}`."""
    train, test = pair_of_splits(source)
    if test is None and not is_pair(train):
        raise InputError("Arrays come as (x, y), ((x, y), (x_test, y_test)) or {'train': (x, y), 'test': (x, y)}.")
    return Raw(
        "arrays",
        "",
        _read_pair(train, request, "train"),
        None if test is None else _read_pair(test, request, "test"),
    )


def pair_of_splits(source: Any) -> tuple[Any, Any]:
    """(train, test or None) out of a dict, a tuple of two splits, or one split."""
    if isinstance(source, Mapping):
        unknown = [k for k in source if k not in ("train", "test")]
        if "train" not in source or unknown:
            raise InputError(f"A dict of splits needs the key 'train' and may have 'test'; this has {list(source)}.")
        return source["train"], source.get("test")
    if isinstance(source, tuple | list) and len(source) == 2 and not is_pair(source):
        return source[0], source[1]
    return source, None


def is_pair(source: Any) -> bool:
    """Whether this is one `(images, labels)`: lists are images, tuples are pairs."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    return isinstance(source[0], list) or hasattr(source[0], "shape") or hasattr(source[0], "__array__")


def _read_pair(pair: Any, request: Request, where: str) -> Split:
    if not is_pair(pair):
        raise InputError(f"The {where} split must be (images, labels).")
    return array_split(pair[0], read_labels(pair[1]), request, where)


def array_split(images: Any, labels: Sequence[LabelId], request: Request, where: str) -> Split:
    """A split in memory.

    Args:
        images: (n, h, w), (n, c, h, w) or (n, h, w, c); integers of 0..255 or floats in [0, 1]. In four
            dimensions the second is the channels if it is 1 or 3, else the last if that is 1 or 3, else
            the smaller of the two.
        labels: n labels.
        request: gives mode and size.
        where: names the split in errors.
    """
    array = _as_numpy(images)
    if array.ndim and not len(array) and not len(labels):
        raise InputError(f"The {where} split has no images; give at least one per class.")
    array = channels_first(array, where)
    if len(array) != len(labels):
        raise InputError(
            f"The {where} split has {len(array)} images and {len(labels)} labels; give one label per image."
        )
    array = eight_bits_or_unit(array, f"The {where} images")
    if request.mode or request.size:
        array = np.stack([refit(image, request) for image in array])
    return Split(MemoryStore(torch.from_numpy(np.array(array, order="C"))), labels)


def _as_numpy(images: Any) -> np.ndarray:
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
        return np.asarray(images)
    try:
        return np.asarray(images)
    except ValueError as error:
        raise InputError("The images differ in shape; give one array of equally large images.") from error


def channels_first(array: np.ndarray, where: str) -> np.ndarray:
    """(n, c, h, w) out of (n, h, w), (n, c, h, w) or (n, h, w, c), by the rule of `array_split`."""
    if array.ndim == 3 and 0 not in array.shape[1:]:
        return array[:, None]
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise InputError(f"The {where} images have shape {array.shape}; give (n, h, w), (n, c, h, w) or (n, h, w, c).")
    first, last = array.shape[1], array.shape[3]
    if first in (1, 3) or (last not in (1, 3) and first <= last):
        return array
    return np.transpose(array, (0, 3, 1, 2))


def eight_bits_or_unit(array: np.ndarray, what: str) -> np.ndarray:
    """uint8 of 0..255, or float32 in [0, 1]; else an error that starts with `what`."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{what} are of type {array.dtype}; give integers of 0..255 or floats in [0, 1].")
    if not array.size:
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).reshape(len(array), -1).any(1).sum())
        raise InputError(f"{what} hold NaN or infinity (in {count} of {len(array)}); mend or remove those.")
    low, high = array.min().item(), array.max().item()
    if array.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise InputError(f"{what} are integers from {low} to {high}; scale them to 0..255.")
        return array.astype(np.uint8)
    if low < 0 or high > 1:
        raise InputError(
            f"{what} range from {low:.4g} to {high:.4g}; pixels must lie in [0, 1], so {_remedy(low, high)}."
        )
    return array.astype(np.float32)


def _remedy(low: float, high: float) -> str:
    if low >= 0 and 1 < high <= 255:
        return "divide by 255 or give them as uint8"
    return "undo any normalization (datastill applies its own, see space=)"
