"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill._version import __version__
from datastill.core.errors import InputError
from datastill.report import reproduce, views, words
from datastill.report.charts import accuracy_panel, curves, draw, training_curves
from datastill.report.groups import groups
from datastill.report.pictures import png, preview
from datastill.report.snapshots import Snapshots, Timeline
from datastill.store.artifact import DistilledSet
from datastill.store.files import write_text
from datastill.store.manifest import Data, Manifest

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Evaluation

#: Further sets whose pictures are shown.
SETS = 9


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
    write_text(target, render(page(sets, evaluation, real, snapshots, losses, command, accuracy)))
    return target


def render(record: dict[str, Any], template: str = "report.html.j2") -> str:
    """The page of a record in one of the templates here; every text in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("datastill", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=words.duration, bytes=words.bytes_, value=words.value)
    return environment.get_template(template).render(record)


def page(
    sets: Sequence[DistilledSet],
    evaluation: Evaluation | None,
    real: RealSet | None,
    snapshots: Timeline | Snapshots | None,
    losses: Tensor | Sequence[float] | None,
    command: str | None,
    accuracy: Sequence[tuple[int, float]] = (),
) -> dict[str, Any]:
    """Everything that the template names."""
    first = sets[0]
    record = first.record
    notes = [*record.notes, *record.data.notes]
    if evaluation is not None:
        notes += evaluation.notes
    return {
        "name": first.name,
        "title": f"{record.method} on {record.data.name}",
        "record": record,
        "images": len(first.targets),
        "kind": words.kind_of_images(record),
        "sets": [one.record.seed for one in sets],
        "outcome": views.outcome(evaluation),
        "verdict": None if evaluation is None else evaluation.verdict,
        "tiles": _tiles(first, evaluation),
        "reel": views.reel(snapshots, first.class_names),
        "gallery": views.gallery(first, real),
        "more_sets": [(one.record.seed, views.data_uri(png(preview(one)))) for one in sets[1 : SETS + 1]],
        "evaluation": evaluation,
        "arms": [] if evaluation is None else views.arm_rows(evaluation),
        "difference": None if evaluation is None else views.difference(evaluation),
        "groups": groups(evaluation, first.class_names),
        "bars": [] if evaluation is None else views.bars(evaluation, first.class_names),
        "name_width": min(16, max(3, *map(len, first.class_names)) + 1),
        "charts": _charts(losses, accuracy, evaluation),
        "hyper": words.hyper_rows(record.method, record.hyper),
        "facts": _facts(first),
        "cost": _cost(record, evaluation),
        "notes": list(dict.fromkeys(notes)),
        "python": reproduce.python_call(record),
        "again": reproduce.command(record),
        "evaluate": None if evaluation is None else reproduce.evaluate_call(evaluation.to_dict()),
        "command": command,
        "version": __version__,
    }


def _tiles(first: DistilledSet, evaluation: Evaluation | None) -> list[tuple[str, str, str, str]]:
    """(kind, number, unit, meaning) of the few numbers to see first."""
    record, tiles = first.record, []
    if evaluation is not None:
        tiles.append(("main", words.percent(evaluation.mean), "%", f"test accuracy of {record.method}"))
        if evaluation.random is not None:
            tiles.append(("other", words.percent(evaluation.random.mean), "%", "test accuracy of Random"))
        if evaluation.ceiling is not None:
            tiles.append(("ceiling", words.percent(evaluation.ceiling.mean), "%", "of the whole real set"))
    count, real = first.stored, record.data.images or 0
    share = f" ({100 * count / real:.2g}\u00a0%)" if real else ""
    meaning = f"stored images in place of {real:,}{share}" if real else "images"
    tiles.append(("plain", f"{count:,}", "", meaning))
    if "seconds" in record.cost.model_fields_set and record.cost.known:
        number, _, unit = words.duration(record.cost.seconds).partition(" ")
        tiles.append(("plain", number, unit, "to distil"))
    return tiles


def _charts(
    losses: Tensor | Sequence[float] | None, accuracy: Sequence[tuple[int, float]], evaluation: Evaluation | None
) -> list[dict[str, str]]:
    """Each curve drawn twice, for light and for dark pages."""
    charts = []
    if losses is not None and torch.as_tensor(losses).numel():
        pair = [curves(losses, dark=dark) for dark in (False, True)]
        charts.append(_chart("Distillation: loss of every image update", pair))
    if accuracy:
        pair = [draw([accuracy_panel(accuracy)], dark=dark) for dark in (False, True)]
        charts.append(_chart("Distillation: accuracy of checks on training images", pair))
    if evaluation is not None:
        drawn = [training_curves(evaluation, dark=dark) for dark in (False, True)]
        if drawn[0] is not None:
            charts.append(_chart("Evaluation: training loss of the fresh networks", [d or b"" for d in drawn]))
    return charts


def _chart(title: str, pair: Sequence[bytes]) -> dict[str, str]:
    light, dark = (views.data_uri(svg, "image/svg+xml") for svg in pair)
    return {"title": title, "light": light, "dark": dark}


def _facts(first: DistilledSet) -> list[tuple[str, str]]:
    record = first.record
    data, recipe, network = record.data, record.recipe, record.network
    counts = data.counts or [0]
    per_class = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return [
        ("Method", f"{record.method} ({record.family or 'no family'})"),
        ("Images", f"{words.images(first)} of {_shape(record.shape)}, ipc {first.ipc}"),
        ("Labels", record.labels),
        ("Seed", str(record.seed)),
        ("Recipe", recipe.published or recipe.asked or "–"),
        ("Matched on", "–" if network is None else words.describe_network(network.plain())),
        *words.changed(record),
        ("Real set", f"{data.name}: {data.images or 0:,} training images, {per_class} per class, {_tests(data)}"),
        ("Fingerprint", data.fingerprint or "–"),
        ("Space", words.describe_space(record.space)),
    ]


def _shape(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height} × {width}, {words.plural(channels, 'channel')}"


def _tests(data: Data) -> str:
    return f"{data.test_images:,} test images" if data.test_images else "no test images"


def _cost(record: Manifest, evaluation: Evaluation | None) -> list[tuple[str, str, str]]:
    """(what, distillation, evaluation)."""
    made = record.cost.plain()
    scored = {} if evaluation is None else evaluation.cost

    def both(name: str, read: Any) -> tuple[str, str]:
        return read(made[name]) if name in made else "–", read(scored[name]) if name in scored else "–"

    rows = [
        ("Wall time", *both("seconds", words.duration)),
        ("CPU time", *both("cpu_seconds", words.duration)),
        ("Image updates", *both("steps", words.value)),
        ("Steps skipped as not finite", *both("skipped_steps", words.value)),
        ("Peak memory of the process", *both("peak_memory_bytes", words.bytes_)),
        ("Hardware", *both("hardware", str)),
        ("Versions", *both("versions", lambda v: ", ".join(f"{k} {n}" for k, n in v.items()))),
    ]
    return [row for row in rows if row[1:] != ("–", "–")]
