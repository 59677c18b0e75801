"""The page of a ledger: one HTML file that needs nothing beside it, sorted and searched where it is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from datastill._version import __version__
from datastill.core.errors import InputError
from datastill.experiments.entries import Entry
from datastill.experiments.ledger import Ledger
from datastill.experiments.settings import BASELINE
from datastill.experiments.tables import plus_minus
from datastill.report import words
from datastill.report.html import render
from datastill.store.files import write_text
from datastill.store.sizes import bytes_in_words


def write_leaderboard(path: str | Path, ledger: Ledger, title: str = "Measured results") -> Path:
    """Write the page.

    Args:
        path: the HTML file.
        ledger: what `read_ledger` found.
        title: its headline.

    Raises:
        InputError: there is no row, or the file cannot be written.
    """
    if not ledger.entries:
        raise InputError("There is no result to show.")
    write_text(Path(path), render(page(ledger, title), "leaderboard.html.j2"))
    return Path(path)


def page(ledger: Ledger, title: str) -> dict[str, Any]:
    """Everything that the template names."""
    rows = [_row(entry) for entry in ledger.entries]
    sets = sum(len(entry.row.seeds) for entry in ledger.entries)
    methods = {entry.row.method for entry in ledger.entries} - {BASELINE}
    return {
        "title": title,
        "lead": f"{words.plural(len(rows), 'row')} of {words.plural(sets, 'set')} by "
        f"{words.plural(len(methods), 'method')}, each with Random under the same protocol where it was measured.",
        "rows": rows,
        "choices": [
            (name, label, sorted({row[name] for row in rows}, key=_natural))
            for name, label in (("data", "data"), ("ipc", "ipc"), ("protocol", "protocol"))
        ],
        "unreliable": sum(bool(row["unreliable"]) for row in rows),
        "damaged": [words.without_paths(text) for text in ledger.damaged],
        "version": __version__,
    }


def _row(entry: Entry) -> dict[str, Any]:
    """One row as text, with the numbers to sort by; None sorts last."""
    row, known = entry.row, entry.published
    reported = "" if known is None else words.with_interval(known.accuracy, known.std or math.nan)
    seconds = row.distillation_seconds
    clear = row.paired is not None and abs(row.difference) > row.difference_interval
    return {
        "data": row.data,
        "ipc": f"{row.ipc:,}",
        "label": entry.label,
        "random": row.method == BASELINE,
        "protocol": entry.protocol,
        "network": entry.to_dict()["network"],
        "sets": f"{len(row.seeds)} × {row.arm.accuracies.shape[1]}",
        "accuracy": plus_minus(words.percent(row.mean), row.interval),
        "difference": plus_minus(words.signed(row.difference), row.difference_interval) if row.paired else "",
        "outcome": ("win" if row.difference > 0 else "loss") if clear else "open",
        "reported": reported,
        "source": "" if known is None else known.source,
        "remark": entry.remark,
        "time": words.duration(seconds) if seconds else "",
        "bytes": "" if entry.bytes is None or row.method == BASELINE else bytes_in_words(entry.bytes),
        "commit": entry.commit,
        "hardware": entry.hardware,
        "unreliable": entry.unreliable,
        "files": entry.files,
        "command": words.without_paths(str(entry.cells[0].get("command") or "")),
        "sort": {
            "ipc": row.ipc,
            "accuracy": _number(row.mean),
            "difference": _number(row.difference),
            "reported": None if known is None else known.accuracy,
            "time": seconds or None,
            "bytes": entry.bytes if row.method != BASELINE else None,
        },
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _natural(text: str) -> tuple[int, str]:
    plain = text.replace(",", "")
    return (int(plain), "") if plain.isdigit() else (0, text)
