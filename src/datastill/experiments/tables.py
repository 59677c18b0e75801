"""Tables of comparisons as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from datastill.report.sections.robustness import meaning, numbers
from datastill.report.words import code, duration, percent, plural, signed
from datastill.report.words import markdown as escaped
from datastill.training.optimizers import usual

if TYPE_CHECKING:
    from datastill.evaluation.scores import Evaluation
    from datastill.experiments.result import Comparison, Row

COLUMNS = ("method", "accuracy, %", "against Random, points", "to distill", "to evaluate")


def markdown(comparison: Comparison) -> str:
    """Markdown as a README takes it: the best of each data set and size in bold, then what the numbers mean."""
    scores = scores_in(comparison)
    lines = [
        "| data | ipc | " + " | ".join([*COLUMNS, *scores]) + " |",
        "|---|---:|---|---:|---:|---:|---:|" + "---:|" * len(scores),
    ]
    for rows in comparison.groups().values():
        best = max(row.mean for row in rows)
        for row in rows:
            name, accuracy, difference, made, scored = cells(row)
            bold = "**" if row.mean == best else ""
            shown = [escaped(row.data), str(row.ipc), escaped(name), f"{bold}{accuracy}{bold}"]
            lines.append(f"| {' | '.join([*shown, difference, made, scored, *score_cells(row)[: len(scores)]])} |")
    told = [escaped(caption(comparison))]
    if comparison.command:
        told.append(f"Made by `{code(comparison.command)}`.")
    return "\n".join([*lines, "", *told]) + "\n"


def html(comparison: Comparison) -> str:
    """As a notebook shows it."""
    from datastill.report.notebook import table

    scores = scores_in(comparison)
    rows = [(row.data, str(row.ipc), *cells(row), *score_cells(row)[: len(scores)]) for row in comparison.rows]
    return table(("data", "ipc", *COLUMNS, *scores), rows, caption(comparison))


def measure(comparison: Comparison) -> str:
    """What networks are scored by, as `Evaluation.measure`."""
    return "mean recall" if "pairs" in comparison.config["protocol"].get("accepts", ()) else "test accuracy"


def scores_in(comparison: Comparison) -> list[str]:
    """Names of the columns of scores, where they were asked for."""
    return ["LRS", "ARS"] if comparison.config.get("scores") else []


def score_cells(row: Row) -> list[str]:
    """LRS and ARS with their intervals, then IOR, HLR and the share of the whole set, as text."""
    found = numbers(row.robustness) if row.robustness is not None else {}
    return [found.get(name, "–") for name in ("lrs", "ars", "ior", "hlr", "share_of_whole")]


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Method, accuracy, paired difference, time to distill and to evaluate, as text."""
    return (
        row.method,
        plus_minus(percent(row.mean), row.interval),
        plus_minus(signed(row.difference), row.difference_interval),
        duration(row.distillation_seconds),
        duration(row.evaluation_seconds),
    )


def plus_minus(text: str, width: float) -> str:
    """A number with the half-width of its interval, where there is one."""
    return text if math.isnan(width) else f"{text} ± {percent(width)}"


def caption(comparison: Comparison) -> str:
    """What the numbers of a table mean, in a few sentences."""
    config, rows = comparison.config, comparison.rows
    seeds = {len(row.seeds) for row in rows} or {0}
    few, many = min(seeds), max(seeds)
    sets = plural(many, "set") if few == many else f"{few} to {many} sets"
    over = " or ".join(sorted({row.interval_over for row in rows})) or "sets"
    networks = max((row.arm.accuracies.shape[1] for row in rows), default=config["networks"])
    text = (
        f"{measure(comparison).capitalize()} under protocol {comparison.protocol}: mean over {sets} (seeds) × "
        f"{plural(networks, 'network')}; ± is the half-width of a 95 % t-interval over {over}. "
        "Differences are paired: a method and the Random of its seed share the networks' weights and orders. "
        "Times are means per set, on one thread; the time to distill includes what methods prepare once and share."
    )
    text += _rates(rows)
    if config.get("optimizer"):
        text += f" Networks were trained by {usual(config['optimizer']).called}, not by the protocol's optimizer."
    if config.get("scores"):
        text += f" {_scores(config['scores'], rows)}"
        took = [f"{duration(seconds)} ({data})" for data, seconds in comparison.whole_set_seconds.items()]
        text += f" Once besides, a network on the whole real set took {', '.join(took)}." if took else ""
    if config.get("budget"):
        text += f" Distillation was given {duration(config['budget'])} per set."
    if comparison.missing:
        text += f" {plural(len(comparison.missing), 'cell')} of {_all(comparison)} have no result."
    return text


def _scores(arithmetic: str, rows: Sequence[Row]) -> str:
    """What LRS and ARS say, and which data have no ARS."""
    scored = [row for row in rows if row.robustness is not None]
    without = dict.fromkeys(row.data for row in scored if row.robustness is not None and row.robustness.ars is None)
    some = not scored or len(without) < len({row.data for row in scored})
    told = meaning(arithmetic, some, " and ".join(without) if some else "")
    return f"{'LRS and ARS say' if some else 'LRS says'} {told[0].lower()}{told[1:]}"


def _rates(rows: Sequence[Row]) -> str:
    """A sentence on the learning rates of sets that learned none, where these were chosen."""
    found = {
        f"{cell['lr']:g} ({row.data}, ipc {row.ipc:,})"
        for row in rows
        for cell in row.cells.values()
        if cell.get("lr_tried")
    }
    if not found:
        return ""
    return (
        " Sets that learned a learning rate are trained on at that rate, the others at the best one for Random on real "
        f"training images held back: {', '.join(sorted(found))}."
    )


def headlines(comparison: Comparison) -> list[tuple[str, str, str]]:
    """("win", "loss" or "open", what, sentence) of each data set and size: who leads, over Random and the next."""
    return [_headline(data, ipc, rows) for (data, ipc), rows in comparison.groups().items()]


def _headline(data: str, ipc: int, rows: Sequence[Row]) -> tuple[str, str, str]:
    what = f"{data}, ipc {ipc:,}"
    ranked = sorted(rows, key=lambda row: -row.mean)
    best = ranked[0]
    accuracy = f"{plus_minus(percent(best.mean), best.interval)} %"
    if best.method == "random":
        return "loss" if len(rows) > 1 else "open", what, f"no method is ahead of Random, {accuracy}."
    if best.paired is None:
        return "open", what, f"{best.method} leads with {accuracy}; Random has no result."
    ahead, won = _lead(best.paired)
    text = f"{best.method} leads with {accuracy}, "
    text += f"{ahead} over Random" if won else f"but {ahead} over Random is too little to be sure"
    if ranked[1].method != "random":
        over = replace(best, baseline=ranked[1].cells).beside(ranked[1].method)
        if over is not None:
            lead, clear = _lead(over)
            text += f"; its lead over {ranked[1].method}, {lead}, is {'clear' if clear else 'too small to be sure'}"
    return "win" if won else "open", what, text + "."


def _lead(pair: Evaluation) -> tuple[str, bool]:
    """A paired difference as text, and whether its interval lies above zero."""
    width = pair.difference_interval
    return f"{plus_minus(signed(pair.difference), width)} points", pair.difference > width


def _all(comparison: Comparison) -> int:
    return len(comparison.missing) + sum(len(row.cells) for row in comparison.rows)
