"""`datastill evaluate FOLDER...`."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from datastill.cli.options import DataOptions, parse, plain_warnings


@dataclass(frozen=True, kw_only=True)
class EvaluateData(DataOptions):
    """The real data; none means what the set was made from."""

    data: str | None = None  # type: ignore[assignment]
    """real data; none takes the source that the set names"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How to score."""

    sets: tyro.conf.Positional[tuple[Path, ...]]  #: folders of distilled sets; three or more give an interval over sets
    data: EvaluateData
    #: dc-v1, dc-v1-dsa, dsa-quick-v1, mtt-v1, mtt-quick-v1, idc-v1, idc-quick-v1, soft-quick-v1, sre2l-cifar-v1,
    #: sre2l-imagenet-v1, dwa-imagenet-v1, tiny-sgd-v1, rded-v1, or auto: what the set asks for
    protocol: str = "auto"
    networks: int = 5  #: fresh networks per set
    #: an architecture, also my_file.py:Net; none takes the one that the set was distilled with, if that is built in
    network: str | None = None
    seed: int = 0  #: of the networks' weights and orders, shared with Random
    labels: str = "auto"  #: where the protocol takes a teacher's labels: auto or soft, or hard to do without
    teacher: Path | None = None  #: folder of who labels, instead of the teacher that comes with each set
    teacher_network: str | None = None  #: what builds that teacher, where its network is not built in
    training: str = "plain"  #: or dfa, selecmix: networks that resist a bias; options as in dfa:steps=4000
    ceiling: bool = False  #: train on the whole real set too (30 passes; its cost is told first, the result cached)
    random: bool = True  #: put Random beside it, from the same initial subsets
    device: str = "auto"  #: auto, cpu, cuda or mps
    precision: str = "float32"  #: of the networks' arithmetic: float32, or bf16 where the processor is fast at it
    compile: str = "auto"  #: compiled code for the networks: auto (in long runs on a CPU), on or off
    out: Path | None = None  #: a JSON file for the result; none keeps it beside the first set
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the result as JSON instead of a table


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(EvaluateOptions, args, "evaluate", "Score distilled sets on test data, with Random beside them.")
    with plain_warnings(options.quiet):
        return score(options)


def score(options: EvaluateOptions) -> int:
    """Evaluate, print, write."""
    from datastill.cli.progress import Display
    from datastill.cli.tables import evaluation_table, group_table
    from datastill.core.cost import describe_seconds, pick_device
    from datastill.core.errors import InputError
    from datastill.core.registry import nominal_seconds
    from datastill.data.places import places_of
    from datastill.evaluation import evaluate
    from datastill.evaluation.ceiling import ceiling_macs
    from datastill.evaluation.inputs import network_for, real_for
    from datastill.report import write_run
    from datastill.store.artifact import load_distilled
    from datastill.store.files import write_json
    from datastill.store.outputs import refuse_out_file

    if not options.sets:
        raise InputError("Name the folder of a distilled set: `datastill evaluate runs/x`.")
    display = Display(options.quiet or options.json)
    sets = [load_distilled(folder) for folder in options.sets]
    target = options.out or options.sets[0] / "evaluation.json"
    source = options.data.data or sets[0].manifest["data"].get("source", "")
    refuse_out_file(target, ("distilled", "protocol"), places_of(source))
    real = options.data.load() if options.data.data is not None else real_for(sets[0], None)
    if options.data.data is None:
        display.say(f"Real data: {real.source}, which the set names.")
    if options.ceiling:
        macs = ceiling_macs(real, network_for(sets[0], real, options.network))
        seconds = nominal_seconds(macs, pick_device(options.device).type)
        display.say(f"The whole real set takes about {describe_seconds(seconds)} more, unless it is cached.")
    with display.bars():
        result = evaluate(
            sets,
            real,
            protocol=options.protocol,
            networks=options.networks,
            network=options.network,
            seed=options.seed,
            random=options.random,
            ceiling=options.ceiling,
            device=options.device,
            precision=options.precision,
            compile=options.compile,
            labels=options.labels,
            teacher=options.teacher,
            teacher_network=options.teacher_network,
            training=options.training,
            progress=display.update,
        )
    record = {**result.to_dict(), "command": shlex.join(["datastill", *sys.argv[1:]])}
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        display.table(evaluation_table(result))
        matrix = group_table(result, real.class_names)
        if matrix is not None:
            display.table(matrix)
        display.out.print(result.verdict)
        for note in result.notes:
            display.say(f"  {note}")
    write_json(target, record)
    if options.out is None:
        write_run(options.sets[0], sets[0], real=real, evaluation=result, sets=sets)
    if not options.json:
        where = "" if options.out else f"; pictures in {options.sets[0] / 'report.html'}"
        display.say(f"Written to {target}{where}.")
    return 0
