"""LRS and ARS with their parts, in plain words."""

from __future__ import annotations

import math

from torch import Tensor

from datastill.augment.strategies import AUGMENTED_SIDE
from datastill.evaluation.robustness import Robustness
from datastill.evaluation.scores import spread_over, t_interval
from datastill.report.section import Paragraph, Reading, Section, Shown, Table
from datastill.report.words import percent, signed

#: Name in results, what a row says, and whether it is a score, a difference in points or a share in percent.
_ROWS = (
    ("lrs", "label robustness score (LRS)", "score"),
    ("ior", "  improvement over Random (IOR), points", "points"),
    ("hlr", "  missing to the whole set on hard labels (HLR), points", "points"),
    ("share_of_whole", "  share of the whole set's accuracy, %", "share"),
    ("ars", "augmentation robustness score (ARS)", "score"),
    ("ior_augmented", "  improvement over Random, augmented, points", "points"),
    ("ior_plain", "  improvement over Random, as they are, points", "points"),
)
_LRS = "LRS weighs the improvement over Random against what hard labels leave missing to the whole real set"
_ARS = "ARS weighs the improvement with augmentation against that without"
_BOUNDED = "Scores lie in [0, 1]; 0.27 stands where gains and losses cancel."
_RELEASED = "Scores are counted in percentage points, as the released DD-Ranking package does, and lie in no range."


class RobustnessSection(Section):
    """One table."""

    name, order = "robustness", 12

    def shown(self, reading: Reading) -> Shown | None:
        """Means with intervals."""
        found = None if reading.evaluation is None else reading.evaluation.robustness
        if found is None:
            return None
        parts = found.parts()
        rows = [[text, *_cells(parts[name], kind)] for name, text, kind in _ROWS if name in parts]
        told = meaning(found.arithmetic, "ars" in parts)
        table = Table(["", "mean", "± 95 %"], rows)
        weights = f" The weight of the first part is {found.weight:g}."
        return Shown("Without the help of labels and augmentation",
                     [table, Paragraph(told + weights)])  # fmt: skip


def meaning(arithmetic: str, ars: bool, without: str = "") -> str:
    """What the scores say, in a few sentences.

    Args:
        arithmetic: "fractions" or "released".
        ars: whether any of the images have an ARS.
        without: where some have one, names of the data that have none.
    """
    helps, both = ("labels and augmentation help", f"{_LRS}; {_ARS}") if ars else ("labels help", _LRS)
    told = f"What is left of the accuracy when {helps} Random as much. {both}. "
    told += _BOUNDED if arithmetic == "fractions" else _RELEASED
    if ars and not without:
        return told
    lacking = f" of {without}" if without else ""
    return f"{told} There is no ARS{lacking}: images of fewer than {AUGMENTED_SIDE} pixels a side are not augmented."


def numbers(found: Robustness) -> dict[str, str]:
    """Mean and interval of each score and part as text, "–" where the data have none."""
    parts = found.parts()
    pairs = {name: _cells(parts[name], kind) if name in parts else ["–", "–"] for name, _, kind in _ROWS}
    return {name: mean if width == "–" else f"{mean} ± {width}" for name, (mean, width) in pairs.items()}


def _cells(values: Tensor, kind: str) -> list[str]:
    mean, width = float(values.mean()), t_interval(spread_over(values)[0])
    if kind == "score":
        return [_short(mean), "–" if math.isnan(width) else _short(width)]
    return [signed(mean) if kind == "points" else percent(mean), percent(width)]


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


SECTION = RobustnessSection()
