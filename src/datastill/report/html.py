"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datastill._version import __version__
from datastill.core.errors import InputError
from datastill.report import words
from datastill.report.section import Page, Reading, Shown, sections
from datastill.report.snapshots import Snapshots, Timeline
from datastill.store.artifact import DistilledSet
from datastill.store.files import write_text
from datastill.store.sizes import bytes_in_words

if TYPE_CHECKING:
    from jinja2 import Environment

    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Evaluation


def write_report(
    path: str | Path,
    distilled: Sequence[DistilledSet] | DistilledSet,
    evaluation: Evaluation | None = None,
    real: RealSet | None = None,
    snapshots: Timeline | Snapshots | None = None,
    losses: Tensor | Sequence[float] | None = None,
    command: str | None = None,
    accuracy: Sequence[tuple[int, float]] = (),
) -> Path:
    """Write the report of a run as one self-contained HTML file.

    Args:
        path: the file; a folder gets a `report.html`.
        distilled: the sets that were evaluated, of one method; images of the first are shown class by class.
        evaluation: what `evaluate` returned for them.
        real: the real set, for the random selection and the nearest real images.
        snapshots: the images of the first set on the way.
        losses: of every step, (steps,) or (blocks, steps).
        command: the command that made this.
        accuracy: (step, fraction) of checks on the way.

    Raises:
        InputError: no set, a real set that does not fit, or a file that cannot be written.
    """
    sets = [distilled] if isinstance(distilled, DistilledSet) else list(distilled)
    if not sets:
        raise InputError("A report needs at least one distilled set.")
    path = Path(path)
    target = path / "report.html" if path.is_dir() else path
    reading = Reading(sets, evaluation, real, snapshots, losses, accuracy, command)
    write_text(target, render(page(reading)))
    return target


def render(record: Mapping[str, Any], template: str = "report.html.j2") -> str:
    """The page of a record in one of the templates here; every text in it is escaped."""
    return _environment().get_template(template).render(record)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("datastill", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=words.duration, bytes=bytes_in_words, value=words.value)
    return environment


def page(reading: Reading) -> dict[str, Any]:
    """Everything that the template names."""
    first, record, evaluation = reading.first, reading.record, reading.evaluation
    shown = [(one.name, found) for one in sections() if (found := one.page(reading)) is not None]
    return {
        "name": first.name,
        "title": f"{record.method} on {record.data.name}",
        "record": record,
        "images": first.stored,
        "rendered": len(first.targets),
        "kind": words.kind_of_images(record),
        "sets": [one.record.seed for one in reading.sets],
        "outcome": outcome(evaluation),
        "verdict": None if evaluation is None else evaluation.verdict,
        "tiles": _tiles(first, evaluation),
        "sections": [{"name": name, "title": found.title, "body": _body(found)} for name, found in shown],
        "version": __version__,
    }


def _body(found: Shown | Page) -> str:
    from markupsafe import Markup

    if isinstance(found, Page):
        return Markup(render(found.values, found.template))
    return Markup(render({"parts": found.parts}, "section.html.j2"))


def outcome(evaluation: Evaluation | None) -> str:
    """ "win", "loss" or "open": the color of the headline."""
    if evaluation is None or evaluation.random is None or math.isnan(evaluation.difference_interval):
        return "open"
    if evaluation.difference > evaluation.difference_interval:
        return "win"
    return "loss" if evaluation.difference < -evaluation.difference_interval else "open"


def _tiles(first: DistilledSet, evaluation: Evaluation | None) -> list[tuple[str, str, str, str]]:
    """(kind, number, unit, meaning) of the few numbers to see first."""
    record, tiles = first.record, []
    if evaluation is not None:
        tiles.append(("main", words.percent(evaluation.mean), "%", f"test accuracy of {evaluation.distilled.name}"))
        if evaluation.random is not None:
            tiles.append(("other", words.percent(evaluation.random.mean), "%", "test accuracy of Random"))
        if evaluation.ceiling is not None:
            tiles.append(("ceiling", words.percent(evaluation.ceiling.mean), "%", "of the whole real set"))
    count, real = first.stored, record.data.images or 0
    share = f" ({100 * count / real:.2g}\u00a0%)" if real else ""
    meaning = f"stored images in place of {real:,}{share}" if real else "images"
    tiles.append(("plain", f"{count:,}", "", meaning))
    if "seconds" in record.cost.model_fields_set and record.cost.known:
        number, _, unit = words.duration(record.cost.seconds + record.cost.prepare_seconds).partition(" ")
        meaning = "to distill, with preparation" if record.cost.prepare_seconds else "to distill"
        tiles.append(("plain", number, unit, meaning))
    return tiles
