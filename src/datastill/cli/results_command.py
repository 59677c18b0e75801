"""`datastill results [FOLDER]`: what was measured, beside what was published; a page of it; a check of what is sent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from datastill.cli.options import parse

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.experiments.ledger import Entry

COLUMNS = ("data", "ipc", "method", "protocol", "sets", "accuracy, %", "against Random", "reported, %", "remark")


@dataclass(frozen=True, kw_only=True)
class ResultsOptions:
    """Which results."""

    folder: tyro.conf.Positional[Path] = Path("results")  #: of records, at any depth: cells of `compare`, evaluations
    page: Path | None = None  #: write an HTML page that can be sorted and searched, one file
    check: tuple[Path, ...] = ()  #: say whether these files are results as the ledger takes them, and read nothing else
    template: bool = False  #: print a result to fill in, for code other than datastill's
    markdown: bool = False  #: print a Markdown table
    json: bool = False  #: print as JSON


def main(args: list[str]) -> int:
    """Parse and print."""
    options = parse(ResultsOptions, args, "results", "Print measured results beside the published numbers.")
    from datastill.cli.progress import Display
    from datastill.experiments.ledger import read_ledger

    if options.template:
        from datastill.experiments.submitted import TEMPLATE

        print(json.dumps(TEMPLATE, indent=2, ensure_ascii=False))
        return 0
    if options.check:
        return _check(options.check)
    if options.page is not None:
        _refuse_page(options.page)
    ledger = read_ledger(options.folder)
    entries, others, damaged = ledger
    display = Display(options.json or options.markdown)
    for text in damaged:
        print(f"datastill: kept out: {text}", file=sys.stderr)
    if options.page is not None:
        from datastill.experiments.leaderboard import write_leaderboard

        write_leaderboard(options.page, ledger)
        display.say(f"Written to {options.page}: {len(entries)} rows.")
    elif options.json:
        print(json.dumps([entry.to_dict() for entry in entries], indent=2))
    elif options.markdown:
        print(markdown(entries))
    else:
        _print(entries, display)
    if others:
        shown = ", ".join(str(path) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        display.say(f"Left out, since they hold no result: {shown}")
    return 0


def _check(paths: Sequence[Path]) -> int:
    """One line for each file.

    Raises:
        InputError: the first that is no result, or breaks the schema; the field is named.
    """
    from datastill.core.errors import InputError
    from datastill.experiments.ledger import records_in
    from datastill.store.files import read_json

    for path in paths:
        read_json(path)
        found = [record for _, record in records_in(path)]
        if not found:
            raise InputError(
                f"{path} holds no result: send a record of `datastill compare`, what `datastill evaluate` wrote, or a "
                "filled-in `datastill results --template`."
            )
        named = dict.fromkeys(f"{one['method']} on {one['real']['name']}, ipc {one['ipc']}" for one in found)
        print(f"{path}: a result: {'; '.join(named)}, protocol {found[0]['protocol']}")
    return 0


def _refuse_page(path: Path) -> None:
    """Refuse a place that is no HTML file, before anything is read."""
    from datastill.core.errors import InputError
    from datastill.store.opening import sound_path

    sound_path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"A page is an HTML file, such as results.html, not {path} (--page).")


def cells(entry: Entry) -> list[str]:
    """A row of the table, as text."""
    from datastill.experiments.tables import plus_minus
    from datastill.report.words import percent, signed, with_interval

    row, known = entry.row, entry.published
    reported = "–"
    if known is not None:
        reported = with_interval(known.accuracy, known.std or math.nan)
    remark = f"unreliable: {entry.unreliable}" if entry.unreliable else entry.remark
    return [
        row.data,
        str(row.ipc),
        entry.label,
        entry.protocol,
        str(len(row.seeds)),
        plus_minus(percent(row.mean), row.interval),
        plus_minus(signed(row.difference), row.difference_interval),
        reported,
        remark,
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
    display.say("Reported: mean ± standard deviation over networks, as the paper has it.")
