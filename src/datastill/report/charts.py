"""Curves with matplotlib, drawn on their own canvas: no window, no pyplot, no global state."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.report.plotting import plotting

if TYPE_CHECKING:
    from datastill.evaluation.scores import Evaluation

#: A curve is drawn with at most so many points; each is the mean of its stretch.
POINTS = 200


@dataclass(frozen=True)
class Theme:
    """Colors of a chart on a clear ground."""

    ink: str
    rule: str
    main: str
    other: str


LIGHT = Theme(ink="#4b5563", rule="#e5e7eb", main="#4f46e5", other="#9a6a1f")
DARK = Theme(ink="#b6bdc9", rule="#313845", main="#a5b4fc", other="#e0b060")


@dataclass(frozen=True)
class Curve:
    """Points to join, with an optional band around them."""

    name: str
    x: Tensor
    y: Tensor
    low: Tensor | None = None
    high: Tensor | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    curves: Sequence[Curve]
    xlabel: str
    ylabel: str
    log: bool = False
    percent: bool = False


def curves(
    losses: Tensor | Sequence[float],
    accuracy: Sequence[tuple[int, float]] = (),
    *,
    format: str = "svg",
    dark: bool = False,
) -> bytes:
    """The loss of every step, and accuracies of checks on the way beside it.

    Args:
        losses: (steps,), or (blocks, steps): the mean over blocks, with an 80 % band.
        accuracy: (step, fraction) pairs.
        format: "svg" or "png".
        dark: colors for a dark page.
    """
    panels = [Panel([loss_curve(losses)], "image update", "loss", log=spans(losses))]
    panels += [accuracy_panel(accuracy)] if accuracy else []
    return draw(panels, format=format, dark=dark)


def accuracy_panel(accuracy: Sequence[tuple[int, float]]) -> Panel:
    """Accuracies of checks on the way, (step, fraction) pairs."""
    steps, values = zip(*accuracy, strict=True)
    curve = Curve("accuracy", torch.tensor(steps).double(), torch.tensor(values).double())
    return Panel([curve], "image update", "accuracy", percent=True)


def training_curves(evaluation: Evaluation, *, format: str = "svg", dark: bool = False) -> bytes | None:
    """Training loss of the evaluation networks on each arm's images; None where it was not recorded."""
    arms = [arm for arm in (evaluation.distilled, evaluation.random) if arm is not None and arm.losses]
    if not arms:
        return None
    drawn = [loss_curve(arm.losses, arm.name) for arm in arms]
    log = all(spans(arm.losses) for arm in arms)
    return draw([Panel(drawn, "pass over the set", "training loss", log=log)], format=format, dark=dark)


def loss_curve(losses: Tensor | Sequence[float], name: str = "loss", points: int = POINTS) -> Curve:
    """Losses (steps,) or (blocks, steps) as at most `points` means with 80 % bands; non-finite steps are left out."""
    rows = torch.as_tensor(losses).double()
    rows = rows if rows.ndim == 2 else rows[None]
    x, y, low, high = [], [], [], []
    steps = rows.shape[1]
    edges = [round(i * steps / min(points, max(1, steps))) for i in range(min(points, steps) + 1)]
    for start, stop in itertools.pairwise(edges):
        part = rows[:, start:stop]
        finite = part[torch.isfinite(part)]
        if not len(finite):
            continue
        x.append((start + 1 + stop) / 2)
        y.append(float(finite.mean()))
        low.append(float(finite.quantile(0.1)))
        high.append(float(finite.quantile(0.9)))
    made = [torch.tensor(values, dtype=torch.double) for values in (x, y, low, high)]
    banded = len(rows) > 1 or steps > points
    return Curve(name, made[0], made[1], *(made[2:] if banded else (None, None)))


def spans(losses: Tensor | Sequence[float]) -> bool:
    """Whether a logarithmic axis serves better: all positive, and more than a factor of 20 apart."""
    values = torch.as_tensor(losses).double().flatten()
    values = values[torch.isfinite(values)]
    return len(values) > 0 and float(values.min()) > 0 and float(values.max()) > 20 * float(values.min())


def draw(panels: Sequence[Panel], *, format: str = "svg", dark: bool = False) -> bytes:
    """Panels side by side, on a clear ground, as SVG or PNG; equal input gives equal bytes."""
    matplotlib = plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    figure = Figure(figsize=(5.0 * len(panels), 2.6), layout="constrained")
    figure.patch.set_alpha(0)
    for k, panel in enumerate(panels):
        _axes(figure.add_subplot(1, len(panels), k + 1), panel, theme)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "datastill"}):
        if format == "svg":
            nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
        else:
            figure.set_dpi(144)
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _axes(axes: Any, panel: Panel, theme: Theme) -> None:
    axes.patch.set_alpha(0)
    for k, curve in enumerate(panel.curves):
        color = (theme.main, theme.other)[k % 2]
        scale = 100 if panel.percent else 1
        single = "o" if len(curve.x) == 1 or panel.percent else None
        axes.plot(
            curve.x.numpy(),
            scale * curve.y.numpy(),
            color=color,
            lw=1.6,
            marker=single,
            ms=4,
            label=curve.name,
        )
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x.numpy(), curve.low.numpy(), curve.high.numpy(), color=color, alpha=0.18, lw=0)
    if panel.log:
        axes.set_yscale("log")
    axes.set_xlabel(panel.xlabel, color=theme.ink, fontsize=9)
    axes.set_ylabel(panel.ylabel + (" (%)" if panel.percent else ""), color=theme.ink, fontsize=9)
    axes.tick_params(which="both", colors=theme.ink, labelsize=8, length=0)
    axes.grid(True, which="major", color=theme.rule, lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.rule)
    largest = max((float(c.x.max()) for c in panel.curves if len(c.x)), default=math.nan)
    if largest >= 1000:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(panel.curves) > 1:
        axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8)
