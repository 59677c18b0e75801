"""Results as tables."""

from __future__ import annotations

import math

from rich.table import Table

from datastill.evaluation.scores import Arm, Evaluation


def evaluation_table(result: Evaluation) -> Table:
    """The distilled set, Random and the whole set, under one protocol."""
    sets, networks = result.distilled.accuracies.shape
    title = f"{result.data['name']}: {sets} set{'s' * (sets > 1)} × {networks} networks, protocol {result.protocol}"
    table = Table(title=title, title_justify="left")
    for column, justify in (
        ("set", "left"),
        ("test accuracy %", "right"),
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


def _groups(arm: Arm) -> list[str]:
    if arm.groups is None:
        return ["–", "–"]
    return [_points(arm.groups.aligned), _points(arm.groups.conflicting)]


def _row(arm: Arm) -> list[str]:
    return [
        arm.name,
        f"{100 * arm.mean:.1f}",
        _points(arm.interval),
        _points(arm.std_networks),
        _points(arm.std_sets),
        f"{arm.seconds:.1f}",
    ]


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
