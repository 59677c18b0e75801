"""Losses and accuracies over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.report.charts import accuracy_panel, curves, draw, training_curves
from datastill.report.section import Page, Reading, Section, data_uri

if TYPE_CHECKING:
    from datastill.evaluation.scores import Evaluation


class Curves(Section):
    """What was recorded on the way, of distillation and of evaluation."""

    name = "curves"
    order = 40

    def page(self, reading: Reading) -> Page | None:
        """Charts, where something was recorded."""
        charts = _charts(reading.losses, reading.accuracy, reading.evaluation)
        return Page("Curves", "sections/curves.html.j2", {"charts": charts}) if charts else None


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
    light, dark = (data_uri(svg, "image/svg+xml") for svg in pair)
    return {"title": title, "light": light, "dark": dark}


SECTION = Curves()
