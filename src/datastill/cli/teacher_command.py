"""`datastill teacher train|import|inspect`: the network that images are recovered from and labeled by."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from datastill.cli.options import (
    DataOptions,
    DeviceOptions,
    helped,
    names_of,
    parse,
    plain_warnings,
    positional_first,
    usage_of,
)
from datastill.core.errors import InputError, nearest
from datastill.core.ranges import AnyRate, Count, Seed

if TYPE_CHECKING:
    from datastill.surrogates.teachers import Teacher

ACTIONS = {
    "train": "Train a network with batch norm on the real data (the squeeze).",
    "import": "Make a trained network of yours a teacher, after trying it on the data.",
    "inspect": "Show what a teacher is; with --data, how right it is there.",
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DeviceOptions):
    """How it is trained."""

    data: DataOptions
    out: Path  #: folder of the teacher
    network: str = "convnet:norm=batch"  #: architecture with batch norm, such as resnet18:norm=batch
    passes: Count = 10  #: passes over the data; longer makes a better teacher, not always a better source of images
    lr: AnyRate = 0.1  #: of SGD, which warms up and falls to 0 along a cosine
    batch: Count = 128  #: images a step
    seed: Seed = 0  #: of every random draw
    compile: bool = False  #: compiled code for the network, for long trainings on a CPU
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was made as JSON


@dataclass(frozen=True, kw_only=True)
class ImportOptions(DeviceOptions):
    """What it is and what is known of it."""

    data: DataOptions
    weights: tyro.conf.Positional[Path]  #: .safetensors, or a torch checkpoint that holds tensors alone
    network: str  #: its architecture: a name, torchvision/..., timm/..., or my_file.py:Net
    out: Path  #: folder of the teacher
    #: how its training normalized pixels: same (as the data), raw, a set's name (cifar10, imagenet), or
    #: mean/std, such as .485,.456,.406/.229,.224,.225
    pixels: str = "same"
    #: its classes in the order of its logits, where they are not the data's: with commas, or @names.txt, one on a line
    classes: str | None = None
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was made as JSON


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Which teacher."""

    folder: tyro.conf.Positional[Path]  #: folder of a teacher
    data: str | None = None  #: real data to try it on
    network: str | None = None  #: what builds it (my_file.py:Net), where its network is not built in
    json: bool = False  #: print as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    action, rest = positional_first(args)
    if action is None:
        if helped(args, usage):
            return 0
        raise InputError("Say what to do with a teacher: `datastill teacher train --data PATH --out FOLDER`.")
    if action not in ACTIONS:
        raise InputError(f"`datastill teacher` cannot {action!r}. {nearest(action, ACTIONS)}")
    name, about = f"teacher {action}", ACTIONS[action]
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
    """What `datastill teacher --help` prints."""
    return usage_of(
        "teacher",
        "A network trained on the real data: sre2l, cda, dwa and rded take images from it, and it labels them.",
        ACTIONS,
    )


def train(options: TrainOptions) -> int:
    """Squeeze, and write the teacher."""
    from datastill.cli.progress import Display
    from datastill.core.cost import pick_device
    from datastill.core.plan import Task
    from datastill.core.runtime import Runtime
    from datastill.core.threads import threads_for
    from datastill.data.places import places_of
    from datastill.models import resolve_network
    from datastill.store.folders import refuse_taken
    from datastill.store.outputs import refuse_out
    from datastill.surrogates.teachers import Squeeze

    refuse_taken(options.out)
    refuse_out(options.out, places_of(options.data.data))
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    factory = resolve_network(options.network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    task = Task(
        real,
        1,
        factory,
        options.seed,
        Runtime(
            pick_device(options.device),
            progress=display.update,
            compiled=options.compile and not factory.couples_samples,
        ),
    )
    squeeze = Squeeze(options.passes, options.lr, batch=options.batch)
    with display.bars(), threads_for(factory.macs):
        teacher = squeeze.teacher(task, squeeze.run(task))
        accuracy = teacher.test_accuracy(real, task.device)
    if accuracy is not None:
        teacher.record["accuracy"] = accuracy
    return _done(teacher, options.out, options.json, display.say)


def bring_in(options: ImportOptions) -> int:
    """Try a network of the user's and write it as a teacher."""
    from datastill.cli.progress import Display
    from datastill.core.cost import pick_device
    from datastill.data.places import places_of
    from datastill.store.folders import refuse_taken
    from datastill.store.outputs import refuse_out
    from datastill.surrogates.teachers.bring import bring_teacher

    refuse_taken(options.out)
    refuse_out(options.out, places_of(options.data.data))
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    names = None if options.classes is None else names_of(options.classes)
    teacher = bring_teacher(real, options.network, options.weights, space=options.pixels, class_names=names)
    device = pick_device(options.device)
    trial = teacher.check(real, device)
    if names_told := teacher.record["origin"].get("names"):
        display.say(f"Weights taken {names_told}.")
    display.say(f"Right on {100 * trial:.1f} % of the training images that it was tried on.")
    accuracy = teacher.test_accuracy(real, device)
    if accuracy is not None:
        teacher.record["accuracy"] = accuracy
    return _done(teacher, options.out, options.json, display.say)


def inspect(options: InspectOptions) -> int:
    """Print the record; try it on data where some are named."""
    from datastill.core.cost import pick_device
    from datastill.data import load_real
    from datastill.surrogates.teachers import load_teacher

    teacher = load_teacher(options.folder, options.network, "--network (network=)")
    record = teacher.describe()
    if options.data is not None:
        real = load_real(options.data)
        device = pick_device("auto")
        record["tried"] = {"data": real.name, "accuracy": teacher.check(real, device)}
        record["tried"]["test_accuracy"] = teacher.test_accuracy(real, device)
    if options.json:
        print(json.dumps(record, indent=2))
        return 0
    for name, value in record.items():
        print(f"{name:>10}  {value if not isinstance(value, dict | list) else json.dumps(value)}")
    return 0


def _done(teacher: Teacher, out: Path, as_json: bool, say: object) -> int:
    from datastill.store.folders import whole_folder

    with whole_folder(out) as folder:
        teacher.save(folder)
    if as_json:
        print(json.dumps(teacher.describe(), indent=2))
        return 0
    accuracy = teacher.record.get("accuracy")
    told = f", {100 * accuracy:.1f} % right on the test split" if accuracy is not None else ""
    assert callable(say)
    say(f"{teacher.spec}{told}; saved in {out}.")
    say(f"Recover images from it: datastill distill sre2l --teacher {shlex.quote(str(out))} --data ...")
    return 0
