"""`datastill study debias`: methods with and without weights against a bias, in one table."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.cli.options import (
    DeviceOptions,
    helped,
    parse,
    parse_settings,
    plain_warnings,
    positional_first,
    value_of,
)
from datastill.core.errors import InputError, Interrupted, nearest
from datastill.core.ranges import Count, Few, Probability, Processes

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.experiments.debias_cell import Cell
    from datastill.experiments.debias_study import DebiasStudy

ACTIONS = {"debias": "Distill a biased set by several methods, with and without weights against its bias."}


@dataclass(frozen=True, kw_only=True)
class DebiasOptions(DeviceOptions):
    """What is crossed, and where it is kept."""

    dataset: str = "cmnist"  #: cmnist, bg-fmnist or ccifar10, with options as in cmnist:severity=1,train=1000
    ratio: Probability = 0.05  #: share of bias-conflicting training images
    methods: tuple[str, ...] = ("random", "dm", "dsa", "idc")  #: which methods
    debias: tuple[str, ...] = ("none", "kde", "oracle")  #: ways to weigh; options as in kde:variance=0.05
    init: tuple[str, ...] = ("real",)  #: starts: real, noise, weighted
    surrogates: tuple[str, ...] = ("method",)  #: networks to match on: the method's, or dfa, selecmix (mtt: experts)
    training: tuple[str, ...] = ("plain",)  #: how networks are trained on the sets: plain, dfa, selecmix
    ipc: tuple[Count, ...] = (10,)  #: images per class
    seeds: Few = 3  #: sets for each cell
    networks: Few = 3  #: networks that score each set
    network: str | None = None  #: architecture; the ConvNet that fits if none
    protocol: str = "dsa-quick-v1"  #: how networks are trained on a set; auto takes what each set asks for
    recipe: str = "auto"  #: auto (minutes on a laptop) or paper
    set: tuple[str, ...] = field(default_factory=tuple)  #: values, steps=500 for all or dm.steps=500 for one method
    out: Path = Path("runs/debias")  #: folder of the study; the same command goes on in it
    #: processes to make cells in, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    quiet: bool = False  #: say nothing but the table
    json: bool = False  #: print the rows as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    action, rest = positional_first(args)
    if action is None and helped(args, usage):
        return 0
    if action not in ACTIONS:
        hint = nearest(str(action), ACTIONS) if action else "Name one: debias."
        raise InputError(f"There is no study {action!r}. {hint}" if action else hint)
    options = parse(DebiasOptions, rest, "study debias", ACTIONS["debias"])
    with plain_warnings(options.quiet):
        return debias(options)


def usage() -> str:
    """What `datastill study --help` prints."""
    return "usage: datastill study debias [options]\n\n" + ACTIONS["debias"]


def debias(options: DebiasOptions) -> int:
    """Make what is missing, print the table."""
    from datastill.cli.progress import Display, LoopProgress
    from datastill.data import load_real
    from datastill.data.places import places_of
    from datastill.experiments.debias_pictures import write_pictures
    from datastill.experiments.debias_rows import described, rows
    from datastill.store.files import write_text
    from datastill.store.outputs import STUDY, refuse_out

    display = Display(options.quiet or options.json)
    source = biased_source(options.dataset, options.ratio)
    refuse_out(options.out, places_of(source), STUDY)
    display.say(f"Reading {source} ...")
    real = load_real(source)
    study = _study(options)
    cells = study.fitting(real)
    total = len(cells)
    _say_left_out(display, study, cells)
    count = 0

    def on_cell(record: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        accuracy = 100 * sum(record["accuracies"]) / len(record["accuracies"])
        display.say(
            f"{count} of {total}: {described(record)}, ipc {record['ipc']}, seed {record['seed']}: {accuracy:.1f} %"
        )

    with display.bars():
        hooks: Any = {"progress": display.update, "callbacks": [LoopProgress(display)], "on_cell": on_cell}
        try:
            records = study.run(real, options.out, workers=options.workers, **hooks)
        except Interrupted as stop:
            raise Interrupted(f"Stopped. What was done is in {options.out}; the same command goes on.") from stop
    found = rows(records)
    if options.json:
        print(json.dumps(_plain(found), indent=2))
    else:
        display.table(table(found, f"{source}, {options.protocol}, {options.seeds} sets x {options.networks} networks"))
    if gone := rows_gone(options.out / "study.json", _plain(found)):
        display.say(
            f"{options.out / 'study.json'} and the picture are of this command alone now: {gone} of the rows that they "
            "had are of another. Their cells are kept; one command that names all has them all in its table."
        )
    write_text(options.out / "study.json", as_json(real.describe(), _plain(found), records))
    pictures = write_pictures(records, found, options.out)
    display.say(f"Written to {options.out / 'study.json'}, {' and '.join(str(path) for path in pictures)}.")
    return 0


def _study(options: DebiasOptions) -> DebiasStudy:
    """What is crossed."""
    from datastill.experiments.debias_study import DebiasStudy

    return DebiasStudy(
        methods=options.methods,
        debias=options.debias,
        inits=options.init,
        surrogates=options.surrogates,
        training=options.training,
        ipcs=options.ipc,
        seeds=options.seeds,
        networks=options.networks,
        network=options.network,
        protocol=options.protocol,
        recipe=options.recipe,
        hyper=parse_values(options.set),
        device=options.device,
    )


def _say_left_out(display: Display, study: DebiasStudy, cells: list[Cell]) -> None:
    """What a method has not, and what stands in for it."""
    from datastill.debias.reweight import without_draw
    from datastill.experiments.debias_rows import described

    def named(some: list[Cell]) -> set[str]:
        return {described({**one.record, "debias": without_draw(one.debias)}) for one in some}

    left_out = named(study.cells()) - named(cells)
    if left_out:
        display.say(f"Left out, since the method has no such networks to replace: {'; '.join(sorted(left_out))}.")
    weighted = sorted({one.method for one in set(cells) - set(study.cells())})
    if weighted:
        display.say(f"No draw by weight for {', '.join(weighted)}: the weights are in what they train and match.")


def biased_source(dataset: str, ratio: float) -> str:
    """The set in the words of `load_real`.

    Raises:
        InputError: it takes no ratio, so that its bias is not known, or its options give one.
    """
    from datastill.data.sources import sources, split_options

    name, more = split_options(dataset)
    known = [one for one, function in sources().items() if "ratio" in inspect.signature(function).parameters]
    if name not in known:
        raise InputError(
            f"The study scores by bias labels, which {dataset} has not: take {', '.join(known)}. Your own images are "
            "weighed by `datastill distill --debias loss:draw=true --data ...`."
        )
    if "ratio" in more:
        raise InputError(f"Give the ratio as --ratio {more['ratio']}, not in --dataset.")
    return f"{name}:" + ",".join(f"{k}={v}" for k, v in {"ratio": str(ratio), **more}.items())


def rows_gone(path: Path, found: list[dict[str, Any]]) -> int:
    """How many rows of an earlier command's file are none of these choices."""
    from datastill.experiments.debias_rows import NAMES

    try:
        before = json.loads(path.read_text())["rows"]
        kept = {tuple(row[name] for name in NAMES) for row in found}
        return sum(tuple(row[name] for name in NAMES) not in kept for row in before)
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def as_json(data: dict[str, Any], found: list[dict[str, Any]], records: list[dict[str, Any]]) -> str:
    """The whole study, a line for each row and each cell."""
    parts = [f'"data": {json.dumps(data)}']
    cells = [{name: value for name, value in one.items() if name != "data"} for one in records]
    for name, many in (("rows", found), ("cells", cells)):
        lines = ",\n".join(json.dumps(one) for one in many)
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table(found: list[dict[str, Any]], title: str) -> Any:
    """The rows for people, each in the words of `described`."""
    from rich.table import Table

    from datastill.experiments.debias_rows import described

    sizes = {row["ipc"] for row in found}
    made = Table(title=f"{title}{f', ipc {min(sizes)}' if len(sizes) == 1 else ''}", title_justify="left")
    numbers = {"accuracy": ("test\n%", 1), "interval": ("± 95\n%", 1), "aligned": ("aligned", 1)}
    numbers["conflicting"] = ("conflicting", 1)
    if any(not math.isnan(row["conflict_mass"]) for row in found):
        numbers["conflict_mass"] = ("weight on\nconflicting", 2)
    if any(not math.isnan(row["conflicting_images"]) for row in found):
        numbers["conflicting_images"] = ("images in\nother colors", 2)
    numbers["seconds"] = ("seconds", 0)
    made.add_column("set", overflow="fold")
    for head, _ in numbers.values():
        made.add_column(head, justify="right", overflow="fold")
    for row in found:
        made.add_row(described(row, found), *(_number(row[n], d) for n, (_, d) in numbers.items()))
    return made


def parse_values(given: tuple[str, ...]) -> dict[str, Any]:
    """{"steps": 500, "dm": {"real_batch": 64}} from "steps=500", "dm.real_batch=64"."""
    of_methods = [text for text in given if "." in text.partition("=")[0]]
    found: dict[str, Any] = dict(parse_settings(tuple(of_methods)))
    for text in given:
        name, equals, value = text.partition("=")
        if text in of_methods:
            continue
        if not equals or not name or not value:
            raise InputError(f"{text!r} is not a value; write steps=500, or dm.steps=500 for one method.")
        if name in found:
            both = "as a method and as a hyper-parameter; leave one out"
            raise InputError(f"{name} is given {both if isinstance(found[name], dict) else 'twice; give it once'}.")
        found[name] = value_of(value)
    return found


def _plain(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in found]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
