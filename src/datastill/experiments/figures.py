"""Figures of a comparison's page: charts as SVG that takes the page's colors, and strips of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from datastill.core.errors import InputError
from datastill.report.pictures import png, sheet
from datastill.report.section import data_uri
from datastill.report.words import duration
from datastill.store.artifact import DistilledSet, load_distilled

if TYPE_CHECKING:
    from datastill.experiments.result import Comparison, Row

#: Numbers in all images of the page together, about its size in bytes; images and classes that are shown at most.
VALUES, EACH, CLASSES = 2_000_000, 10, 20
#: Of a chart, in its own units.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 264, 34, 14, 12, 40


@dataclass(frozen=True)
class Mark:
    """A point of a chart, placed, with the whisker of its interval."""

    x: float
    y: float
    low: float
    high: float
    label: str
    title: str


@dataclass(frozen=True)
class Series:
    """A method's points in one chart."""

    name: str
    color: int
    marks: list[Mark]

    @property
    def path(self) -> str:
        """For an SVG polyline."""
        return " ".join(f"{m.x:.1f},{m.y:.1f}" for m in self.marks)


@dataclass(frozen=True)
class Chart:
    """Axes and series, in the units of the chart."""

    title: str
    xlabel: str
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    series: list[Series]
    joined: bool  #: whether a line goes through the points of a series


def charts(rows: Sequence[Row], colors: dict[str, int], data: str) -> list[Chart]:
    """Accuracy over images per class, where there are several, and over the time to distill."""
    made = []
    sizes = sorted({row.ipc for row in rows})
    if len(sizes) > 1:
        ticks = [(math.log(ipc), f"{ipc:,}") for ipc in sizes]
        places = [(row, math.log(row.ipc)) for row in rows]
        made.append(_chart(f"{data}: accuracy over images per class", "images per class", places, ticks, colors))
    seconds = [max(row.distillation_seconds, 0.1) for row in rows]
    if len(rows) > 1 and max(seconds) > 1.5 * min(seconds):
        ticks = [(math.log(s), duration(s)) for s in _decades(min(seconds), max(seconds))]
        places = [(row, math.log(max(row.distillation_seconds, 0.1))) for row in rows]
        title = f"{data}: accuracy over the time to distill one set"
        made.append(_chart(title, "time to distill", places, ticks, colors, joined=False))
    return made


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Accuracies that hold all intervals, rounded outwards to whole steps."""
    ends = [(row.mean - _width(row), row.mean + _width(row)) for row in rows]
    low, high = max(0.0, min(e[0] for e in ends)), min(1.0, max(e[1] for e in ends))
    step = 0.1 if high - low > 0.12 else 0.05 if high - low > 0.06 else 0.02
    low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    return (low, high) if high > low else (low, low + step)


def _width(row: Row) -> float:
    return 0.0 if math.isnan(row.interval) else row.interval


def _chart(
    title: str,
    xlabel: str,
    places: Sequence[tuple[Row, float]],
    ticks: Sequence[tuple[float, str]],
    colors: dict[str, int],
    joined: bool = True,
) -> Chart:
    low, high = limits([row for row, _ in places])
    first = min([x for _, x in places] + [t for t, _ in ticks])
    last = max([x for _, x in places] + [t for t, _ in ticks])
    margin = 0.06 * (last - first)

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - first + margin) / max(last - first + 2 * margin, 1e-9)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low)

    series = []
    shown = [name for name in colors if any(row.method == name for row, _ in places)]
    for k, name in enumerate(shown):
        mine = [(row, x) for row, x in places if row.method == name]
        aside = 5.0 * (k - (len(shown) - 1) / 2) if joined else 0.0  # equal sizes side by side
        marks = [
            Mark(
                across(x) + aside,
                up(row.mean),
                up(max(low, row.mean - _width(row))),
                up(min(high, row.mean + _width(row))),
                "" if joined else str(row.ipc),
                f"{name}, ipc {row.ipc}: {100 * row.mean:.1f} %, {duration(row.distillation_seconds)}",
            )
            for row, x in mine
        ]
        series.append(Series(name, colors[name], sorted(marks, key=lambda mark: mark.x)))
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 6.5)
    levels = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    yticks = [(up(level), f"{100 * level:.0f}") for level in levels]
    return Chart(title, xlabel, [(across(t), text) for t, text in ticks], yticks, series, joined)


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten around and between two times, with threes where that is few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**k for k in range(first, last + 1)]


@dataclass(frozen=True)
class Strip:
    """Images in one picture, as the page shows them."""

    method: str
    color: int
    src: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class ImageGroup:
    """All methods' images on one data set at one size: one strip per method, or one per class and method."""

    title: str
    note: str
    classes: list[tuple[str, list[Strip]]]
    solo: bool


def image_groups(comparison: Comparison, colors: dict[str, int]) -> list[ImageGroup]:
    """The images of every method side by side, from the first seed; empty where the runs are gone."""
    groups = comparison.groups()
    return [
        group
        for (data, ipc), rows in groups.items()
        if (group := _group(comparison, data, ipc, rows, colors, VALUES // len(groups))) is not None
    ]


def _group(
    comparison: Comparison, data: str, ipc: int, rows: Sequence[Row], colors: dict[str, int], values: int
) -> ImageGroup | None:
    seed = min(min(row.seeds) for row in rows)
    sets = {row.method: found for row in rows if (found := _load(comparison, row, seed)) is not None}
    if not sets:
        return None
    first = next(iter(sets.values()))
    names = first.class_names
    shown = range(min(len(names), CLASSES))
    size = math.prod(min(side, 128) for side in first.images.shape[2:]) * first.images.shape[1]
    most = max(len(one.targets) for one in sets.values()) // len(names)
    each = max(1, min(EACH, most, values // (len(sets) * len(shown) * size)))
    title = f"{data}, {ipc:,} image{'s' * (ipc > 1)} per class"
    notes = [f"Sets from seed {seed}."]
    notes += [f"First {len(shown)} of {len(names)} classes."] if len(shown) < len(names) else []
    if each == 1:
        listed = ", ".join(names[c] for c in shown)
        notes = [f"Classes in reading order: {listed}.", *notes]
        notes += [f"First of {most} images of each class."] if most > 1 else []
        strips = [_strip(name, one, list(shown), 1, 64, colors) for name, one in sets.items()]
        return ImageGroup(title, " ".join(notes), [("", strips)], True)
    notes += [f"First {each} of {most} images of each class."] if each < most else []
    classes = [(names[c], [_strip(n, one, [c], each, 32, colors) for n, one in sets.items()]) for c in shown]
    return ImageGroup(title, " ".join(notes), classes, False)


def _load(comparison: Comparison, row: Row, seed: int) -> DistilledSet | None:
    folder = comparison.cell_folder(row, seed) if seed in row.cells else None
    try:
        return None if folder is None else load_distilled(folder)
    except InputError:
        return None


def _strip(method: str, one: DistilledSet, classes: list[int], each: int, side: int, colors: dict[str, int]) -> Strip:
    """The first `each` images of some classes, ten to a line, each shown about `side` wide."""
    y = one.hard_labels
    index = torch.cat([(y == c).nonzero().flatten()[:each] for c in classes])
    picture = sheet(one.pixels[index].float(), min(10, len(index)), background=(0, 0, 0, 0), gap=1, smallest=1)
    factor = max(side / (picture.width / min(10, len(index))), 0.1)
    factor = max(1, round(factor)) if factor >= 1 else factor
    what = one.class_names[classes[0]] if len(classes) == 1 else f"{len(classes)} classes"
    alt = f"{method}, {what}, {len(index)} image{'s' * (len(index) > 1)}"
    return Strip(
        method, colors[method], data_uri(png(picture)), alt, round(picture.width * factor),
        round(picture.height * factor),
    )  # fmt: skip
