"""LRS and ARS with their parts, in plain words."""

from __future__ import annotations

import math

from torch import Tensor

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
_TOLD = (
    "What is left of the accuracy when labels and augmentation help Random as much. LRS weighs the improvement over "
    "Random against what hard labels leave missing to the whole real set; ARS weighs the improvement with "
    "augmentation against that without. "
)
_BOUNDED = "Both lie in [0, 1]; 0.27 stands where gains and losses cancel."
_RELEASED = "They are counted in percentage points, as the released DD-Ranking package does, and lie in no range."
_NO_ARS = " There is no ARS: images of this kind are not augmented."


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
        told = meaning(found.arithmetic)
        table = Table(["", "mean", "± 95 %"], rows)
        weights = f" The weight of the first part is {found.weight:g}."
        return Shown("Without the help of labels and augmentation",
                     [table, Paragraph(told + weights + ("" if "ars" in parts else _NO_ARS))])  # fmt: skip


def meaning(arithmetic: str) -> str:
    """What the scores say, in a few sentences."""
    return _TOLD + (_BOUNDED if arithmetic == "fractions" else _RELEASED)


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
