"""`datastill compare`: a table over methods, sizes and seeds; or over evaluation networks (`--sets ... --on ...`)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datastill.cli.options import (
    DataOptions,
    RuntimeOptions,
    override_options,
    parse,
    plain_warnings,
    refuse_void,
    value_of,
)
from datastill.core.errors import InputError
from datastill.core.ranges import Count, Few, Processes, Seed

if TYPE_CHECKING:
    from rich.table import Table

    from datastill.cli.progress import Display
    from datastill.experiments import Comparison, CrossMatrix
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
    budget: str | None = None  #: time to distill each set, such as 60s or 5m, instead of auto's two minutes
    set: tuple[str, ...] = ()  #: hyper-parameters of a method, such as dm.steps=60
    #: score these distilled sets, or those of a comparison's folder, on the networks of --on
    sets: tuple[Path, ...] = ()
    on: tuple[str, ...] = ("convnet", "mlp", "lenet")  #: with --sets: evaluation networks
    #: with --sets: fixed, or tuned for each network on real training images held back
    learning_rates: Literal["fixed", "tuned"] = "fixed"
    ledger: Path | None = None  #: a folder that gets a copy of every cell's record
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON instead of a table


def main(args: list[str]) -> int:
    """Parse and run."""
    text = "One table over methods, sizes and seeds, with Random beside each; or over networks (--sets ... --on ...)."
    kinds = [("compare", CompareOptions), ("changes", override_options())]
    parsed: Any = parse(dataclasses.make_dataclass("Options", kinds, frozen=True), args, "compare", text)
    options, changes = parsed.compare, dataclasses.asdict(parsed.changes)
    if options.sets:
        of_runs = ("seeds", "seed_list", "workers", "recipe", "budget", "set", "ledger", "precision")
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
    from datastill.cli.distill_command import parse_seconds
    from datastill.cli.progress import Display
    from datastill.experiments import CellsFailed, compare
    from datastill.experiments.comparison import refuse_comparison

    display = Display(options.quiet or options.json)
    out = options.out or Path("runs/compare")
    refuse_comparison(out, list(options.data.data))
    if options.methods:
        display.say(_announcement(options, out))
    failed = None
    try:
        with display.bars():
            result = compare(
                options.methods,
                _load(options),
                ipc=options.ipc or (1,),
                seeds=options.seed_list or options.seeds,
                network=options.network,
                protocol=options.protocol,
                networks=options.networks,
                recipe=options.recipe,
                settings=parse_settings(options.set),
                budget=None if options.budget is None else parse_seconds(options.budget),
                out=out,
                workers=options.workers,
                **options.engine,
                progress=teller(display),
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


def _announcement(options: CompareOptions, out: Path) -> str:
    methods = list(dict.fromkeys(["random", *options.methods]))
    sets = len(options.data.data or ("digits",)) * len(options.ipc or (1,)) * (len(options.seed_list) or options.seeds)
    return (
        f"{len(methods) * sets} cells ({', '.join(methods)}) in {out}. A finished one is kept: stop at any time, and "
        "run the same command to go on."
    )


def _load(options: CompareOptions) -> Any:
    return [dataclasses.replace(options.data, data=name).load() for name in options.data.data or ("digits",)]  # type: ignore[arg-type]


def parse_settings(given: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Settings by method out of "dm.steps=60"; values as JSON, else as words."""
    settings: dict[str, dict[str, Any]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        method, dot, name = key.strip().rpartition(".")
        if not (equals and dot and method and name):
            raise InputError(f"Cannot read --set {text!r}; write it as METHOD.NAME=VALUE, such as dm.steps=60.")
        settings.setdefault(method, {})[name.replace("-", "_")] = value_of(value)
    return settings


def teller(display: Display) -> Any:
    """Bars in a terminal, else a line for every unit."""
    import sys

    from datastill.cli.progress import ended
    from datastill.experiments.cells import RESULTS
    from datastill.experiments.records import CellRecord, RateRecord
    from datastill.store.files import read_sealed

    in_terminal = sys.stderr.isatty()

    def tell(done: Done) -> None:
        if in_terminal:
            display.update("cells", done.done, done.total, {"minutes left": done.seconds_left / 60})
            if done.failure is None:
                return
        outcome = f"failed: {done.failure.sentence}" if done.failure else "prepared"
        if done.failure is None and done.unit.target.suffix == ".json":
            schema = CellRecord if done.unit.target.parent.name == RESULTS else RateRecord
            record = read_sealed(done.unit.target, schema)
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

    from datastill.experiments.tables import cells

    table = Table(title=f"{data}: protocol {result.protocol}", title_justify="left")
    for column in ("ipc", "method", "test accuracy %", "against Random", "to distill", "to evaluate"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for (name, ipc), rows in result.groups().items():
        best = max(row.mean for row in rows)
        for row in rows:
            if name == data:
                table.add_row(str(ipc), *cells(row), style="bold" if row.mean == best else None)
        table.add_section()
    return table


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
            _load(options)[0] if options.data.data else None,
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
