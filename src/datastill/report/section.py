"""Sections of the report and the card: one file each in the folder `sections`, which nothing else names.

A section reads what there is of a run and says what is to be shown, in parts that the HTML report, the card and the
terminal all know how to lay out. One that needs more has a template of its own in the report, or its own Markdown.
"""

from __future__ import annotations

import base64
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from datastill.core.errors import InputError
from datastill.report.snapshots import Snapshots, Timeline
from datastill.store.artifact import DistilledSet
from datastill.store.manifest import Manifest

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Evaluation


#: Where a folder lies, to its reader.
HERE = "path/of/this/folder"


@dataclass(frozen=True)
class Reading:
    """What there is of a run.

    Attributes:
        sets: those that were evaluated together; the first is shown.
        evaluation: their scores.
        real: the real set.
        snapshots, losses, accuracy, command: as `write_report` takes them.
        layout: what the folder of a card holds: "artifact", or the format of an export.
        notes: sentences to add to the card.
        place: what a reader of the card loads it by.
        license: of the real images, in the words of who publishes the set; "" is unknown.
    """

    sets: Sequence[DistilledSet]
    evaluation: Evaluation | None = None
    real: RealSet | None = None
    snapshots: Timeline | Snapshots | None = None
    losses: Tensor | Sequence[float] | None = None
    accuracy: Sequence[tuple[int, float]] = ()
    command: str | None = None
    layout: str = "artifact"
    notes: Sequence[str] = ()
    place: str = HERE
    license: str = ""

    @property
    def first(self) -> DistilledSet:
        """The set whose images are shown."""
        return self.sets[0]

    @property
    def record(self) -> Manifest:
        """The manifest of the set that is shown."""
        return self.first.record


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    kind: ClassVar[str] = "paragraph"

    text: str


@dataclass(frozen=True)
class Items:
    """A list, a sentence each."""

    kind: ClassVar[str] = "items"

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells below heads; the first column is text, the others are numbers."""

    kind: ClassVar[str] = "table"

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    kind: ClassVar[str] = "code"

    text: str
    language: str = ""


Part = Paragraph | Items | Table | Code


@dataclass(frozen=True)
class Shown:
    """What a section shows wherever it is shown."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """What a section shows in the report, by a template of its own, which names `values`."""

    title: str
    template: str
    values: Mapping[str, Any]


class Section:
    """One section. A file in `sections` exports its instance as SECTION; `register_section` takes others.

    Attributes:
        name: its anchor in the report, unique.
        order: where it stands among the others, from the top.
    """

    name: ClassVar[str]
    order: ClassVar[int]

    def shown(self, reading: Reading) -> Shown | None:
        """What it shows; None where there is nothing to show."""
        return None

    def page(self, reading: Reading) -> Shown | Page | None:
        """What it shows in the HTML report."""
        return self.shown(reading)

    def card(self, reading: Reading) -> Shown | str | None:
        """What it shows on the card; a text is Markdown, heading and all."""
        return self.shown(reading)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Content as an address that stays inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_REGISTERED: dict[str, Section] = {}


def register_section(section: Section) -> Section:
    """Make a section known by its name; returned as it is.

    Raises:
        InputError: another one has that name.
    """
    if type(_REGISTERED.get(section.name, section)) is not type(section):
        raise InputError(f"There is another section {section.name!r} of the report; give yours another name.")
    _REGISTERED[section.name] = section
    return section


def sections() -> list[Section]:
    """All sections, from the top: those in the folder, and those that were registered."""
    package = importlib.import_module("datastill.report.sections")  # by name: the files there import this one
    for module in pkgutil.iter_modules(package.__path__):
        register_section(importlib.import_module(f"{package.__name__}.{module.name}").SECTION)
    return sorted(_REGISTERED.values(), key=lambda one: (one.order, one.name))
