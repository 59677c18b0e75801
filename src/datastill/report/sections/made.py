"""Method, hyper-parameters and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datastill.core.cost import describe_cost
from datastill.report import words
from datastill.report.section import Page, Reading, Section
from datastill.report.words import code
from datastill.report.words import markdown as md
from datastill.store.artifact import DistilledSet
from datastill.store.manifest import Data, Manifest
from datastill.store.sizes import bytes_in_words

if TYPE_CHECKING:
    from datastill.evaluation.scores import Evaluation


class Making(Section):
    """How the set was made and what that took."""

    name = "made"
    order = 50

    def page(self, reading: Reading) -> Page:
        """Tables, and notes of all kinds."""
        record, evaluation = reading.record, reading.evaluation
        notes = [*record.notes, *record.data.notes, *(() if evaluation is None else evaluation.notes)]
        values = {
            "evaluation": evaluation,
            "hyper": words.hyper_rows(record.method, record.hyper),
            "facts": _facts(reading.first),
            "cost": _cost(record, evaluation),
            "notes": list(dict.fromkeys(notes)),
        }
        return Page("How it was made", "sections/made.html.j2", values)

    def card(self, reading: Reading) -> str:
        """Sentences and one table."""
        kept = reading.layout in ("artifact", "hub")
        return _made(reading.record) + (f"\n\nStored: {words.weighs(reading.first)}." if kept else "")


def _facts(first: DistilledSet) -> list[tuple[str, str]]:
    record = first.record
    data, recipe, network = record.data, record.recipe, record.network
    counts = data.counts or [0]
    per_class = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return [
        ("Method", f"{record.method} ({record.family or 'no family'})"),
        ("Images", f"{words.images(first)} of {_shape(record.shape)}, ipc {first.ipc}"),
        ("Stored size", words.weighs(first)),
        ("Labels", record.labels),
        ("Seed", str(record.seed)),
        ("Recipe", recipe.published or recipe.asked or "–"),
        ("Matched on", "–" if network is None else words.describe_network(network.plain())),
        *words.changed(record),
        ("Real set", f"{data.name}: {_training(first, per_class)}, {_tests(data)}"),
        ("Fingerprint", data.fingerprint or "–"),
        ("Space", words.describe_space(record.space)),
    ]


def _training(first: DistilledSet, per_class: str) -> str:
    images = first.record.data.images or 0
    return (
        f"{images:,} training pairs"
        if first.label_kind == "pairs"
        else f"{images:,} training images, {per_class} per class"
    )


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
        ("Preparation before that", *both("prepare_seconds", lambda v: words.duration(v) if v else "–")),
        ("CPU time", *both("cpu_seconds", words.duration)),
        ("Image updates", *both("steps", words.value)),
        ("Steps skipped as not finite", *both("skipped_steps", words.value)),
        ("Peak memory of the process", *both("peak_memory_bytes", bytes_in_words)),
        ("Hardware", *both("hardware", str)),
        ("Versions", *both("versions", lambda v: ", ".join(f"{k} {n}" for k, n in v.items()))),
    ]
    return [row for row in rows if row[1:] != ("–", "–")]


def _made(record: Manifest) -> str:
    cost, recipe, network = record.cost, record.recipe, record.network
    rows = words.hyper_rows(record.method, record.hyper)
    table = ["| hyper-parameter | value | meaning |", "|---|---|---|"]
    table += [f"| `{code(name)}` | {md(text)} | {md(meaning)} |" for name, text, meaning in rows]
    lines = [
        f"Method `{code(record.method)}`, seed {record.seed}, {record.labels} labels"
        + (f", recipe `{code(recipe.published or recipe.asked)}`" if recipe.asked else "")
        + (f", matched on {md(words.describe_network(network.plain()))}" if network else "")
        + _changed(record)
        + ".",
        "\n".join(table) if rows else "It has no hyper-parameters.",
    ]
    if cost.model_fields_set and cost.known:
        versions = ", ".join(f"{name} {number}" for name, number in cost.versions.plain().items())
        took = describe_cost(cost.steps, cost.seconds, cost.prepare_seconds)
        lines.append(
            f"Cost: {took} on {md(cost.hardware or 'unknown hardware')}, "
            f"peak memory of the process {bytes_in_words(cost.peak_memory_bytes)}; {md(versions)}."
        )
    lines += [f"- {md(note)}" for note in record.notes]
    return "## How it was made\n\n" + "\n\n".join(lines)


def _changed(record: Manifest) -> str:
    """What the run changed in its method."""
    said = (kind.phrase(one) for kind, one in reversed(record.changes))
    return "".join(f"{what} (`{code(how)}`)" for what, how in said)


SECTION = Making()
