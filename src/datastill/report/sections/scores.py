"""Accuracies beside Random, by class and by network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datastill.report import words
from datastill.report.groups import groups
from datastill.report.section import Page, Reading, Section
from datastill.report.words import code, percent, signed, with_interval
from datastill.report.words import markdown as md

if TYPE_CHECKING:
    from datastill.evaluation.scores import Arm, Evaluation


class Scores(Section):
    """What networks score that were trained on the sets."""

    name = "scores"
    order = 10

    def page(self, reading: Reading) -> Page | None:
        """Tables and bars."""
        evaluation, names = reading.evaluation, reading.first.class_names
        if evaluation is None:
            return None
        values = {
            "evaluation": evaluation,
            "arms": arm_rows(evaluation),
            "difference": difference(evaluation),
            "groups": groups(evaluation, names),
            "bars": [] if evaluation.chance else bars(evaluation, names),
            "name_width": min(16, max(3, *map(len, names)) + 1),
        }
        return Page("Against random selection", "sections/scores.html.j2", values)

    def card(self, reading: Reading) -> str | None:
        """One table."""
        if reading.evaluation is not None:
            return _results(reading.evaluation)
        return "## Results\n\nNo scores were published with the set." if reading.layout == "hub" else None


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


def _results(evaluation: Evaluation) -> str:
    sets, networks = evaluation.distilled.accuracies.shape
    biased = evaluation.distilled.groups is not None
    more = (" aligned | conflicting |", "---:|---:|") if biased else ("", "")
    lines = [
        "## Results",
        "",
        f"**{md(evaluation.verdict)}**",
        "",
        f"| trained on | {evaluation.measure}, % | std over networks | std over sets | seconds |" + more[0],
        "|---|---:|---:|---:|---:|" + more[1],
        *(_row(row, biased) for row in arm_rows(evaluation)),
        "",
        f"Protocol `{code(evaluation.protocol)}`{_labels(evaluation)}: {words.plural(sets, 'set')}"
        f"{', of which this is one,' if sets > 1 else ''} × {words.plural(networks, 'fresh network')} "
        f"({md(words.describe_network(evaluation.network))}), {_trained(evaluation)}; "
        f"± is the half-width of a 95 % interval over {evaluation.distilled.interval_over}."
        + (_BIASED if biased else ""),
    ]
    return "\n".join(lines)


def _labels(evaluation: Evaluation) -> str:
    return evaluation.conditions.removeprefix(evaluation.protocol)


def _trained(evaluation: Evaluation) -> str:
    """How networks were trained where it is not as the protocol says, and when they were scored."""
    if evaluation.training is None:
        return "scored once after the last pass"
    whole = " but for those on the whole real set" if evaluation.ceiling is not None else ""
    how = f"`{code(words.training(evaluation.training))}`"
    return f"trained by {how} under the protocol's augmentation{whole}, scored once after the last step"


_BIASED = (
    " *Aligned* is the accuracy, in %, on test images with the attribute that most training images of their class "
    "have, *conflicting* on the others."
)


def _row(row: ArmRow, biased: bool) -> str:
    cells = [md(row.name), row.accuracy, row.networks, row.sets, f"{row.seconds:.1f}"]
    cells += [row.aligned, row.conflicting] if biased else []
    return f"| {' | '.join(cells)} |"


SECTION = Scores()
