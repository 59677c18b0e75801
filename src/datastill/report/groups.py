"""What the report shows of a biased set: accuracy by class and attribute, and the nearest color of each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datastill.data.biased.attribute import Attribute, attribute_of
from datastill.data.biased.colored import Nearest, directions, nearest_color
from datastill.report.pictures import hard
from datastill.report.words import percent

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Arm, Evaluation
    from datastill.store.artifact import DistilledSet

#: Classes and values whose accuracies are shown at all, and at once.
MOST, OPEN = 100, 20


@dataclass(frozen=True)
class Value:
    """A value of the attribute: the head of a column."""

    name: str
    color: str  #: as CSS, "" where it is none


@dataclass(frozen=True)
class Cell:
    """Accuracy on the test images of one class with one value."""

    text: str
    heat: int  #: percent, 0 where there are no images
    title: str
    aligned: bool


@dataclass(frozen=True)
class Matrix:
    """The accuracies of an arm: a row of cells for each class."""

    kind: str
    name: str
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class GroupTables:
    """The matrices of the distilled sets and of Random."""

    attribute: str
    values: list[Value]
    matrices: list[Matrix]
    classes: int

    @property
    def folded(self) -> bool:
        """Too large to be shown unasked."""
        return self.classes > OPEN


def groups(evaluation: Evaluation | None, names: Sequence[str]) -> GroupTables | None:
    """Accuracy by class and attribute; None where the set has no known bias."""
    if evaluation is None or evaluation.distilled.groups is None:
        return None
    attribute = attribute_of(evaluation.data, evaluation.distilled.groups.matrix.shape[1])
    arms = [("main", evaluation.distilled), ("other", evaluation.random)]
    matrices = [
        _matrix(kind, arm, names, attribute) for kind, arm in arms if arm is not None and arm.groups is not None
    ]
    return GroupTables(attribute.kind, _values(attribute)[:MOST], matrices, len(names))


def _matrix(kind: str, arm: Arm, names: Sequence[str], attribute: Attribute) -> Matrix:
    assert arm.groups is not None
    rows = arm.groups.matrix[:MOST, :MOST].tolist()
    return Matrix(kind, arm.name, [(names[c], _cells(c, row, names[c], attribute)) for c, row in enumerate(rows)])


def _cells(c: int, row: Sequence[float], name: str, attribute: Attribute) -> list[Cell]:
    return [
        Cell(
            percent(share, 0),
            0 if math.isnan(share) else round(100 * share),
            f"{name}, {attribute.names[b]}: {percent(share)} %",
            b == c,
        )
        for b, share in enumerate(row)
    ]


def _values(attribute: Attribute) -> list[Value]:
    shades = [css(one) for one in attribute.colors]
    shades += [""] * (len(attribute.names) - len(shades))
    return [Value(name, shade) for name, shade in zip(attribute.names, shades)]


def css(color: Sequence[float]) -> str:
    """RGB in [0, 1] as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, part))):02x}" for part in color)


@dataclass(frozen=True)
class Swatch:
    """The color that an image is nearest to."""

    color: str  #: as CSS
    conflicting: bool  #: it is another class's
    title: str


@dataclass(frozen=True)
class Palette:
    """The colors that the images of a set are nearest to, and how near."""

    swatches: list[Swatch]  #: one for each image of the set
    conflicting: int
    mean: float  #: angle to the nearest color, degrees
    farthest: float
    apart: float  #: smallest angle between two of the colors


def palette(distilled: DistilledSet, real: RealSet | None) -> Palette | None:
    """Nearest colors of a set whose attribute is color; None for others."""
    data: Mapping[str, Any] = distilled.record.data.plain() if real is None else real.describe()
    attribute = attribute_of(data)
    if not attribute.colors:
        return None
    found, y = nearest_color(distilled.pixels.float(), attribute.colors), hard(distilled.targets)
    between = (directions(attribute.colors) @ directions(attribute.colors).T).fill_diagonal_(-1.0)
    return Palette(
        _swatches(found, y.tolist(), attribute),
        int((found.index != y).sum()),
        float(found.distance.mean()),
        float(found.distance.max()),
        float(between.max().clamp(-1, 1).acos().rad2deg()),
    )


def _swatches(found: Nearest, y: Sequence[int], attribute: Attribute) -> list[Swatch]:
    return [
        Swatch(
            css(attribute.colors[b]),
            b != c,
            f"nearest to {attribute.names[b]}, {'the class’s own' if b == c else 'another class’s'} color, "
            f"{angle:.1f}° away",
        )
        for b, c, angle in zip(found.index.tolist(), y, found.distance.tolist(), strict=True)
    ]
