"""`datastill demo`: the whole way on the embedded digits, in about half a minute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datastill.cli.options import parse, plain_warnings
from datastill.core.ranges import Count, Few

if TYPE_CHECKING:
    from datastill.cli.progress import Display


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Where to write, and how long."""

    out: Path = Path("runs/demo")  #: folder for the pictures and the report; an earlier demo there is replaced
    sets: Few = 5  #: distilled sets, each from its own seed
    networks: Few = 2  #: fresh networks per set
    steps: Count = 150  #: image updates per set
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(DemoOptions, args, "demo", "Distill the digits to one image per class, beside random ones.")
    with plain_warnings(options.quiet):
        return demo(options)


def demo(options: DemoOptions) -> int:
    """Distill, evaluate, draw."""
    from datastill.cli.progress import Display
    from datastill.store.folders import held
    from datastill.store.outputs import DEMO, refuse_out

    display = Display(options.quiet or options.json)
    refuse_out(options.out, kind=DEMO)
    with held(options.out):
        return _demo(options, display)


def _demo(options: DemoOptions, display: Display) -> int:
    from datastill.cli.progress import LoopProgress
    from datastill.cli.tables import evaluation_table
    from datastill.data import load_real
    from datastill.distillation.distill import distill, remove_run
    from datastill.evaluation import evaluate
    from datastill.report import write_run
    from datastill.report.folder import LOSSES
    from datastill.report.snapshots import Snapshots
    from datastill.store.files import read_tensors, write_json

    real = load_real("digits:")
    for old in options.out.glob("set-*"):
        remove_run(old)
    display.say(f"Distilling {len(real)} handwritten digits (8×8) to one image per class with DM.")
    sets, first = [], Snapshots()
    for seed in range(options.sets):
        snapshots = first if seed == 0 else Snapshots()
        with display.bars():
            sets.append(
                distill(
                    "dm",
                    real,
                    ipc=1,
                    steps=options.steps,
                    real_batch=32,
                    seed=seed,
                    out=options.out / f"set-{seed}",
                    callbacks=[snapshots, LoopProgress(display)],
                )
            )
    display.say("Training networks on each distilled set, and on the random images that each began as.")
    with display.bars():
        result = evaluate(sets, real, networks=options.networks, progress=display.update)
    write_json(options.out / "evaluation.json", result.to_dict())
    write_run(
        options.out,
        sets[0],
        real=real,
        evaluation=result,
        sets=sets,
        snapshots=first,
        losses=read_tensors(options.out / "set-0" / LOSSES)[0]["losses"],
        command="datastill demo",
    )
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        display.table(evaluation_table(result))
        display.out.print(result.verdict)
        display.say(f"Pictures: {options.out / 'comparison.png'} and {options.out / 'report.html'}.")
        display.say("Next: datastill distill --data YOUR_FOLDER --ipc 10 --out runs/mine")
    return 0
