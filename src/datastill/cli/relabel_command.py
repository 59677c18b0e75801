"""`datastill relabel RUN`: a teacher's labels, stored beside a set, so that training on it needs no teacher."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from datastill.cli.options import DeviceOptions, parse, plain_warnings
from datastill.core.ranges import Count, Seed


@dataclass(frozen=True, kw_only=True)
class RelabelOptions(DeviceOptions):
    """Which set, and how its labels are stored."""

    folder: tyro.conf.Positional[Path]  #: folder of a distilled set
    data: str | None = None  #: real data that it was made from; none takes the source that the set names
    protocol: str = (
        "auto"  #: soft-quick-v1, sre2l-cifar-v1, ..., whose views are labeled; auto is what the set asks for
    )
    passes: Count | None = None  #: passes to store; training begins with the first again when they are used up
    teacher: Path | None = None  #: folder of who labels, instead of the teacher that comes with the set
    teacher_network: str | None = None  #: what builds the teacher (my_file.py:Net), where its network is not built in
    dtype: Literal["float16", "int8"] = "float16"  #: of the stored logits: float16 or int8
    top_k: Count | None = None  #: largest logits to keep for each view; none keeps all
    seed: Seed = 0  #: of the views
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was made as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(RelabelOptions, args, "relabel", "Store a teacher's labels beside a distilled set.")
    with plain_warnings(options.quiet):
        return store(options)


def store(options: RelabelOptions) -> int:
    """Label every view, and say what that takes."""
    from datastill.cli.progress import Display
    from datastill.evaluation.inputs import real_for
    from datastill.evaluation.soft import relabel
    from datastill.store.artifact import load_distilled

    display = Display(options.quiet or options.json)
    distilled = load_distilled(options.folder)
    real = real_for(distilled, options.data)
    if options.data is None:
        display.say(f"Real data: {real.source}, which the set names.")
    with display.bars():
        bank = relabel(
            distilled,
            real,
            options.protocol,
            passes=options.passes,
            teacher=options.teacher,
            teacher_network=options.teacher_network,
            dtype=options.dtype,
            top_k=options.top_k,
            seed=options.seed,
            device=options.device,
            progress=display.update,
        )
    told = {"labels": str(bank.folder), "bytes": bank.nbytes, "image_bytes": bank.image_bytes, "passes": bank.epochs}
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        ratio, megabytes = bank.nbytes / bank.image_bytes, bank.image_bytes / 1e6
        display.say(
            f"{bank.epochs} passes of labels in {bank.folder}: {bank.nbytes / 1e6:.2f} MB, {ratio:.1f} times the "
            f"images ({megabytes:.2f} MB at 8 bits)."
        )
        display.say(f"Score it with them: datastill evaluate {shlex.quote(str(options.folder))}")
    return 0
