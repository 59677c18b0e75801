"""`datastill results [FOLDER]`: what was measured, beside what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from datastill.cli.options import parse

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.experiments.ledger import Entry

COLUMNS = ("data", "ipc", "method", "protocol", "sets", "accuracy, %", "against Random", "published, %", "remark")


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Which results."""

    folder: tyro.conf.Positional[Path] = Path("results")  #: of records, at any depth: cells of `compare`, evaluations
    markdown: bool = False  #: print a Markdown table
    json: bool = False  #: print as JSON


def main(args: list[str]) -> int:
    """Parse and print."""
    options = parse(ResultsOptions, args, "results", "Print measured results beside the published numbers.")
    from datastill.cli.progress import Display
    from datastill.experiments.ledger import read_ledger

    entries, others = read_ledger(options.folder)
    display = Display(options.json or options.markdown)
    if options.json:
        print(json.dumps([entry.to_dict() for entry in entries], indent=2))
    elif options.markdown:
        print(markdown(entries))
    else:
        _print(entries, display)
    if others:
        shown = ", ".join(str(path) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        display.say(f"Left out, since they hold no result: {shown}")
    return 0


def cells(entry: Entry) -> list[str]:
    """A row of the table, as text."""
    from datastill.experiments.tables import plus_minus
    from datastill.report.words import percent, signed

    row, known = entry.row, entry.published
    published = "–"
    if known is not None:
        published = percent(known.accuracy) + (f" ± {percent(known.std)}" if known.std else "")
    return [
        row.data,
        str(row.ipc),
        entry.label,
        entry.protocol,
        str(len(row.seeds)),
        plus_minus(percent(row.mean), row.interval),
        plus_minus(signed(row.difference), row.difference_interval),
        published,
        entry.remark,
    ]


def markdown(entries: Sequence[Entry]) -> str:
    """A Markdown table."""
    from datastill.report import words

    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---:|---|---|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(words.markdown(text) for text in cells(entry))} |" for entry in entries]
    return "\n".join(lines)


def _print(entries: Sequence[Entry], display: Display) -> None:
    from rich.table import Table

    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("data", "method", "protocol", "remark") else "right")
    before = None
    for entry in entries:
        scene = entry.row.data, entry.protocol, entry.row.ipc
        if before not in (None, scene):
            table.add_section()
        before = scene
        table.add_row(*cells(entry))
    display.table(table)
    display.say("± is half of a 95 % interval, over sets where there are three or more, else over networks.")
    display.say("Published: mean ± standard deviation over networks, as the paper has it.")
