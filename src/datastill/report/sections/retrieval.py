"""Retrieval on pairs: recalls beside those of random pairs and of chance."""

from __future__ import annotations

from datastill.evaluation.scores import Arm
from datastill.report.section import Paragraph, Reading, Section, Shown, Table
from datastill.report.words import percent

_TOLD = (
    "TR@k: for how many of 100 test images one of their captions is among the k nearest sentences; IR@k: for how many "
    "of 100 captions their image is among the k nearest images. All candidates are ranked, and equal ones stand in "
    "random order. Chance is what networks score that say nothing."
)
_GROUPED = (
    " Grouped recall takes any caption and image with the same attributes, strict recall those of the pair alone."
)


class RetrievalSection(Section):
    """One table, a row for each side."""

    name, order = "retrieval", 11

    def shown(self, reading: Reading) -> Shown | None:
        """Recalls in percent."""
        evaluation = reading.evaluation
        if evaluation is None or not evaluation.chance:
            return None
        names = list(evaluation.chance)
        arms = [arm for arm in (evaluation.distilled, evaluation.random, evaluation.ceiling) if arm is not None]
        rows = [_row(arm, names) for arm in arms]
        rows.append(["chance", *(percent(evaluation.chance[name]) for name in names)])
        grouped = any(name.startswith("grouped") for name in names)
        table = Table(["trained on", *(f"{name}, %" for name in names)], rows)
        return Shown("Retrieval", [table, Paragraph(_TOLD + (_GROUPED if grouped else ""))])


def _row(arm: Arm, names: list[str]) -> list[str]:
    return [arm.name, *(percent(arm.recalls.get(name)) for name in names)]


SECTION = RetrievalSection()
