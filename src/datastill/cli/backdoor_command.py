"""`datastill backdoor METHOD`: triggers that are distilled into a set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from datastill.cli.options import DataOptions, parse, parse_settings, plain_warnings
from datastill.core.ranges import Amount, Count, Few, Seconds, Seed, Share


@dataclass(frozen=True, kw_only=True)
class BackdoorOptions:
    """Which attack, on which method."""

    method: tyro.conf.Positional[str] = "dm"  #: of distillation: a name, or my_file.py
    data: DataOptions
    #: doorping learns the trigger along with the set, naive has a white square
    attack: Literal["doorping", "naive"] = "doorping"
    target: Amount = 0  #: the class that triggered images are to be taken for, by position
    fraction: Share = 0.01  #: of the training images that are poisoned
    pixels: Few = 2  #: side of the trigger
    every: Count = 10  #: steps between two updates of a trigger that is learned
    clamp: bool = True  #: keep the trigger in the pixels' range; as published it leaves it
    ipc: Count = 10  #: images per class
    budget: Seconds = 60.0  #: seconds of each of the two distillations, where its steps are not set
    set: tuple[str, ...] = ()  #: hyper-parameters of the method, such as dm.steps=200
    network: str | None = None  #: to distill with and to train; a ConvNet that fits if none
    networks: Few = 3  #: fresh networks that are trained on each set
    protocol: str = "auto"  #: how they are trained; auto takes what the set asks for
    seed: Seed = 0  #: of every random draw
    out: Path = Path("runs/backdoor")  #: folder for backdoor.json and backdoor.html
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = "Distill a set from poisoned images: how good it is on clean ones, how well the trigger works, if it shows."
    options = parse(BackdoorOptions, args, "backdoor", about)
    with plain_warnings(options.quiet):
        return run(options)


def run(options: BackdoorOptions) -> int:
    """Distill twice, try the trigger, look at the sets, print, write."""
    from datastill.apps.backdoor.attack import BACKDOOR, HEADS, backdoor
    from datastill.apps.backdoor.checks import checks
    from datastill.apps.backdoor.page import noticed, told, write_backdoor
    from datastill.apps.kept import arguments_of
    from datastill.cli.progress import Display, LoopProgress
    from datastill.cli.tables import laid_out
    from datastill.data.places import places_of
    from datastill.report.section import Shown, Table
    from datastill.store.outputs import refuse_out

    refuse_out(options.out, places_of(options.data.data), BACKDOOR)
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    with display.bars():
        found = backdoor(
            real,
            options.method,
            options.attack,
            target=options.target,
            fraction=options.fraction,
            size=options.pixels,
            ipc=options.ipc,
            network=options.network,
            networks=options.networks,
            protocol=options.protocol,
            every=options.every,
            clamp=options.clamp,
            seed=options.seed,
            progress=display.update,
            callbacks=[LoopProgress(display)],
            **arguments_of([options.method], parse_settings(options.set), options.budget)[options.method],
        )
    looks = checks(found.sets, real, network=options.network)
    if options.json:
        print(json.dumps(told(found, looks), indent=2))
    else:
        for part in laid_out(Shown("Backdoor", [Table(HEADS, found.rows()), noticed(found, looks)])):
            print(part) if isinstance(part, str) else display.table(part)
        print(found.verdict)
    write_backdoor(options.out, found, real, looks)
    display.say(f"Written to {options.out}: backdoor.json and backdoor.html.")
    return 0
