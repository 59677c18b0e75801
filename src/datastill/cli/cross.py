"""`datastill compare --sets ... --on ...`: sets that are there, on several networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from datastill.core.errors import InputError

if TYPE_CHECKING:
    from datastill.cli.compare_command import CompareOptions
    from datastill.cli.progress import Display
    from datastill.experiments import CrossMatrix


def cross(options: CompareOptions) -> int:
    """Score sets on several networks, print, write."""
    from datastill.cli.progress import Display
    from datastill.data.places import places_of
    from datastill.experiments import cross_architecture
    from datastill.store.files import write_json, write_text
    from datastill.store.outputs import MATRIX, refuse_out

    if options.methods:
        raise InputError("--sets scores sets that are there, --methods makes new ones; give one of the two.")
    if len(options.data.data) > 1:
        raise InputError("--sets takes one data set; name it once, or leave --data out.")
    out = options.out or Path("runs/cross")
    refuse_out(out, [place for name in options.data.data for place in places_of(name)], MATRIX)
    display = Display(options.quiet or options.json)
    with display.bars():
        matrix = cross_architecture(
            _sets(options),
            options.load()[0] if options.data.data else None,
            options.on,
            protocol=options.protocol,
            repeats=options.networks,
            learning_rates=options.learning_rates,
            device=options.device,
            compile=options.compile,
            progress=lambda name, done, total: display.update("evaluating", done, total, {}),
        )
    if options.json:
        print(json.dumps(matrix.to_dict(), indent=2))
    else:
        _print_matrix(matrix, display)
    write_json(out / "cross.json", matrix.to_dict())
    write_text(out / "cross.md", matrix.table())
    display.say(f"Written to {out}: cross.json and cross.md.")
    return 0


def _sets(options: CompareOptions) -> list[Path]:
    """Run folders; the folder of a comparison stands for its cells, of the size in --ipc where it has several."""
    from datastill.experiments import load_comparison

    found: list[Path] = []
    for folder in options.sets:
        if not (folder / "plan.json").is_file():
            found.append(folder)
            continue
        comparison = load_comparison(folder)
        rows = [row for row in comparison.rows if not options.ipc or row.ipc in options.ipc]
        data = {row.data for row in rows}
        if len(data) > 1:
            raise InputError(f"{folder} compares {', '.join(sorted(data))}; give the run folders of one data set.")
        found += [path for row in rows for seed in row.seeds if (path := comparison.cell_folder(row, seed))]
    if not found:
        raise InputError("There is no finished set of that size in the folder of --sets.")
    return found


def _print_matrix(matrix: CrossMatrix, display: Display) -> None:
    from rich.table import Table

    table = Table(title=f"{matrix.data}, ipc {matrix.ipc}: test accuracy %", title_justify="left")
    table.add_column("method")
    for network in matrix.networks:
        table.add_column(network, justify="right")
    for method in matrix.methods:
        table.add_row(method, *(matrix.cell(method, network) for network in matrix.networks))
    table.add_section()
    for name, found in (("Kendall's tau", matrix.kendall), ("Spearman's rho", matrix.spearman)):
        values = ["–" if math.isnan(v) else f"{v:.2f}" for v in found[0].tolist()]
        table.add_row(name, *values, style="dim")
    display.table(table)
    display.out.print(matrix.caption(), style="dim", markup=False)
