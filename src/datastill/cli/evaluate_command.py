"""`datastill evaluate FOLDER...`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from datastill.cli.options import DataOptions, RuntimeOptions, parse, plain_warnings, refuse_void
from datastill.core.ranges import Few, Seed

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.data.real import RealSet
    from datastill.evaluation import Evaluation
    from datastill.report.section import Reading
    from datastill.store.artifact import DistilledSet


@dataclass(frozen=True, kw_only=True)
class EvaluateData(DataOptions):
    """The real data; none means what the set was made from."""

    #: real data; none takes the source that the set names
    data: str | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RuntimeOptions):
    """How to score."""

    #: folders of distilled sets, or hub:NAME/SET; three or more give an interval over sets
    sets: tyro.conf.Positional[tuple[Path, ...]]
    data: EvaluateData
    #: dc-v1, dc-v1-dsa, dsa-quick-v1, mtt-v1, mtt-quick-v1, idc-v1, idc-quick-v1, soft-quick-v1, sre2l-cifar-v1,
    #: sre2l-imagenet-v1, dwa-imagenet-v1, tiny-sgd-v1, rded-v1, rd3-v1, g-vbsm-cifar-v1, edc-imagenet-v1,
    #: sre2l-plus-v1, frepo-v1, frepo-quick-v1, krr-v1, krr-conv-v1, dd-v1, or auto: what the set asks for
    protocol: str = "auto"
    networks: Few = 5  #: fresh networks per set
    #: an architecture, also my_file.py:Net; none takes the one that the set was distilled with, if that is built in
    network: str | None = None
    seed: Seed = 0  #: of the networks' weights and orders, shared with Random
    #: where the protocol takes a teacher's labels: auto or teacher, at training time; soft, one for each image; hard
    labels: Literal["auto", "hard", "soft", "teacher"] = "auto"
    regimes: tuple[Literal["hard", "soft", "teacher"], ...] = ()  #: score under several kinds of labels, in one table
    teacher: Path | None = None  #: folder of who labels, instead of the teacher that comes with each set
    teacher_network: str | None = None  #: what builds that teacher, where its network is not built in
    training: str = "plain"  #: or dfa, selecmix: networks that resist a bias; options as in dfa:steps=4000
    optimizer: Literal["auto", "sgd", "adam", "adamw"] = "auto"  #: that trains, at its usual rate; auto: the protocol's
    augmented: bool = True  #: with the protocol's augmentation; without it, on images as they are
    #: robustness scores with their parts (LRS, ARS): fractions keeps them in [0, 1]; released counts as DD-Ranking's
    #: package. Trains on the whole real set too, on hard labels, and without augmentation
    scores: Literal["none", "fractions", "released"] = "none"
    #: train on the whole real set too (30 passes, of pairs 50; its cost is told first, the result cached)
    ceiling: bool = False
    random: bool = True  #: put Random beside it, from the same initial subsets
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
    from datastill.core.errors import InputError
    from datastill.data.places import places_of
    from datastill.evaluation import evaluate, evaluate_robustness
    from datastill.evaluation.inputs import real_for
    from datastill.report import write_run
    from datastill.report.section import Reading
    from datastill.store.artifact import load_distilled
    from datastill.store.outputs import refuse_out_file

    if not options.sets:
        raise InputError("Name the folder of a distilled set: `datastill evaluate runs/x`.")
    if options.data.data is None:
        of_data = ("size", "mode", "skip_bad", "follow_links", "space")
        refuse_void(options.data, of_data, "without --data: the set says how its real data are read")
    display = Display(options.quiet or options.json)
    sets = [load_distilled(folder) for folder in options.sets]
    _refuse_unfit(options, sets)
    target = _target(options)
    source = options.data.data or sets[0].record.data.source
    if target is not None:
        refuse_out_file(target, ("regimes",) if options.regimes else ("distilled", "protocol"), places_of(source))
    real = options.data.load() if options.data.data is not None else real_for(sets[0], None)
    if options.data.data is None:
        display.say(f"Real data: {real.source}, which the set names.")
    if options.ceiling or options.scores != "none":
        _foretell(options, sets, real, display)
    names: tuple[str, ...] = ("protocol", "networks", "network", "seed", "random", "ceiling")
    names += ("labels", "teacher", "teacher_network", "training", "optimizer", "augmented")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.regimes:
        return _score_regimes(options, sets, real, {**settings, **options.engine}, target, display)
    how: Callable[..., Evaluation] = evaluate
    if options.scores != "none":
        how, settings = evaluate_robustness, _for_scores(options, settings)
    with display.bars():
        result = how(sets, real, **settings, **options.engine, progress=display.update)
    record = {**result.to_dict(), "command": shlex.join(["datastill", *sys.argv[1:]])}
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        _print(result, real.class_names, display)
        _print_sections(Reading(sets, result, real), display)
    where = ""
    if options.out is None and target is not None:
        write_run(options.sets[0], sets[0], real=real, evaluation=result, sets=sets)
        where = f"; pictures in {options.sets[0] / 'report.html'}"
    _keep(target, record, where, display)
    return 0


def _target(options: EvaluateOptions) -> Path | None:
    """Where the result is kept; None for a set of the Hub, which has no folder of the user's."""
    from datastill.store.hub import hub_name

    if options.out is not None or hub_name(options.sets[0]) is not None:
        return options.out
    return options.sets[0] / ("regimes.json" if options.regimes else "evaluation.json")


def _keep(target: Path | None, record: dict[str, Any], where: str, display: Display) -> None:
    from datastill.store.files import write_json

    if target is None:
        display.say("Nothing was written; --out names a JSON file for the result.")
        return
    write_json(target, record)
    display.say(f"Written to {target}{where}.")


def _refuse_unfit(options: EvaluateOptions, sets: list[DistilledSet]) -> None:
    """Refuse options that do not go together, or not with the sets, before any data are read.

    Raises:
        InputError: the first of them.
    """
    from datastill.core.errors import InputError
    from datastill.evaluation.robustness import refuse_unscored
    from datastill.evaluation.settled import Variation, check_labels, protocol_of

    if options.regimes and options.labels != "auto":
        raise InputError("Name the kinds of labels in --regimes alone; leave --labels out.")
    first, protocol = sets[0], protocol_of(sets[0], options.protocol)
    if not options.regimes:
        check_labels(sets, protocol, Variation(options.labels, options.teacher, options.teacher_network))
    if options.scores == "none":
        return
    if options.regimes:
        raise InputError("The scores have their own kinds of labels; leave --scores or --regimes out.")
    if not options.random or not options.augmented or options.training != "plain":
        raise InputError(
            "The scores need Random, and train with and without augmentation; leave --no-random, --no-augmented and "
            "--training out."
        )
    refuse_unscored(first.label_kind, first.name, protocol)


def _for_scores(options: EvaluateOptions, settings: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate_robustness` takes, which settles the others itself."""
    settled = ("random", "ceiling", "augmented", "training")
    return {"arithmetic": options.scores} | {name: value for name, value in settings.items() if name not in settled}


def _score_regimes(
    options: EvaluateOptions,
    sets: list[DistilledSet],
    real: RealSet,
    settings: dict[str, Any],
    target: Path | None,
    display: Display,
) -> int:
    """The sets under several kinds of labels: one table, one file."""
    from datastill.cli.tables import regimes_table
    from datastill.evaluation import evaluate_regimes

    del settings["labels"]
    with display.bars():
        found = evaluate_regimes(sets, real, regimes=options.regimes, **settings, progress=display.update)
    record = {
        "regimes": {name: one.to_dict() for name, one in found.items()},
        "command": shlex.join(["datastill", *sys.argv[1:]]),
    }
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        display.table(regimes_table(found))
        for name, one in found.items():
            display.out.print(f"{name}: {one.verdict}")
            for note in one.notes:
                display.say(f"  {note}")
    _keep(target, record, "", display)
    return 0


def _foretell(options: EvaluateOptions, sets: list[DistilledSet], real: RealSet, display: Display) -> None:
    """What the whole real set takes, and the trainings that scores ask for besides."""
    from datastill.core.cost import describe_seconds, pick_device
    from datastill.evaluation.ceiling import ceiling_seconds
    from datastill.evaluation.inputs import network_for
    from datastill.evaluation.robustness import apart_seconds
    from datastill.evaluation.settled import protocol_of

    device = pick_device(options.device).type
    whole = ceiling_seconds(real, network_for(sets[0], real, options.network), device)
    apart = 0.0
    if options.scores != "none":
        how = protocol_of(sets[0], options.protocol)
        apart = apart_seconds(sets, real, how, options.network, options.networks, options.labels, device)
    if not apart:
        display.say(f"The whole real set takes about {describe_seconds(max(whole, 1))} more, unless it is cached.")
        return
    display.say(
        f"The trainings that scores need besides take about {describe_seconds(max(whole + apart, 1))} more; "
        f"{describe_seconds(max(whole, 1))} of it on the whole real set, unless that is cached."
    )


def _print(result: Evaluation, class_names: Sequence[str], display: Display) -> None:
    """Tables, verdict and notes."""
    from datastill.cli.tables import evaluation_table, group_table

    display.table(evaluation_table(result))
    matrix = group_table(result, class_names)
    if matrix is not None:
        display.table(matrix)
    display.out.print(result.verdict)
    for note in result.notes:
        display.say(f"  {note}")


def _print_sections(reading: Reading, display: Display) -> None:
    """Sections that show the same everywhere; what the others say, the tables above have."""
    from datastill.cli.tables import laid_out
    from datastill.report.section import sections

    for section in sections():
        if (found := section.shown(reading)) is not None:
            for one in laid_out(found):
                display.out.print(one, markup=False)
