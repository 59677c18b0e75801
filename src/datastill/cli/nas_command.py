"""`datastill nas METHODS`: architecture search on distilled sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from datastill.cli.options import DataOptions, PrecisionOptions, parse, parse_settings, plain_warnings
from datastill.core.ranges import Amount, Count, Few, Processes, Seconds, Seed, Weight


@dataclass(frozen=True, kw_only=True)
class NasOptions(PrecisionOptions):
    """Which networks, and what they are trained on."""

    methods: tyro.conf.Positional[tuple[str, ...]] = ("random", "dm")  #: that make the proxies
    data: DataOptions
    grid: Literal["mini", "whole"] = "mini"  #: of ConvNets: 24, or the 720 of the published experiment
    sample: Amount = 0  #: so many networks of the grid, drawn; 0 takes all
    heaviest: Weight = 0.0  #: leave out networks of more million multiply-accumulates an image; 0 takes all
    images: Amount = 0  #: training images, drawn, that stand for the whole set; 0 takes all
    ipc: Count = 10  #: images of each class in a proxy
    passes: Few = 100  #: of the training on a proxy
    whole_passes: Few = 20  #: of the training on the whole set
    network: str | None = None  #: to distill with; a ConvNet that fits if none
    budget: Seconds = 60.0  #: seconds of each method whose steps are not set
    set: tuple[str, ...] = ()  #: hyper-parameters of a method, such as dm.steps=200
    #: processes that train, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    seed: Seed = 0  #: of the proxies, the weights and the orders
    out: Path = Path("runs/nas")  #: folder for the results; the same command goes on in it
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = "Train many networks on distilled sets and on the whole set, and compare the two rankings."
    options = parse(NasOptions, args, "nas", about)
    with plain_warnings(options.quiet):
        return run(options)


def run(options: NasOptions) -> int:
    """Train, compare, print, write."""
    from datastill.apps.search.page import write_search
    from datastill.apps.search.run import SEARCH, Search, search
    from datastill.cli.progress import Display
    from datastill.cli.tables import laid_out
    from datastill.data.places import places_of
    from datastill.report.section import Shown, Table
    from datastill.store.outputs import refuse_out

    refuse_out(options.out, places_of(options.data.data), SEARCH)
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    asked = Search(options.grid, options.sample, options.ipc, options.passes, options.whole_passes,
                   heaviest=options.heaviest, images=options.images)  # fmt: skip
    display.say(f"Every network's accuracy is kept in {options.out}: the same command goes on there.")
    with display.bars():
        found = search(
            real,
            options.methods,
            asked,
            settings=parse_settings(options.set),
            budget=options.budget,
            network=options.network,
            seed=options.seed,
            out=options.out,
            device=options.device,
            precision=options.precision,
            workers=options.workers,
            told=lambda done, total, what: display.update("networks", done, total, {}),
        )
    write_search(options.out, found)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    for part in laid_out(Shown("Rankings", [Table(list(found.HEADS), found.rows())])):
        print(part) if isinstance(part, str) else display.table(part)
    print(found.verdict)
    display.say(f"Written to {options.out}: search.json and search.html.")
    return 0
