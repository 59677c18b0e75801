"""Real sets out of any torch Dataset: by position, or by walking it once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng, isolated
from datastill.data.arrays import channels_first, eight_bits_or_unit, pair_of_splits
from datastill.data.cache import IN_MEMORY_BYTES
from datastill.data.classes import read_labels
from datastill.data.decode import CorruptImage, decode_image, refit
from datastill.data.raw import Raw, Request, Split
from datastill.data.store import DecodeStore, MemoryStore, Store

MOST_ITEMS = 1_000_000  #: of a dataset without positions


def is_dataset(value: Any) -> bool:
    """Whether this is map-style: it has a length and items."""
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not hasattr(value, "shape")


def gives_items(value: Any) -> bool:
    """Whether this is a dataset, map-style or one that is walked, and no plain container or array."""
    plain = isinstance(value, tuple | list | dict | set | str | bytes) or hasattr(value, "shape")
    return not plain and (is_dataset(value) or hasattr(value, "__iter__"))


def from_items(source: Any, request: Request) -> Raw:
    """A dataset of (image, label) items, or a tuple or dict of two for train and test.

    One without positions is walked once and kept in memory, up to a gigabyte or a million images. Images may be PIL
    images, arrays or tensors: uint8, or floats in [0, 1]. Whatever a transform draws from torch's global generator is
    drawn once per image, from a seed of its own.
    """
    train, test = pair_of_splits(source)
    names = getattr(train, "classes", None)
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return Raw(
        type(train).__name__,
        "",
        _read_split(train, request, "train"),
        None if test is None else _read_split(test, request, "test"),
        names=tuple(names) if named else None,  # type: ignore[arg-type]
    )


def _by_position(dataset: Any, request: Request, where: str) -> Any:
    """A dataset that has a length and items."""
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise InputError(f"The {where} split is a DataLoader; give the dataset that it loads from (loader.dataset).")
    if gives_items(dataset) and not is_dataset(dataset):
        dataset = _walked(dataset, request, where)
    if not is_dataset(dataset):
        raise InputError(
            f"The {where} split is a {type(dataset).__name__}; give a dataset with __len__ and __getitem__, "
            "or (images, labels)."
        )
    if not len(dataset):
        raise InputError(f"The {where} dataset has no items; give at least one per class.")
    return dataset


def _read_split(dataset: Any, request: Request, where: str) -> Split:
    dataset = _by_position(dataset, request, where)
    count = len(dataset)
    rows: list[int] = []
    labels: list[Any] = []
    images: list[np.ndarray] = []
    skipped: list[str] = []
    shape: tuple[int, ...] = ()
    for i in range(count):
        try:
            image, label = _item(dataset, i, request, where)
        except CorruptImage:
            if not request.skip_bad:
                raise
            skipped.append(f"item {i}")
            continue
        shape = shape or image.shape
        if image.shape != shape:
            raise InputError(
                f"Images mix shapes: item {rows[0]} of the {where} dataset is {shape} and item {i} is "
                f"{image.shape} (channels, height, width); make them alike with "
                "size=32 and mode='RGB'."
            )
        rows.append(i)
        labels.append(label)
        if request.storage != "decode":
            images.append(image)
    if not rows:
        raise InputError(f"None of the {count} items of the {where} dataset can be read; check its files.")
    store: Store
    if request.storage == "decode":
        size = (shape[0], shape[1], shape[2])
        store = DecodeStore(len(rows), size, lambda i: _item(dataset, rows[i], request, where)[0])
    else:
        store = MemoryStore(torch.from_numpy(_alike(images)))
    store.called = lambda i: f"item {rows[i]}"
    return Split(store, read_labels(labels), tuple(skipped))


class _Kept:
    """Items of a dataset without positions."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def _walked(dataset: Any, request: Request, where: str) -> _Kept:
    """The items, where they are not too many."""
    items: list[Any] = []
    size = 0
    try:
        with isolated(Rng(request.seed).derive("items")):
            for item in dataset:
                size += _bytes_of(item)
                if size > IN_MEMORY_BYTES or len(items) == MOST_ITEMS:
                    break
                items.append(item)
            else:
                return _Kept(items)
    except Exception as error:  # a user's code may raise anything
        raise InputError(
            f"Item {len(items)} of the {where} dataset cannot be read ({type(error).__name__}: {error}), and a dataset "
            "without __getitem__ cannot be read past it; mend it."
        ) from error
    raise InputError(
        f"The {where} dataset goes on after {len(items):,} images, and one without __getitem__ is kept in memory: at "
        f"most {IN_MEMORY_BYTES >> 30} GiB or {MOST_ITEMS:,} images; give a part of it, or write it into a folder of "
        "images or parquet files."
    )


def _bytes_of(item: Any) -> int:
    image = item[0] if isinstance(item, tuple | list) and item else item
    if hasattr(image, "nbytes"):
        return int(image.nbytes)
    width, height = getattr(image, "size", None) or (1, 1)
    return int(width) * int(height) * len(getattr(image, "mode", "L"))


def _item(dataset: Any, i: int, request: Request, where: str) -> tuple[np.ndarray, Any]:
    """Image and label."""
    try:
        with isolated(Rng(request.seed).derive("item", i)):
            found = dataset[i]
    except Exception as error:  # a user's code may raise anything
        raise CorruptImage(
            f"Item {i} of the {where} dataset cannot be read ({type(error).__name__}: {error}); mend it, "
            "or skip such items with skip_bad (--skip-bad)."
        ) from error
    pair = isinstance(found, tuple | list) and len(found) >= 2
    if found is None or (pair and (found[0] is None or found[1] is None)):
        missing = "None" if found is None else "without an image" if found[0] is None else "without a label"
        raise CorruptImage(
            f"Item {i} of the {where} dataset is {missing}; mend it, or skip such items with skip_bad (--skip-bad)."
        )
    if not pair:
        raise InputError(
            f"Item {i} of the {where} dataset is not (image, label) but a {type(found).__name__}; "
            "wrap the dataset so that its items are (image, label)."
        )
    label = found[1].item() if isinstance(found[1], Tensor) and found[1].numel() == 1 else found[1]
    return _as_array(found[0], f"Image {i} of the {where} dataset", request), label


def _alike(images: list[np.ndarray]) -> np.ndarray:
    """One array; float32 as soon as one image is float, 0..255 scaled to [0, 1]."""
    if len({image.dtype for image in images}) == 1:
        return np.stack(images)
    return np.stack([i if i.dtype == np.float32 else i.astype(np.float32) / 255 for i in images])


def _as_array(image: Any, name: str, request: Request) -> np.ndarray:
    from PIL import Image

    if isinstance(image, Image.Image):
        return decode_image(image, name, request)
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise InputError(f"{name} is a {type(image).__name__}; give PIL images, arrays or tensors of (c, h, w).")
    array = eight_bits_or_unit(channels_first(image[None], name), f"The values of {name[0].lower()}{name[1:]}")
    return refit(np.ascontiguousarray(array[0]), request)
