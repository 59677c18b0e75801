"""The images class by class, with real ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.report import words
from datastill.report.groups import Palette, Swatch, palette
from datastill.report.neighbors import nearest_real
from datastill.report.pictures import hard, png, preview, thumbnail
from datastill.report.section import Page, Reading, Section, data_uri
from datastill.store.artifact import DistilledSet

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Numbers in all the small images of the page together, about its size in bytes.
VALUES = 2_500_000
#: Classes of which images are shown at all, and at once.
CLASSES, OPEN_CLASSES = 100, 20
#: Further sets whose pictures are shown.
SETS = 9


class Images(Section):
    """The first set class by class, the others as they are."""

    name = "images"
    order = 30

    def page(self, reading: Reading) -> Page | None:
        """Small images."""
        if reading.first.label_kind == "pairs":
            return None
        record, sets = reading.record, reading.sets
        values = {
            "record": record,
            "images": len(reading.first.targets),
            "kind": words.kind_of_images(record),
            "sets": [one.record.seed for one in sets],
            "gallery": gallery(reading.first, reading.real),
            "more_sets": [(one.record.seed, data_uri(png(preview(one)))) for one in sets[1 : SETS + 1]],
        }
        return Page("Class by class", "sections/images.html.j2", values)


@dataclass(frozen=True)
class Thumb:
    """One small image."""

    src: str
    alt: str
    title: str = ""
    swatch: Swatch | None = None


@dataclass(frozen=True)
class Line:
    """Images of one kind in a class."""

    name: str
    images: list[Thumb]


@dataclass(frozen=True)
class ClassCard:
    """A class: its synthetic images, and what stands beside them column by column."""

    name: str
    lines: list[Line]
    more: int  #: synthetic images of the class that are not shown


@dataclass(frozen=True)
class Gallery:
    """The cards of all classes that are shown."""

    cards: list[ClassCard]
    classes: int
    columns: int  #: images in the longest line
    width: int  #: of an image on the page
    height: int
    kinds: list[str] = field(default_factory=list)
    palette: Palette | None = None  #: of a set whose attribute is color

    @property
    def solo(self) -> bool:
        """One image per class."""
        return self.columns == 1

    @property
    def opened(self) -> list[ClassCard]:
        """Shown at once."""
        return self.cards[:OPEN_CLASSES]

    @property
    def folded(self) -> list[ClassCard]:
        """Shown when asked for."""
        return self.cards[OPEN_CLASSES:]


def gallery(distilled: DistilledSet, real: RealSet | None) -> Gallery:
    """The synthetic images class by class, with the random selection and the nearest real images beside them.

    Raises:
        InputError: the real set has other classes or image shapes.
    """
    pixels, y = distilled.pixels.float(), hard(distilled.targets)
    if real is not None:
        _refuse_other(distilled, real, tuple(pixels.shape[1:]))
    present = [int(c) for c in y.unique()][:CLASSES]
    c, h, w = pixels.shape[1:]
    shrink = max(1.0, max(h, w) / 96)
    each = max(1, min(10, int(VALUES / (3 * len(present) * c * h * w / shrink**2))))
    rows = {k: (y == k).nonzero().flatten() for k in present}
    kept = torch.cat([index[:each] for index in rows.values()])
    method = distilled.record.method
    shades = palette(distilled, real)
    swatches = [shades.swatches[i] for i in kept.tolist()] if shades is not None else None
    sources = [(method, _thumbs(pixels[kept], y[kept], method, distilled.class_names, swatches=swatches))]
    if real is not None:
        sources += _beside(distilled, real, pixels[kept], y[kept], each)
    cards = [
        ClassCard(
            distilled.class_names[k],
            [Line(name, thumbs[k]) for name, thumbs in sources if thumbs.get(k)],
            max(0, len(rows[k]) - each),
        )
        for k in present
    ]
    columns = max(len(line.images) for card in cards for line in card.lines)
    factor = max(1, math.ceil((64 if columns == 1 else 44) / min(h, w))) if shrink == 1.0 else 1.0 / shrink
    size = round(w * factor), round(h * factor)
    return Gallery(cards, len(distilled.class_names), columns, *size, [name for name, _ in sources], shades)


Thumbs = dict[int, list[Thumb]]


def _thumbs(
    pixels: Tensor,
    y: Tensor,
    kind: str,
    names: Sequence[str],
    titles: Sequence[str] | None = None,
    swatches: Sequence[Swatch] | None = None,
) -> Thumbs:
    found: Thumbs = {}
    for i, c in enumerate(y.tolist()):
        mine = found.setdefault(c, [])
        alt = f"{kind}, class {names[c]}, image {len(mine) + 1}"
        title, swatch = titles[i] if titles else "", swatches[i] if swatches else None
        mine.append(Thumb(data_uri(thumbnail(pixels[i])), alt, title, swatch))
    return found


def _beside(distilled: DistilledSet, real: RealSet, pixels: Tensor, y: Tensor, each: int) -> list[tuple[str, Thumbs]]:
    from datastill.sampling.inits import random_indices

    names, beside = distilled.class_names, []
    if distilled.record.method != "random" and int(real.counts.min()) >= distilled.ipc:
        index = random_indices(real, distilled.ipc, distilled.record.seed)
        of = real.labels[index]
        index = torch.cat([index[of == c][:each] for c in y.unique()])
        beside.append(("random", _thumbs(real.pixels(index), real.labels[index], "random selection", names)))
    near = nearest_real(pixels, y, real)
    there = near.index >= 0
    titles = [f"root mean squared difference {d:.3f}" for d in near.distance[there].tolist()]
    index = near.index[there]
    beside.append(("nearest real", _thumbs(real.pixels(index), y[there], "nearest real", names, titles)))
    return beside


def _refuse_other(distilled: DistilledSet, real: RealSet, shape: tuple[int, ...]) -> None:
    if tuple(real.class_names) != tuple(distilled.class_names) or tuple(real.shape) != shape:
        raise InputError(
            f"{real.name} is not what the set was made from: its classes or image shape {tuple(real.shape)} differ "
            f"(the set has {len(distilled.class_names)} classes of {shape}); give the data it was made from."
        )


SECTION = Images()
