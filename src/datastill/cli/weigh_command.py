"""`datastill weigh`: weights against a bias, looked at before anything is distilled."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.cli.options import DataOptions, DeviceOptions, parse, plain_warnings
from datastill.core.ranges import Few, Seed

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.debias.overview import Weighed


#: Of `weights.csv`.
COLUMNS = ("index", "class", "weight", "image")


@dataclass(frozen=True, kw_only=True)
class WeighOptions(DeviceOptions):
    """How to weigh, and where to put what comes of it."""

    data: DataOptions
    #: loss (of a network that is trained to follow the bias; options as in loss:power=1), kde (by density; options as
    #: in kde:variance=0.05,power=1), or oracle where the bias is known
    debias: str = "loss"
    out: Path = Path("runs/weights")  #: folder for the picture, the weights and the table
    images: Few = 8  #: lightest and heaviest images of each class in the picture
    seed: Seed = 0  #: of the network that tells the bias
    #: train a small network with the weights and one without, and say on held-out images what they gain and cost
    trial: bool = True
    quiet: bool = False  #: print the table only
    json: bool = False  #: print the table as JSON


def main(args: list[str]) -> int:
    """Parse and run."""
    about = (
        "Weigh images against a bias, and show which are taken for the crowd of their class and which for the odd ones."
    )
    options = parse(WeighOptions, args, "weigh", about)
    with plain_warnings(options.quiet):
        return weigh(options)


def weigh(options: WeighOptions) -> int:
    """Weigh, write, print."""
    from datastill.cli.progress import Display
    from datastill.core.errors import InputError
    from datastill.data.places import places_of
    from datastill.debias.diagnosis import UNIFORM
    from datastill.debias.overview import weighed_classes
    from datastill.debias.reweight import weighted_set, with_draw, without_draw
    from datastill.debias.trial import NO_TRIAL, trial
    from datastill.report.sections.weights import weights_picture
    from datastill.store.files import write_bytes, write_json, write_text
    from datastill.store.folders import held
    from datastill.store.outputs import WEIGHTS, refuse_out

    refuse_out(options.out, places_of(options.data.data), WEIGHTS)
    _refuse_others_table(options.out / "weights.csv")
    display = Display(options.quiet or options.json)
    display.say(f"Reading {options.data.data} ...")
    real = options.data.load()
    with display.bars():
        weighted, report = weighted_set(real, options.debias, options.seed, options.device, display.update)
    if weighted.weights is None:
        raise InputError(f"{options.debias} weighs nothing; take loss, or kde.")
    alike = report["effective_share"] > UNIFORM
    with display.bars():
        wanted = options.trial and not alike
        tried = trial(weighted, options.seed, options.device, display.update) if wanted else None
    classes = weighed_classes(weighted)
    record: dict[str, Any] = {"data": real.describe(), "report": report}
    record |= {"classes": [one.to_dict() for one in classes], "trial": None if tried is None else tried.to_dict()}
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        display.table(table(classes, f"{real.name}, {options.debias}"))
    verdict = tried.verdict if tried is not None else NO_TRIAL if wanted else ""
    for told in filter(None, [*report["warnings"], verdict]):
        display.say(f"  {told}")
    drawn, listed = weights_picture(weighted, options.images), as_csv(weighted)
    with held(options.out):
        (options.out / "weights.json").unlink(missing_ok=True)  # the last file: without it the others are a beginning
        write_text(options.out / "weights.csv", listed)
        write_bytes(options.out / "crowd_and_odd.png", drawn)
        write_json(options.out / "weights.json", record)
    if alike:
        display.say(f"All images weigh about the same, so --debias {options.debias} would change nothing.")
        return 0
    display.say(
        f"Look at {options.out / 'crowd_and_odd.png'}: where the images on the left share something that is not the "
        f"class, and those on the right lack it, distill with --debias {without_draw(options.debias)}, or with "
        f"--debias {with_draw(options.debias)} by a method that draws real images, such as dm. If those on the right "
        "are only strange, there is no such bias to weigh against. The weights are in "
        f"{options.out / 'weights.csv'}."
    )
    return 0


def _refuse_others_table(path: Path) -> None:
    """Refuse to write over a `weights.csv` of somebody else's, which makes a folder look begun.

    Raises:
        InputError: it has other columns.
    """
    from datastill.core.errors import InputError

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            head = file.read(200).partition("\n")[0].strip()
    except OSError:
        return
    if head != ",".join(COLUMNS):
        raise InputError(f"{path} is no table of weights; choose another --out to overwrite nothing.")


def table(classes: list[Weighed], title: str) -> Any:
    """A row for each class."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    known = any(one.conflicting is not None for one in classes)
    made.add_column("class")
    for column in ("images", "in effect", "weight of the heaviest 5 %", *(("conflicting",) if known else ())):
        made.add_column(column, justify="right")
    for one in classes:
        odd = [] if one.conflicting is None else [f"{100 * one.conflicting:.0f} %"]
        made.add_row(one.name, f"{one.images:,}", f"{one.in_effect:.0f}", f"{100 * one.heaviest:.0f} %", *odd)
    return made


def as_csv(real: RealSet) -> str:
    """Index, class, weight and file of every image; 1 is the mean weight of a class."""
    assert real.weights is not None
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(COLUMNS)
    for i, (c, weight) in enumerate(zip(real.labels.tolist(), real.weights.tolist(), strict=True)):
        rows.writerow((i, real.class_names[c], f"{weight:.6g}", real.store.name_of(i)))
    return buffer.getvalue()
