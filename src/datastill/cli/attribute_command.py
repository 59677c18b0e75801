"""`datastill attribute METHOD`: what decides within a family of classes, against distilled images of the family."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from datastill.cli.options import DataOptions, parse, parse_settings, plain_warnings
from datastill.core.ranges import Count, Few, Seconds, Seed


@dataclass(frozen=True, kw_only=True)
class AttributeOptions:
    """What is explained, and against what."""

    method: tyro.conf.Positional[str] = "dm"  #: that distills the families: a name, or my_file.py
    data: DataOptions
    #: classes with commas, families with slashes (or |), as in cat,dog/car,truck; auto knows some data sets
    families: str = "auto"
    ipc: Few = 1  #: distilled images of each family; attributions against several are averaged
    budget: Seconds = 60.0  #: seconds of the distillation, where its steps are not set
    set: tuple[str, ...] = ()  #: hyper-parameters of the method, such as dm.steps=200
    network: str | None = None  #: that is explained, and distilled with; a ConvNet that fits if none
    images: Count = 100  #: test images at most
    nodes: Few = 50  #: of the integral
    passes: Few = 3  #: of the network's training over the real set
    explained: Literal["logit", "log-probability"] = "logit"  #: the number whose slopes are summed
    seed: Seed = 0  #: of every random draw
    out: Path = Path("runs/attribution")  #: folder for attribution.json and attribution.html
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = "Explain a network by integrated gradients, against distilled images of coarse classes and other baselines."
    options = parse(AttributeOptions, args, "attribute", about)
    with plain_warnings(options.quiet):
        return run(options)


def run(options: AttributeOptions) -> int:
    """Distill, train, explain, print, write."""
    from datastill.apps.attribution.attribute import ATTRIBUTION, HEADS, attribute
    from datastill.apps.attribution.page import write_attributions
    from datastill.apps.kept import arguments_of
    from datastill.cli.progress import Display, LoopProgress
    from datastill.cli.tables import laid_out
    from datastill.data.places import places_of
    from datastill.report.section import Shown, Table
    from datastill.store.outputs import refuse_out

    refuse_out(options.out, places_of(options.data.data), ATTRIBUTION)
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    with display.bars():
        found = attribute(
            real,
            options.method,
            groups=options.families,
            ipc=options.ipc,
            network=options.network,
            images=options.images,
            nodes=options.nodes,
            passes=options.passes,
            explained=options.explained,
            seed=options.seed,
            progress=display.update,
            callbacks=[LoopProgress(display)],
            **arguments_of([options.method], parse_settings(options.set), options.budget)[options.method],
        )
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        for part in laid_out(Shown("Attributions", [Table(HEADS, found.rows())])):
            print(part) if isinstance(part, str) else display.table(part)
        print(found.verdict)
    write_attributions(options.out, found)
    display.say(f"Written to {options.out}: attribution.json and attribution.html.")
    return 0
