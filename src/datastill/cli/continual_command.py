"""`datastill continual METHODS`: classes that arrive in steps, remembered as distilled sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from datastill.cli.options import DataOptions, parse, parse_settings, plain_warnings
from datastill.core.ranges import Count, Few, Seconds, Seed


@dataclass(frozen=True, kw_only=True)
class ContinualOptions:
    """What arrives, and how it is remembered."""

    methods: tyro.conf.Positional[tuple[str, ...]] = ("random", "dm")  #: of distillation or selection
    data: DataOptions
    steps: Few = 5  #: in which the classes arrive
    ipc: Count = 10  #: images of each class in the memory
    orders: Few = 1  #: of classes, as in the published experiments; results are their mean
    networks: Few = 3  #: fresh networks after each step
    protocol: str = "dsa-quick-v1"  #: how they are trained, for all methods
    network: str | None = None  #: to distill with and to train; a ConvNet that fits if none
    budget: Seconds = 60.0  #: seconds at each step of a method whose steps are not set
    set: tuple[str, ...] = ()  #: hyper-parameters of a method, such as dm.steps=200
    seed: Seed = 0  #: of distillation and training
    out: Path = Path("runs/continual")  #: folder for memories and results; the same command goes on in it
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = "Let classes arrive in steps, remember each as a few distilled images, and train on the memory alone."
    options = parse(ContinualOptions, args, "continual", about)
    with plain_warnings(options.quiet):
        return run(options)


def run(options: ContinualOptions) -> int:
    """All steps, the table, the page."""
    from datastill.apps.continual.page import write_stream
    from datastill.apps.continual.run import CONTINUAL, Stream, continual
    from datastill.cli.progress import Display
    from datastill.cli.tables import laid_out
    from datastill.data.places import places_of
    from datastill.report.section import Shown, Table
    from datastill.store.outputs import refuse_out

    refuse_out(options.out, places_of(options.data.data), CONTINUAL)
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    stream = Stream(options.steps, options.ipc, options.orders, options.networks, options.protocol)
    display.say(f"Every finished step is kept in {options.out}: the same command goes on there.")
    with display.bars():
        found = continual(
            real,
            options.methods,
            stream,
            network=options.network,
            settings=parse_settings(options.set),
            budget=options.budget,
            seed=options.seed,
            out=options.out,
            told=lambda done, total, what: display.update("steps", done, total, {}),
        )
    write_stream(options.out, found)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    for part in laid_out(Shown("Accuracy", [Table(found.heads, found.rows())])):
        print(part) if isinstance(part, str) else display.table(part)
    print(found.verdict)
    display.say(f"Written to {options.out}: continual.json and continual.html.")
    return 0
