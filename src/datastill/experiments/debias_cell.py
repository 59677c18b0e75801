"""A cell of a de-biasing study: one set, and one way to train on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.errors import InputError
from datastill.data.biased.colored import Nearest, nearest_color
from datastill.experiments.records import StudyCell
from datastill.store.files import read_sealed

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.store.artifact import DistilledSet

#: What is said of a cell's weights, where their way says it.
KEPT = (
    "conflict_mass",
    "effective_samples",
    "effective_share",
    "warnings",
    "kernel",
    "rules",
    "extractor",
    "biased_network",
)


@dataclass(frozen=True)
class Cell:
    """One set, and one way to train on it."""

    method: str
    debias: str
    init: str
    surrogates: str
    training: str
    ipc: int
    seed: int
    hyper: str  #: values of the method, as JSON
    recipe: str
    network: str | None
    protocol: str
    networks: int

    @property
    def values(self) -> dict[str, Any]:
        """Values of the method that were given."""
        found: dict[str, Any] = json.loads(self.hyper)
        return found

    @property
    def own_surrogates(self) -> str:
        """What `distill` is to take; the experts of methods that follow some are among their values."""
        return "method" if "expert_policy" in self.values else self.surrogates

    @property
    def record(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {**asdict(self), "hyper": self.values}

    @property
    def making(self) -> dict[str, Any]:
        """What the set depends on."""
        return {n: v for n, v in self.record.items() if n not in ("training", "protocol", "networks")}

    @property
    def set_name(self) -> str:
        """Readable, and the same for every way to train on the set."""
        parts = (self.method, self.debias, self.init, *(p for p in (self.surrogates,) if p != "method"))
        return "-".join([*(_plain(p) for p in parts), f"ipc{self.ipc}", f"seed{self.seed}"])

    @property
    def name(self) -> str:
        """Readable."""
        return self.set_name + ("" if self.training == "plain" else f"-{_plain(self.training)}")


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "" if c == "=" else "-" for c in text)


def read_cell(path: Path, cell: Cell) -> dict[str, Any]:
    """The record of a cell, from its file.

    Raises:
        InputError: it is damaged, or another cell's.
    """
    try:
        record: dict[str, Any] = read_sealed(path, StudyCell)
    except InputError as error:
        raise InputError(f"{error} Remove {path} to have the cell measured again.") from error
    if any(record.get(name, value) != value for name, value in cell.making.items()):
        raise InputError(f"{path} is the record of another cell; remove it to have this one measured.")
    return record


def conflicting_share(made: DistilledSet, real: RealSet) -> float | None:
    """Share of colored digits whose color is nearer to that of another class; None for other sets."""
    nearest = _nearest(made, real)
    return None if nearest is None else float((nearest.index != made.hard_labels).double().mean())


def color_distance(made: DistilledSet, real: RealSet) -> float | None:
    """Mean angle to the nearest color in degrees: how far that share can be trusted; None for other sets."""
    nearest = _nearest(made, real)
    return None if nearest is None else float(nearest.distance.mean())


def _nearest(made: DistilledSet, real: RealSet) -> Nearest | None:
    colors = real.attribute.colors if real.attribute is not None else None
    return nearest_color(made.pixels, colors) if colors else None
