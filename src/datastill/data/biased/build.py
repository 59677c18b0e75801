"""From an ordinary set to its biased twin: choose bias values, paint each image once, keep it in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.biased.assign import assign_bias, assign_unbiased
from datastill.data.biased.attribute import Attribute
from datastill.data.cache import Listing, materialise
from datastill.data.classes import Classes
from datastill.data.decode import refit
from datastill.data.raw import Raw, Request, Split
from datastill.data.store import Store
from datastill.data.stratify import hold_out
from datastill.store.files import digest

VERSION = 1  #: of the painting: raise it whenever the same options would give other pixels
HELD_OUT = 0.2  #: of a base without a test split, which must be unbiased and so cannot be held out later


class Painter(Protocol):
    """Gives images of one split their bias attribute."""

    @property
    def mode(self) -> str:
        """Which images `paint` takes: "L" or "RGB"."""
        ...

    @property
    def values(self) -> int | None:
        """How many bias values it knows; None for as many as there are classes."""
        ...

    def attribute(self, count: int) -> Attribute:
        """What its first `count` bias values are called."""
        ...

    def identity(self) -> Any:
        """JSON-able: all that the pixels depend on beside image, bias value and generator."""
        ...

    def paint(self, image: np.ndarray, bias: int, rng: np.random.Generator) -> np.ndarray:
        """A (c, h, w) uint8 image with the attribute `bias`, as (3, h, w) uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every biased set can be asked for.

    Args:
        base: source of the images, as `load_real` takes it.
        ratio: share of bias-conflicting training images in each class, in [0, 1].
        seed: of the subset, of the shuffle, and of whatever is painted.
        shuffle: shuffle within a class before bias values are dealt out; else the first images get value 0.
        train: training images, each class keeping its share; 0 for all.
        test: test images, likewise.
    """

    base: Any
    ratio: float = 0.05
    seed: int = 0
    shuffle: bool = True
    train: int = 0
    test: int = 0


@dataclass(frozen=True)
class Part:
    """One split before painting: images and labels of the base, and which of them are used."""

    where: str  #: "train" or "test"
    base: Split
    positions: Tensor  #: class positions of all images of the base, (n,)
    rows: Tensor  #: the images used, (m,) ascending
    bias: Tensor  #: their bias values, (m,)


def build(name: str, request: Request, options: Options, make: Callable[[str], Painter]) -> Raw:
    """Read the base, deal out bias values and paint.

    Args:
        name: of the biased set; it also separates its draws from those of other sets.
        request: how to read the base.
        options: of the set.
        make: "train" or "test" to the painter of that split.

    Returns:
        A source's result whose splits carry bias values; the test split is unbiased.

    Raises:
        InputError: an option out of range, or a base with more classes than there are bias values.
    """
    from datastill.data.load import read_source

    if request.mode == "L":
        raise InputError(f"{name} is made of color images; leave mode out, or give 'RGB'.")
    painters = {where: make(where) for where in ("train", "test")}
    if not 0 <= options.ratio <= 1:
        raise InputError(f"{name}:ratio={options.ratio:g} must lie in [0, 1]; 0.05 is five per cent.")
    raw = read_source(options.base, request)
    classes = Classes(raw.train.labels, raw.names)
    count = len(classes.ids)
    known = painters["train"].values
    if known is not None and count > known:
        raise InputError(
            f"{name} has {known} bias values here and its base has {count} classes; each class needs one of its own."
        )
    seed = options.seed if options.shuffle else None
    parts, held = _parts(name, raw, classes, options)
    biases = (
        assign_bias(parts[0].positions[parts[0].rows], count, options.ratio, seed),
        assign_unbiased(parts[1].positions[parts[1].rows], count, seed),
    )
    parts = [replace(part, bias=bias) for part, bias in zip(parts, biases)]
    train, test = (_painted(name, part, painters[part.where], options.seed, request) for part in parts)
    notes = (*raw.notes, *held, _note(parts[0], options))
    return Raw(name, "", train, test, raw.names, notes, painters["train"].attribute(count))


def _parts(name: str, raw: Raw, classes: Classes, options: Options) -> tuple[list[Part], tuple[str, ...]]:
    """Both splits with the rows that are used, bias values still to come; and a note where one was held out."""
    none = torch.zeros(0, dtype=torch.int64)
    positions = classes.positions(raw.train.labels, "train")
    count = len(classes.ids)
    if raw.test is not None:
        there = classes.positions(raw.test.labels, "test")
        parts = [
            Part("train", raw.train, positions, torch.arange(len(positions)), none),
            Part("test", raw.test, there, torch.arange(len(there)), none),
        ]
        notes: tuple[str, ...] = ()
    else:
        kept, held = hold_out(positions, count, round(HELD_OUT * len(positions)), options.seed, "biased holdout")
        again = replace(raw.train, skipped=())  # told once
        parts = [Part("train", raw.train, positions, kept, none), Part("test", again, positions, held, none)]
        notes = (f"test split: a seeded stratified hold-out of {100 * HELD_OUT:g} %, {len(held)} images",)
    wanted = {"train": options.train, "test": options.test}
    return [_fewer(name, part, wanted[part.where], count, options.seed) for part in parts], notes


def _fewer(name: str, part: Part, wanted: int, count: int, seed: int) -> Part:
    """`wanted` of a split's images, every class keeping its share; 0 for all."""
    if wanted == 0 or wanted == len(part.rows):
        return part
    if not count <= wanted < len(part.rows):
        raise InputError(
            f"{name}:{part.where}={wanted} must lie between {count} and {len(part.rows)}, "
            "the classes and the images of the base; leave it out for all images."
        )
    away = len(part.rows) - wanted
    kept, _ = hold_out(part.positions[part.rows], count, away, seed, f"biased {part.where}")
    return replace(part, rows=part.rows[kept])


def _painted(name: str, part: Part, painter: Painter, seed: int, request: Request) -> Split:
    store: Store = part.base.store
    rows, bias = part.rows.tolist(), part.bias.tolist()
    labels = [part.base.labels[row] for row in rows]
    family = Rng(seed).child(name, part.where)
    mode = replace(request, mode=painter.mode, size=None)

    def decode(i: int) -> np.ndarray:
        image = _bytes(store.stored(torch.tensor([rows[i]]))[0].numpy())
        # the draw belongs to the image's place in the base, so that a subset draws what the full set does
        return painter.paint(refit(image, mode), bias[i], family.numpy("image", rows[i]))

    def listing() -> Listing:
        return Listing(labels, decode, lambda i: f"{name} {part.where} image {i}")

    made = [part.rows, part.bias, digest([str(label) for label in labels]), family.seed]
    key = ["biased", VERSION, name, store.content(), digest(made), painter.identity()]
    split, _ = materialise(key, listing, request, f"{name}-{part.where}")
    return replace(split, skipped=part.base.skipped, bias=part.bias)


def _bytes(image: np.ndarray) -> np.ndarray:
    """uint8 of 0..255, whichever way the base keeps its pixels."""
    return image if image.dtype == np.uint8 else np.rint(image * 255).clip(0, 255).astype(np.uint8)


def _note(part: Part, options: Options) -> str:
    conflicting = int((part.positions[part.rows] != part.bias).sum())
    return (
        f"{conflicting} of {len(part.rows)} training images conflict with the bias "
        f"(ratio {options.ratio:g}, seed {options.seed}); the test split is unbiased"
    )
