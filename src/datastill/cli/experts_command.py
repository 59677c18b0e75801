"""`datastill experts train|inspect|import`: the trajectories that trajectory matching needs."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from datastill.cli.options import (
    DataOptions,
    DeviceOptions,
    NamedSource,
    helped,
    parse,
    plain_warnings,
    positional_first,
    usage_of,
)
from datastill.core.errors import InputError, nearest
from datastill.core.ranges import Few, Processes, Rate, Seed
from datastill.store.sizes import bytes_in_words

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.launch import Done
    from datastill.surrogates.experts import ExpertBuffer

ACTIONS = {
    "train": "Train experts on real data and keep their weights epoch by epoch.",
    "inspect": "Show what a folder of experts holds, and how far they move in each epoch.",
    "import": "Make released replay_buffer_*.pt files a folder of experts.",
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DeviceOptions):
    """How many experts, and how they are trained."""

    data: DataOptions
    out: Path  #: folder of the experts; the same command goes on in it
    network: str | None = None  #: architecture, such as convnet:width=64 or my_file.py:Net; sized to fit if none
    experts: Few = 10  #: how many the folder is to hold; published buffers have 100
    epochs: Few = 50  #: of each
    stop_after: Few | None = None  #: end after so many of these epochs: max_start - 1 + span is all that is matched
    policy: str = "sgd"  #: how they are trained; numbers of its own follow, as in sgd:lr=0.05,batch=64
    augment: str = "auto"  #: DSA operations, none, or auto, which suits the data
    seed: Seed = 0  #: of every random draw
    #: processes to train in, one thread each; ray or ray:4 for those of a Ray cluster
    workers: Processes = 1
    lossy: bool = False  #: store float16 in half the space, where that changes no step by more than 1 %
    test_accuracy: bool = False  #: read the test split after every epoch, to describe experts; choose nothing by it
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what the folder holds as JSON


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Which experts."""

    folder: tyro.conf.Positional[Path]  #: folder of experts
    verify: bool = False  #: read every file and compare it with its hash
    json: bool = False  #: print as JSON


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What to import and what is known of it."""

    files: tyro.conf.Positional[tuple[Path, ...]]  #: replay_buffer_*.pt files, or the folder that holds them
    data: NamedSource
    out: Path  #: folder for the experts
    space: str | None = None  #: how they saw pixels: conventional, raw, zca or measured; it must be stated
    network: str | None = None  #: their architecture; the ConvNet that fits if none
    zca_eps: Rate = 0.1  #: the epsilon of zca
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was made as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    action, rest = positional_first(args)
    if action is None:
        if helped(args, usage):
            return 0
        raise InputError("Say what to do with experts: `datastill experts train --data PATH --out FOLDER`.")
    if action not in ACTIONS:
        raise InputError(f"`datastill experts` cannot {action!r}. {nearest(action, ACTIONS)}")
    name, about = f"experts {action}", ACTIONS[action]
    if action == "inspect":
        return inspect(parse(InspectOptions, rest, name, about))
    if action == "import":
        wanted = parse(ImportOptions, rest, name, about)
        with plain_warnings(wanted.quiet):
            return bring_in(wanted)
    options = parse(TrainOptions, rest, name, about)
    with plain_warnings(options.quiet):
        return train(options)


def usage() -> str:
    """What `datastill experts --help` prints."""
    return usage_of(
        "experts",
        "Networks trained on the real data, kept epoch by epoch: what trajectory matching matches.",
        ACTIONS,
    )


def train(options: TrainOptions) -> int:
    """Train what is missing, and say what there is."""
    from datastill.cli.progress import Display
    from datastill.data.places import places_of
    from datastill.models import resolve_network
    from datastill.store.outputs import EXPERTS, refuse_out
    from datastill.surrogates.experts import train_experts

    refuse_out(options.out, places_of(options.data.data), EXPERTS)
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    network = resolve_network(options.network, **real.network_shape)
    display.say(_announcement(options, len(real), network))
    names = ("experts", "epochs", "stop_after", "policy", "augment", "seed", "workers", "device", "lossy")
    with display.bars():
        buffer = train_experts(
            real,
            network,
            options.out,
            test_accuracy=options.test_accuracy,
            progress=display.update,
            on_done=_teller(display, options.out),
            **{name: getattr(options, name) for name in names},
        )
    _show(buffer, display, options.json)
    display.say(f"Look at them again: datastill experts inspect {shlex.quote(str(options.out))}")
    return 0


def inspect(options: InspectOptions) -> int:
    """Print what a folder of experts holds."""
    from datastill.cli.progress import Display
    from datastill.surrogates.experts import open_buffer

    buffer = open_buffer(options.folder)
    if options.verify:
        buffer.verify()
    display = Display(options.json)
    _show(buffer, display, options.json)
    if options.verify:
        display.say(f"All files of {len(buffer)} experts agree with their hashes.")
    return 0


def bring_in(options: ImportOptions) -> int:
    """Import released buffers, and say what there is."""
    from datastill.cli.progress import Display
    from datastill.data.places import places_of
    from datastill.exchange.spaces import stated_space
    from datastill.models import resolve_network
    from datastill.store.folders import refuse_taken
    from datastill.store.outputs import refuse_out
    from datastill.surrogates.experts import import_reference_buffer

    refuse_taken(options.out)
    refuse_out(options.out, places_of(options.data.data))
    display = Display(options.quiet or options.json)
    real = options.data.load()
    real = real.with_space(stated_space(options.space, real, None, options.zca_eps))
    network = resolve_network(options.network, **real.network_shape)
    display.say(f"Reading {', '.join(map(str, options.files))} ...")
    _show(import_reference_buffer(options.files, network, real, options.out), display, options.json)
    display.say(f"Saved in {options.out}.")
    return 0


def _announcement(options: TrainOptions, images: int, network: Any) -> str:
    """What is about to be done, how long that takes at the nominal speed, and the space that it needs."""
    from datastill.core.cost import describe_seconds, pick_device
    from datastill.core.registry import nominal_seconds
    from datastill.launch import Workers

    last = min(options.epochs, options.stop_after or options.epochs)
    macs = 3.0 * network.macs * images * max(0, last) * max(0, options.experts)
    seconds = nominal_seconds(macs, pick_device(options.device).type) / Workers.of(options.workers).likely
    time = f", about {describe_seconds(seconds)}" if seconds >= 1 else ""
    size = options.experts * (last + 1) * network.parameters_count * (2 if options.lossy else 4)
    return (
        f"{options.experts} experts × {last} epochs on {images:,} images; {network}, {network.parameters_count:,} "
        f"parameters: {bytes_in_words(size)}{time}, if none is there yet. Stop at any time, and run the same command "
        "to go on."
    )


def _teller(display: Display, out: Path) -> Any:
    """A line for every expert that ends."""
    from datastill.cli.progress import ended
    from datastill.store.files import read_sealed
    from datastill.surrogates.experts.files import ExpertFile

    in_terminal = sys.stderr.isatty()

    def tell(done: Done) -> None:
        if done.failure is not None:
            display.say(f"[{done.done}/{done.total}] {done.unit.name}: failed: {done.failure.sentence}")
        elif not in_terminal:
            record = read_sealed(done.unit.target, ExpertFile)
            loss, accuracy = record["train_loss"][-1], 100 * record["train_accuracy"][-1]
            display.say(ended(done, f"training loss {loss:.3g}, accuracy {accuracy:.1f} %"))

    return tell


def _show(buffer: ExpertBuffer, display: Display, as_json: bool) -> None:
    if as_json:
        print(json.dumps(buffer.describe(), indent=2))
        return
    if display.quiet:
        return
    record = buffer.describe()
    for line in describe(record):
        display.out.print(line, markup=False, soft_wrap=True)
    if record["by_epoch"]:
        display.table(_table(record))


def describe(record: dict[str, Any]) -> list[str]:
    """What a buffer is, in lines for people."""
    config, about, count = record["config"], record["about"], len(record["experts"])
    numbers = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in config["policy"].items())
    seed = "" if config["seed"] is None else f", seed {config['seed']}"
    weighted = ", weighted" if about["data"]["weighted"] else ""
    return [
        f"{record['path']}: {count} expert{'s' * (count != 1)}, epochs 0 to {record['epochs']} of {config['epochs']}, "
        f"{bytes_in_words(record['bytes'])} on disk ({', '.join(record['dtypes']) or 'empty'})",
        f"  network {about['network']}, {record['parameters']:,} parameters",
        f"  data {about['data']['name']}, {about['data']['images']:,} images{weighted}, space {about['space']['kind']} "
        f"({about['space']['source']})",
        f"  policy {numbers.removeprefix('name ')}; augmentation {config['augment'] or 'not known'}{seed}",
        *_smoothness(record["smoothness"]),
    ]


def _smoothness(found: dict[str, Any]) -> list[str]:
    """How far an epoch moves the weights and how good experts are, in a line; none where there is no expert."""
    if not found:
        return []
    said = {"in training": found["train_accuracy"], "on the test split": found["test_accuracy"]}
    ends = [f"{100 * value:.1f} % {where}" for where, value in said.items() if value is not None]
    return [
        f"  squared step of an epoch: mean {found['mean_squared_step']:.3g}, max {found['max_squared_step']:.3g}"
        + (f"; accuracy in the end {', '.join(ends)}" if ends else "")
    ]


def _table(record: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="Means over experts", title_justify="left")
    tested = any(row["test_accuracy"] is not None for row in record["by_epoch"])
    heads = ["epoch", "training loss", "training accuracy %", *(["test accuracy %"] if tested else [])]
    for column in (*heads, "mean squared step", "max squared step"):
        table.add_column(column, justify="right")
    for row in record["by_epoch"]:
        cells = [str(row["epoch"]), _number(row["train_loss"], 1.0), _number(row["train_accuracy"], 100.0)]
        cells += [_number(row["test_accuracy"], 100.0)] if tested else []
        table.add_row(*cells, f"{row['mean_squared_step']:.3g}", f"{row['max_squared_step']:.3g}")
    return table


def _number(value: float | None, factor: float) -> str:
    return "–" if value is None else f"{factor * value:.4g}" if factor == 1 else f"{factor * value:.1f}"
