"""What the report's page shows, as plain records: the template lays them out and computes nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.report.groups import Palette, Swatch, palette
from datastill.report.neighbors import nearest_real
from datastill.report.pictures import framed, frames, hard, png, thumbnail, timeline_of
from datastill.report.snapshots import Snapshots, Timeline
from datastill.report.words import percent, signed, with_interval
from datastill.store.artifact import DistilledSet

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Arm, Evaluation

#: Numbers in all the small images of the page together, about its size in bytes.
VALUES = 2_500_000
#: Classes of which images are shown at all, and at once.
CLASSES, OPEN_CLASSES = 100, 20


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Content as an address that stays inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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
    method = str(distilled.manifest["method"])
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
    if distilled.manifest["method"] != "random" and int(real.counts.min()) >= distilled.ipc:
        index = random_indices(real, distilled.ipc, int(distilled.manifest["seed"]))
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


@dataclass(frozen=True)
class Reel:
    """The timeline as one picture per moment."""

    pictures: list[str]
    captions: list[str]
    width: int  #: on the page
    classes: str
    total: int


def reel(snapshots: Timeline | Snapshots | None, names: Sequence[str]) -> Reel | None:
    """The pictures of the slider; None where there are fewer than two moments."""
    if snapshots is None or (isinstance(snapshots, Snapshots) and snapshots.timeline is None):
        return None
    timeline = timeline_of(snapshots)
    if len(timeline) < 2:
        return None
    drawn = frames(timeline, background=(0, 0, 0, 0), gap=1, smallest=1)
    side = min(timeline.pixels.shape[-2:])
    factor = max(1, min(math.ceil(96 / side), 720 // drawn[0].width))
    shown = [names[int(c)] for c in timeline.labels[framed(timeline)].unique()]
    captions = [f"step {step:,}" if step else "start" for step in timeline.steps]
    classes = ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")
    pictures = [data_uri(png(picture)) for picture in drawn]
    return Reel(pictures, captions, drawn[0].width * factor, classes, timeline.total)


@dataclass(frozen=True)
class ArmRow:
    """A line of the table of accuracies, in percent."""

    kind: str
    name: str
    accuracy: str
    networks: str
    sets: str
    seconds: float
    cells: list[list[str]]
    aligned: str
    conflicting: str


def arm_rows(evaluation: Evaluation) -> list[ArmRow]:
    """What was scored, best named first: the distilled sets, Random, the whole set."""
    arms = [("main", evaluation.distilled), ("other", evaluation.random), ("ceiling", evaluation.ceiling)]
    return [_arm_row(kind, arm) for kind, arm in arms if arm is not None]


def _arm_row(kind: str, arm: Arm) -> ArmRow:
    cells = [[percent(a) for a in row] for row in arm.accuracies.tolist()]
    accuracy = with_interval(arm.mean, arm.interval)
    split = [None, None] if arm.groups is None else [arm.groups.aligned, arm.groups.conflicting]
    spread = percent(arm.std_networks), percent(arm.std_sets)
    return ArmRow(kind, arm.name, accuracy, *spread, arm.seconds, cells, *map(percent, split))


def difference(evaluation: Evaluation) -> str | None:
    """The paired difference in points, with its interval; None without Random."""
    if evaluation.random is None:
        return None
    width = evaluation.difference_interval
    return signed(evaluation.difference) + ("" if math.isnan(width) else f" ± {percent(width)}")


@dataclass(frozen=True)
class Bar:
    """Accuracy of one class, distilled and Random, in percent; None where it has no test images."""

    name: str
    main: float | None
    other: float | None


def bars(evaluation: Evaluation, names: Sequence[str]) -> list[Bar]:
    """Accuracy of each class."""
    main = evaluation.distilled.per_class.tolist()
    other = evaluation.random.per_class.tolist() if evaluation.random is not None else [math.nan] * len(main)
    return [Bar(name, _points(a), _points(b)) for name, a, b in zip(names, main, other)]


def _points(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * fraction, 1)


def outcome(evaluation: Evaluation | None) -> str:
    """ "win", "loss" or "open": the color of the headline."""
    if evaluation is None or evaluation.random is None or math.isnan(evaluation.difference_interval):
        return "open"
    if evaluation.difference > evaluation.difference_interval:
        return "win"
    return "loss" if evaluation.difference < -evaluation.difference_interval else "open"
