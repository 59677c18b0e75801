"""Results as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from datastill.data.biased.attribute import Attribute, attribute_of
from datastill.evaluation.scores import Arm, Evaluation
from datastill.report.section import Code, Items, Paragraph, Part, Shown

#: Classes whose accuracies by attribute fit a terminal.
MOST = 20


def evaluation_table(result: Evaluation) -> Table:
    """The distilled set, Random and the whole set, under one protocol."""
    sets, networks = result.distilled.accuracies.shape
    title = f"{result.data['name']}: {sets} set{'s' * (sets > 1)} × {networks} networks, protocol {result.conditions}"
    table = Table(title=title, title_justify="left")
    for column, justify in (
        ("set", "left"),
        (f"{result.measure} %", "right"),
        ("± 95 %", "right"),
        ("std nets", "right"),
        ("std sets", "right"),
        ("seconds", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    biased = result.distilled.groups is not None
    for column in ("aligned %", "conflicting %") if biased else ():
        table.add_column(column, justify="right")
    for arm in (result.distilled, result.random, result.ceiling):
        if arm is not None:
            table.add_row(*_row(arm), *(_groups(arm) if biased else ()))
    return table


def regimes_table(found: Mapping[str, Evaluation]) -> Table:
    """The sets and Random under each kind of labels."""
    one = next(iter(found.values()))
    title = f"{one.data['name']}: {one.distilled.name} by kind of labels, protocol {one.protocol}, {one.optimizer}"
    table = Table(title=title, title_justify="left")
    for column in ("labels", "test accuracy %", "± 95 %", "random %", "difference", "± 95 %", "seconds"):
        table.add_column(column, justify="left" if column == "labels" else "right")
    for name, result in found.items():
        other = "–" if result.random is None else f"{100 * result.random.mean:.1f}"
        difference = "–" if result.random is None else f"{100 * result.difference:+.1f}"
        width = _points(result.difference_interval)
        own = f"{100 * result.mean:.1f}", _points(result.interval)
        table.add_row(name, *own, other, difference, width, f"{result.distilled.seconds:.1f}")
    return table


def _groups(arm: Arm) -> list[str]:
    if arm.groups is None:
        return ["–", "–"]
    return [_points(arm.groups.aligned), _points(arm.groups.conflicting)]


def group_table(result: Evaluation, names: Sequence[str]) -> Table | None:
    """The distilled set's accuracy by class and bias attribute; None without one, or with more than 20 classes."""
    groups = result.distilled.groups
    if groups is None or len(names) > MOST:
        return None
    attribute = attribute_of(result.data, groups.matrix.shape[1])
    title = f"{result.distilled.name}: accuracy % by class and {attribute.kind}, aligned on the diagonal"
    table = Table(title=title, title_justify="left", caption=_legend(attribute), caption_justify="left")
    table.add_column("class", no_wrap=True, max_width=16)
    for value in range(len(attribute.names)):
        table.add_column(str(value), justify="right", no_wrap=True, min_width=3)
    for c, row in enumerate(groups.matrix.tolist()):
        cells = [Text(_points(share, 0), style="bold" if b == c else "") for b, share in enumerate(row)]
        table.add_row(Text(names[c]), *cells)
    return table


def _legend(attribute: Attribute) -> Text:
    """Which number is which value, with a swatch where values are colors."""
    legend = Text(f"{attribute.kind}: ", style="not italic")
    for value, name in enumerate(attribute.names):
        legend.append(f"{', ' if value else ''}{value}")
        if value < len(attribute.colors):  # without spaces, at which lines are broken
            red, green, blue = (round(255 * part) for part in attribute.colors[value])
            legend.append("■", style=f"not dim rgb({red},{green},{blue})")
        else:
            legend.append("=")
        legend.append(name)
    return legend


def _row(arm: Arm) -> list[str]:
    return [
        arm.name,
        f"{100 * arm.mean:.1f}",
        _points(arm.interval),
        _points(arm.std_networks),
        _points(arm.std_sets),
        f"{arm.seconds:.1f}",
    ]


def _points(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"


def laid_out(found: Shown) -> list[Table | str]:
    """A section of the report for a terminal."""
    return [f"\n{found.title}", *map(part_laid_out, found.parts)]


def part_laid_out(part: Part) -> Table | str:
    """A part of a section for a terminal."""
    if isinstance(part, Paragraph | Code):
        return part.text
    if isinstance(part, Items):
        return "\n".join(f"  {text}" for text in part.texts)
    table = Table()
    for k, head in enumerate(part.heads):
        table.add_column(Text(head), justify="right" if k else "left")
    for row in part.rows:
        table.add_row(*map(Text, row))
    return table
