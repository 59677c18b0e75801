"""`datastill leak`: what a gradient that is shared tells of the image that it was taken at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datastill.cli.options import DataOptions, parse, plain_warnings
from datastill.core.ranges import Amount, Count, Few, Seed


@dataclass(frozen=True, kw_only=True)
class LeakOptions:
    """Which gradients, and how they are attacked."""

    data: DataOptions
    #: idlg reads the label off the last layer's gradient, dlg looks for it beside the image
    attack: Literal["idlg", "dlg"] = "idlg"
    distance: Literal["mse", "row-cosine", "cos", "l1"] = "mse"  #: of gradients, as in gradient matching
    network: str | None = None  #: whose gradients they are, at random weights; that of the published attacks if none
    images: Few = 5  #: training images, a gradient each
    iterations: Count = 400  #: of L-BFGS with a line search
    restarts: Amount = 5  #: at most, where a search fails
    seed: Seed = 0  #: of the images, the weights and the noise
    out: Path = Path("runs/leakage")  #: folder for leakage.json and leakage.html
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = "Recover labels and images from gradients at single images (DLG, iDLG), beside the truth."
    options = parse(LeakOptions, args, "leak", about)
    with plain_warnings(options.quiet):
        return run(options)


def run(options: LeakOptions) -> int:
    """Attack, print, write."""
    from datastill.apps.leakage.attack import Attack
    from datastill.apps.leakage.leak import HEADS, LEAKAGE, leak
    from datastill.cli.progress import Display
    from datastill.cli.tables import laid_out
    from datastill.data.places import places_of
    from datastill.report.section import Shown, Table
    from datastill.store.outputs import refuse_out

    refuse_out(options.out, places_of(options.data.data), LEAKAGE)
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    attack = Attack(options.attack, options.distance, options.iterations, options.restarts)
    total = options.images * options.iterations
    done = 0

    def told(image: int, loss: float) -> None:
        nonlocal done
        done = max(done + 1, image * options.iterations)
        display.update("attack", min(done, total), total, {"distance": loss})

    with display.bars():
        found = leak(real, attack, network=options.network, images=options.images, seed=options.seed, told=told)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        for part in laid_out(Shown("Gradients", [Table(HEADS, found.rows())])):
            print(part) if isinstance(part, str) else display.table(part)
        print(found.verdict)
    found.write(options.out)
    display.say(f"Written to {options.out}: leakage.json and leakage.html.")
    return 0
