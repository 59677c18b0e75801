"""`datastill distill METHOD`."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datastill.cli.config_file import Config, config_of
from datastill.cli.options import (
    DataOptions,
    RuntimeOptions,
    helped,
    method_options,
    override_options,
    parse,
    plain_warnings,
    positional_first,
)
from datastill.core.errors import InputError, ShareDone
from datastill.core.ranges import Amount, Count, Processes, Seed
from datastill.core.registry import MethodInfo, get_method, methods, with_overrides

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.distillation.job import Job
    from datastill.store.manifest import Manifest


#: What is taken where no method is named.
UNNAMED = "auto"


@dataclass(frozen=True, kw_only=True)
class RunOptions(RuntimeOptions):
    """What to make and where."""

    config: Path | None = None  #: TOML file of options, such as run.toml of a run; those on the command line win
    out: Path = Path("runs/distilled")  #: folder of the run: distilled set, checkpoints, report
    ipc: Count = 1  #: images per class
    network: str | None = None  #: network to match on, such as convnet:width=64 or my_file.py:Net; sized to fit
    recipe: str = "auto"  #: auto (minutes on a laptop), paper (the published setting), or a recipe's name
    budget: str | None = None  #: time to spend, such as 60s or 5m, instead of what --recipe takes
    seed: Seed = 0  #: of every random draw
    profile: bool = False  #: measure a few steps first, and tell how long this run and the full setting take
    resume: bool = False  #: go on from the checkpoints in --out
    check_every: Amount = 0  #: every so many steps, train a network and show its accuracy on training images
    track: tuple[Literal["tensorboard"], ...] = ()  #: where numbers of each step go besides losses.csv and losses.jsonl
    #: processes for the blocks of methods that have several (sre2l, cda, dwa); ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    shard: str | None = None  #: i/n: recover every n-th block from the i-th on, on one of n machines that share --out
    units: Path | None = None  #: folder where experts and other prepared things are kept and found again; --out if none
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print the manifest as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    name, rest = positional_first(args)
    config = config_of(rest)
    if name is None and config.method is None:
        if helped(args, usage):
            return 0
        if not args:
            raise InputError(
                "Name the data: `datastill distill --data PATH` (and a method, `datastill distill dm --data PATH`; "
                "`datastill methods` lists them)."
            )
        name = UNNAMED
        refuse_options_of_methods([*rest, *(f"--{option}" for option in config.values)])
    info = get_method(name or str(config.method))
    run, data, values = parse_options(info, rest, config=config)
    with plain_warnings(run.quiet):
        try:
            return distill(info, run, data, values)
        except ShareDone as done:
            if run.json:
                print(json.dumps({"share": run.shard, "done": str(done)}, indent=2))
            elif not run.quiet:
                print(done, file=sys.stderr)
            return done.exit_code


def refuse_options_of_methods(args: Sequence[str], command: str = "distill") -> None:
    """Options that only a method has, where none is named."""
    parts = (RunOptions, DataOptions, override_options(), get_method(UNNAMED).cls)
    known = {f.name for part in parts for f in dataclasses.fields(part)}
    for text in args:
        name = text[2:].split("=")[0].replace("-", "_") if text.startswith("--") else ""
        owners = [i.name for i in methods().values() if name in {f.name for f in dataclasses.fields(i.cls)}]
        if owners and name not in known:
            raise InputError(
                f"{text.split('=')[0]} is an option of a method, and none is named: write for instance `datastill "
                f"{command} {'dm' if 'dm' in owners else owners[0]} ...`; leave it out to have the method chosen."
            )


def usage() -> str:
    """What `datastill distill --help` prints."""
    lines = "\n".join(f"  {i.name:<11} {i.summary}" for i in methods().values())
    return (
        "usage: datastill distill [METHOD] [options]\n\n"
        f"Learn a small synthetic training set from your data.\n\nmethods:\n{lines}\n\n"
        "Without a METHOD one that suits the data is taken by a written rule (auto), and the run says which.\n"
        "`datastill distill METHOD --help` shows the options of a method, `datastill methods METHOD` its recipes.\n"
        "A file of your own works too: `datastill distill my_method.py`.\n"
        "`datastill distill --config run.toml` makes a run again: every run writes the file; options beside it win."
    )


def parse_options(
    info: MethodInfo, args: list[str], command: str = "distill", config: Config | None = None
) -> tuple[RunOptions, DataOptions, dict[str, Any]]:
    """The run, the data, and overrides and those hyper-parameters that were given, on the command line or in a file."""
    options = dataclasses.make_dataclass(
        "Options",
        [
            ("run", RunOptions),
            ("data", DataOptions),
            ("changes", override_options()),
            ("method", method_options(info.cls)),
        ],
        frozen=True,
    )
    known = {f.name for cls in (RunOptions, DataOptions, override_options(), info.cls) for f in dataclasses.fields(cls)}
    told, lost = ([], []) if config is None else config.arguments(args, known, info.name)
    parsed: Any = parse(options, [*told, *args], f"{command} {info.name}", f"{info.summary} ({info.paper})")
    if config is not None and lost and not (parsed.run.quiet or parsed.run.json):
        print(f"The command line wins over {config.path}: {', '.join(lost)}.", file=sys.stderr)
    with_overrides(info.cls(), parsed.method)  # refused before the data are read
    return parsed.run, parsed.data, {**parsed.method, **dataclasses.asdict(parsed.changes)}


def distill(info: MethodInfo, run: RunOptions, data: DataOptions, values: dict[str, Any]) -> int:
    """The whole run, with its pictures and report."""
    from datastill.cli.progress import Display, LoopProgress
    from datastill.core.ranks import here
    from datastill.core.runtime import Runtime
    from datastill.distillation.budget import seconds_of
    from datastill.distillation.distill import carry_out, check_out
    from datastill.distillation.job import prepare_job
    from datastill.distillation.parallel import Spread
    from datastill.distillation.preparation import ready_units
    from datastill.evaluation.check import Check, trains_on
    from datastill.report import write_run
    from datastill.report.snapshots import Snapshots
    from datastill.report.tracking import trackers

    display = Display(run.quiet or run.json)
    check_out(run.out, run.resume, data.data)
    asked = trackers(run.track, run.out)
    display.say(f"Reading {data.data} ...")
    real = data.load()
    budget, runtime = seconds_of(run.budget), Runtime.of(**run.engine, progress=display.update)
    settings: dict[str, Any] = {"ipc": run.ipc, "network": run.network, "seed": run.seed, "runtime": runtime, **values}
    job = prepare_job(info.cls, real, recipe=run.recipe, folder=run.units or run.out, **settings)
    display.say(describe_job(job))
    known = run.units is not None and not run.resume and budget is None
    if known and (ready := ready_units(job.plan(), job.task)):
        display.say(f"  taken as they were prepared before, from {run.units}: {', '.join(ready)}")
    if run.profile:
        _say_expected(job, display)
    check = Check(run.check_every) if run.check_every else None
    if check is not None and real.kind != "classes":
        raise InputError("Checks on the way (--check-every) are of classes; evaluate a set of pairs when it is done.")
    if check is not None and (kind := job.own_plan.labels.kind) != trains_on(job.own_plan.labels) == "classes":
        display.say(f"Checks on the way (--check-every) train on classes, not on the labels of the set ({kind}).")
    snapshots = Snapshots()
    shown = (snapshots, check, LoopProgress(display, check), *asked)
    hooks = [h for h in shown if h is not None]
    with display.bars():
        distilled = carry_out(
            job,
            run.out,
            budget=budget,
            resume=run.resume,
            callbacks=hooks,
            spread=Spread(run.workers, parse_shard(run.shard) if run.shard is not None else None),
        )
    command = shlex.join(["datastill", *sys.argv[1:]])
    if not here().first:
        return 0
    try:
        snapshots.save(run.out)
        watched = check.accuracies if check is not None else ()
        write_run(run.out, distilled, real=real, snapshots=snapshots, accuracy=watched, command=command)
    except InputError as error:  # a full disk, most likely
        raise InputError(
            f"{error} The set itself is saved in {run.out}; the same command with --resume writes the pictures and the "
            "report that are missing."
        ) from error
    _say_done(distilled.record, job, run.out, display)
    if run.json:
        print(json.dumps(distilled.manifest, indent=2))
    return 0


def _say_expected(job: Job, display: Display) -> None:
    """How long it will take, and how long the full setting would."""
    from datastill.core.cost import describe_seconds, plural
    from datastill.distillation.budget import estimate_job, paper_of

    told = estimate_job(job, paper_of(job))
    steps = f", {plural(told.steps, 'step')}" if told.steps else ""
    display.say(f"Expected: {describe_seconds(told.seconds)}{steps}.")
    if told.paper_seconds > 1.5 * told.seconds:
        display.say(f"The full setting would take {describe_seconds(told.paper_seconds)} (--recipe paper).")


def _say_done(record: Manifest, job: Job, out: Path, display: Display) -> None:
    """What it took, what there is to know of it, and what comes next."""
    from datastill.core.cost import describe_cost

    cost = record.cost
    display.say(f"Done: {describe_cost(cost.steps, cost.seconds, cost.prepare_seconds)}; saved in {out}.")
    if cost.skipped_steps:
        display.say(f"{cost.skipped_steps} steps were not finite and changed nothing.")
    for note in record.notes:
        if note not in job.remarks:
            display.say(f"  {note}")
    display.say(f"Score it beside a random selection: {scoring(record, out)}")


def scoring(record: Manifest, out: Path) -> str:
    """The command that scores a set, which names a network that is not built in."""
    from datastill.models import is_built_in

    spec = None if record.network is None else record.network.spec
    named = ["--network", spec] if spec is not None and not is_built_in(spec) else []
    return shlex.join(["datastill", "evaluate", str(out), *named])


def describe_job(job: Job) -> str:
    """What is about to be done, in two lines."""
    real, task = job.task.real, job.task
    what, size = f"{len(real):,} images, {real.classes} classes", f"{task.ipc} per class"
    if real.kind == "pairs":
        what, size = f"{len(real):,} pairs", f"{task.ipc} pairs"
    text = (
        f"{job.method_name} on {real.name}: {what}, {'×'.join(map(str, real.shape))}; {size}; {task.network} on "
        f"{task.device.type}"
    )
    compiling = ["networks are compiled, which takes half a minute or more at the start"] if task.compile else []
    return "\n".join([text, *(f"  {note}" for note in (*real.notes, *job.remarks, *compiling))])


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) from "i/n"."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise InputError(f"A share of the blocks is i/n, such as 0/4, not {text!r}.")
    return int(found.group(1)), int(found.group(2))
