"""`datastill import FILE`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from datastill.cli.options import NamedSource, parse, plain_warnings
from datastill.core.ranges import Rate, Seed

if TYPE_CHECKING:
    from datastill.cli.progress import Display
    from datastill.exchange.formats import Released
    from datastill.store.artifact import DistilledSet
    from datastill.store.manifest import Imported


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What to import and what is known of it."""

    file: tyro.conf.Positional[Path]  #: a .pt file, or a folder with images_best.pt and labels_best.pt
    data: NamedSource
    space: str | None = None  #: how pixels are stored: conventional, raw, zca or measured; it must be stated
    out: Path = Path("runs/imported")  #: folder for the distilled set; several go into numbered folders below it
    select: str = "-1"  #: which experiment of the file: its number, -1 for the last, or all
    labels: Path | None = None  #: file of the labels, where the file holds images alone and none lies beside it
    syn_lr: str | None = None  #: the learned learning rate, or the file that holds it
    name: str | None = None  #: name of the set in tables; none takes that of the file
    network: str | None = None  #: the architecture that it was distilled on; none takes the ConvNet that fits
    protocol: str = "dc-v1-dsa"  #: what `datastill evaluate` trains with unless told otherwise
    into: str | None = None  #: a space to turn the images into, such as conventional for a raw set
    zca_eps: Rate = 0.1  #: the epsilon of zca
    seed: Seed = 0  #: of the random selection that is set beside it
    quiet: bool = False  #: say nothing but errors
    json: bool = False  #: print what was found and made as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    options = parse(ImportOptions, args, "import", "Make a set that others released as .pt one that can be scored.")
    with plain_warnings(options.quiet):
        return bring_in(options)


def bring_in(options: ImportOptions) -> int:
    """Read, say what was found, check it against the real data, save."""
    from datastill.cli.progress import Display
    from datastill.data.places import places_of
    from datastill.exchange import import_released, read_released
    from datastill.store.outputs import IMPORTED, NEW, refuse_out

    refuse_out(options.out, places_of(options.data.data), IMPORTED if options.select == "all" else NEW)
    display = Display(options.quiet or options.json)
    found = read_released(options.file, labels=options.labels, syn_lr=_rate(options.syn_lr))
    for line in describe(found):
        display.say(line)
    real = options.data.load()
    settings: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("space", "name", "network", "protocol", "into", "zca_eps", "seed", "out")
    }
    made = import_released(found, data=real, select=_select(options.select), **settings)
    sets = made if isinstance(made, list) else [made]
    several = isinstance(made, list)
    folders = [options.out / str(_imported(s).experiment) if several else options.out for s in sets]
    for one, folder in zip(sets, folders):
        _finish(one, folder, display)
    command = shlex.join(["datastill", "evaluate", *map(str, folders)])
    display.say(f"Score it beside a random selection: {command}")
    if options.json:
        made_of = [{"folder": str(f), "manifest": s.manifest} for s, f in zip(sets, folders)]
        print(json.dumps({"found": found.describe(), "sets": made_of, "next": command}, indent=2))
    return 0


def describe(found: Released) -> list[str]:
    """What a released file holds, in lines for people."""
    from datastill.exchange.formats import FORMATS

    record = found.describe()
    count = record["experiments"]
    low, high = record["range"]
    shape = "×".join(map(str, record["shape"]))
    lines = [
        f"{found.path}: {FORMATS[found.format]}, {count} experiment{'s' * (count > 1)}",
        f"  {record['images']} images{' each' * (count > 1)} of {shape}, values from {low:.3g} to {high:.3g}, "
        f"mean {record['mean']:.3g}",
        f"  {record['labels']} labels of {record['classes']} classes",
    ]
    if found.lr is not None:
        lines.append(f"  learned learning rate {found.lr:g}")
    for network, numbers in list(record["claimed"].items())[:8]:
        times = f"{numbers['count']} evaluation" + "s" * (numbers["count"] > 1)
        lines.append(f"  records an accuracy of {100 * numbers['mean']:.2f} % on {network} ({times}, its own protocol)")
    return lines


def _imported(one: DistilledSet) -> Imported:
    imported = one.record.imported
    assert imported is not None
    return imported


def _finish(one: DistilledSet, folder: Path, display: Display) -> None:
    """What was saved, and the picture, in which a wrong space shows."""
    imported = _imported(one)
    outside, space = 100 * imported.outside_pixel_range, imported.stored_space
    stated = space.kind + (f" ({space.source})" if space.source else "")
    display.say(f"Saved in {folder}: {one.name}. Taken as {stated}, {outside:.1f} % of the values are no valid pixels;")
    display.say(f"  does {folder / 'preview.png'} look right? If not, the space is another.")


def _select(text: str) -> Any:
    from datastill.core.errors import InputError

    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--select is {text!r}; give the number of an experiment, or all.") from error


def _rate(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
