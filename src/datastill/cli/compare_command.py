"""`datastill compare`: a table over methods, sizes and seeds; or over evaluation networks (`--sets ... --on ...`)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datastill.cli.options import (
    DataOptions,
    RuntimeOptions,
    override_options,
    parse,
    parse_settings,
    plain_warnings,
    refuse_void,
)
from datastill.core.ranges import Count, Few, Processes, Seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from datastill.cli.progress import Display
    from datastill.data.real import RealSet
    from datastill.experiments import Comparison
    from datastill.experiments.cells import Cell
    from datastill.launch import Done


@dataclass(frozen=True, kw_only=True)
class CompareData(DataOptions):
    """Which real data: one source or several."""

    #: names or folders of real data; none takes digits, or what --sets were made from
    data: tuple[str, ...] = ()  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class CompareOptions(RuntimeOptions):
    """What to compare."""

    data: CompareData
    methods: tuple[str, ...] = ()  #: names, or files such as my_method.py; Random is always added
    ipc: tuple[Count, ...] = ()  #: images per class, one number or several; 1 if none
    seeds: Few = 3  #: distilled sets of each kind, from seeds 0, 1, ...
    seed_list: tuple[Seed, ...] = ()  #: these seeds instead
    out: Path | None = None  #: folder, runs/compare if none; a comparison of the same settings in it goes on
    #: processes to run cells in, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    protocol: str = "auto"  #: one for all; auto is dsa-quick-v1 from 16 pixels, else dc-v1
    networks: Few = 3  #: fresh networks per distilled set
    network: str | None = None  #: architecture to distill with and to evaluate on; sized to fit if none
    recipe: str = "auto"  #: auto (minutes each on a laptop) or paper (the published settings)
    budget: str | None = None  #: time to distill each set, such as 60s or 5m, instead of what --recipe takes
    optimizer: Literal["auto", "sgd", "adam", "adamw"] = "auto"  #: that trains, at its usual rate; auto: the protocol's
    #: robustness scores too (LRS, ARS): fractions keeps them in [0, 1]; released counts as DD-Ranking's package. Trains
    #: on the whole real set, on hard labels, and with and without augmentation
    scores: Literal["none", "fractions", "released"] = "none"
    set: tuple[str, ...] = ()  #: hyper-parameters of a method, such as dm.steps=60
    #: score these distilled sets, or those of a comparison's folder, on the networks of --on
    sets: tuple[Path, ...] = ()
    on: tuple[str, ...] = ("convnet", "mlp", "lenet")  #: with --sets: evaluation networks
    #: with --sets: fixed, or tuned for each network on real training images held back
    learning_rates: Literal["fixed", "tuned"] = "fixed"
    ledger: Path | None = None  #: a folder that gets a copy of every cell's record
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON instead of a table

    def load(self) -> list[RealSet]:
        """The real sets; digits where none is named."""
        return [dataclasses.replace(self.data, data=name).load() for name in self.data.data or ("digits",)]  # type: ignore[arg-type]


def main(args: list[str]) -> int:
    """Parse and run."""
    text = "One table over methods, sizes and seeds, with Random beside each; or over networks (--sets ... --on ...)."
    kinds = [("compare", CompareOptions), ("changes", override_options())]
    parsed: Any = parse(dataclasses.make_dataclass("Options", kinds, frozen=True), args, "compare", text)
    from datastill.cli.cross import cross

    options, changes = parsed.compare, dataclasses.asdict(parsed.changes)
    if options.sets:
        of_runs = (
            "seeds",
            "seed_list",
            "workers",
            "recipe",
            "budget",
            "set",
            "ledger",
            "precision",
            "optimizer",
            "scores",
        )
        refuse_void(options, of_runs, "with --sets, which makes no sets")
        refuse_void(parsed.changes, tuple(changes), "with --sets, which makes no sets")
    else:
        refuse_void(options, ("on", "learning_rates"), "without --sets")
    if options.seed_list:
        refuse_void(options, ("seeds",), "beside --seed-list")
    with plain_warnings(options.quiet):
        return cross(options) if options.sets else run(options, changes)


def run(options: CompareOptions, changes: dict[str, str]) -> int:
    """Compare, print, write."""
    from datastill.cli.progress import Display
    from datastill.experiments import CellsFailed, compare
    from datastill.experiments.comparison import refuse_comparison

    display = Display(options.quiet or options.json)
    out = options.out or Path("runs/compare")
    refuse_comparison(out, list(options.data.data))
    failed = None
    try:
        with display.bars():
            result = compare(
                options.methods,
                options.load(),
                ipc=options.ipc or (1,),
                seeds=options.seed_list or options.seeds,
                network=options.network,
                protocol=options.protocol,
                networks=options.networks,
                recipe=options.recipe,
                settings=parse_settings(options.set),
                budget=options.budget,
                optimizer=options.optimizer,
                scores=options.scores,
                out=out,
                workers=options.workers,
                **options.engine,
                progress=teller(display),
                started=lambda cells: display.say(_announcement(cells, out)),
                **changes,
            )
    except CellsFailed as error:
        failed, result = error, error.comparison
    if result.rows:
        _print(result, display, options.json)
        _write(result, out, options.ledger)
        display.say(f"Written to {out}: comparison.json, table.md and report.html.")
    if failed is not None:
        raise failed
    return 0


def _announcement(cells: Sequence[Cell], out: Path) -> str:
    methods = dict.fromkeys(cell.method for cell in cells)
    return (
        f"{len(cells)} cells ({', '.join(methods)}) in {out}. A finished one is kept: stop at any time, and run the "
        "same command to go on."
    )


def teller(display: Display) -> Any:
    """Bars in a terminal, else a line for every unit."""
    import sys

    from datastill.cli.progress import ended
    from datastill.experiments.cells import RESULTS
    from datastill.experiments.rates import FOLDER as RATES
    from datastill.experiments.records import CellRecord, RateRecord, WholeRecord
    from datastill.experiments.robust import FOLDER as WHOLE
    from datastill.store.files import read_sealed
    from datastill.store.schema import Record

    in_terminal = sys.stderr.isatty()

    def tell(done: Done) -> None:
        if in_terminal:
            display.update("cells", done.done, done.total, {"minutes left": done.seconds_left / 60})
            if done.failure is None:
                return
        outcome = f"failed: {done.failure.sentence}" if done.failure else "prepared"
        if done.failure is None and done.unit.target.suffix == ".json":
            schemas: dict[str, type[Record]] = {RESULTS: CellRecord, RATES: RateRecord, WHOLE: WholeRecord}
            record = read_sealed(done.unit.target, schemas[done.unit.target.parent.name])
            outcome = f"{100 * record['accuracy']:.1f} %" if "accuracy" in record else f"lr {record['lr']:g}"
        display.say(ended(done, outcome))

    return tell


def _write(result: Comparison, out: Path, ledger: Path | None) -> None:
    from datastill.experiments.page import write_comparison_report
    from datastill.store.files import member, read_sealed, write_json

    write_comparison_report(out / "report.html", result)
    if ledger is not None:
        for row in result.rows:
            for cell in row.cells.values():
                name = f"{cell['cell']}.json"
                write_json(member(ledger, name), read_sealed(member(out / "results", name)))


def _print(result: Comparison, display: Display, as_json: bool) -> None:
    from datastill.experiments.tables import caption, headlines

    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    for data in result.config["data"]:
        if any(row.data == data for row in result.rows):
            display.table(comparison_table(result, data))
    display.out.print(caption(result), style="dim", markup=False)
    for _, what, text in headlines(result):
        display.out.print(f"{what}: {text}", markup=False)


def comparison_table(result: Comparison, data: str) -> Table:
    """Methods by size, on one data set."""
    from rich.table import Table

    from datastill.experiments.tables import cells, measure, score_cells, scores_in

    table, scores = Table(title=f"{data}: protocol {result.protocol}", title_justify="left"), scores_in(result)
    for column in ("ipc", "method", f"{measure(result)} %", "against Random", "to distill", "to evaluate", *scores):
        table.add_column(column, justify="left" if column == "method" else "right")
    for (name, ipc), rows in result.groups().items():
        best = max(row.mean for row in rows)
        for row in rows:
            if name == data:
                shown = *cells(row), *score_cells(row)[: len(scores)]
                table.add_row(str(ipc), *shown, style="bold" if row.mean == best else None)
        table.add_section()
    return table
