"""`datastill frontier`: accuracy against the time that a set costs, for many methods at several budgets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from datastill.cli.options import DataOptions, RuntimeOptions, parse, parse_settings, plain_warnings
from datastill.core.ranges import Count, Few, Processes


@dataclass(frozen=True, kw_only=True)
class FrontierOptions(RuntimeOptions):
    """What to compare."""

    data: DataOptions
    methods: tuple[str, ...] = ("all",)  #: names, or all; random, mosaic and herding are always there, as lines
    ipc: Count = 10  #: images per class
    budgets: tuple[str, ...] = ("30s", "2m", "10m")  #: times for each set
    seeds: Few = 3  #: distilled sets of each kind, from seeds 0, 1, ...
    networks: Few = 3  #: fresh networks per distilled set
    protocol: str = "auto"  #: one for all; auto is dsa-quick-v1 from 16 pixels, else dc-v1
    network: str | None = None  #: architecture to distill with and to evaluate on; sized to fit if none
    out: Path = Path("runs/frontier")  #: folder of comparisons and of the figure; what is finished in it is kept
    #: processes to run cells in, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    set: tuple[str, ...] = ()  #: hyper-parameters of a method, such as mtt.span=2
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON instead of a table


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(FrontierOptions, args, "frontier", "Accuracy against the time that a set costs, method by method.")
    with plain_warnings(options.quiet):
        return run(options)


def run(options: FrontierOptions) -> int:
    """Compare at every budget, print, write."""
    from datastill.cli.compare_command import teller
    from datastill.cli.progress import Display
    from datastill.cli.tables import part_laid_out
    from datastill.experiments.frontier import frontier

    display = Display(options.quiet or options.json)
    display.say(f"Everything finished is kept in {options.out}: stop at any time, and run the same command to go on.")
    with display.bars():
        found = frontier(
            options.methods,
            options.data.load(),
            ipc=options.ipc,
            budgets=options.budgets,
            out=options.out,
            seeds=options.seeds,
            networks=options.networks,
            protocol=options.protocol,
            network=options.network,
            settings=parse_settings(options.set),
            workers=options.workers,
            progress=teller(display),
            **options.engine,
        )
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    for part in () if options.json else found.parts():
        display.out.print(part_laid_out(part), markup=False)
    display.say(f"Written to {options.out}: frontier.json, frontier.md, frontier.svg and frontier.png.")
    return 0
