"""`datastill inspect FOLDER`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from datastill.cli.options import parse
from datastill.cli.streams import print_rows

if TYPE_CHECKING:
    from datastill.store.artifact import DistilledSet


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Which set."""

    folder: tyro.conf.Positional[Path]  #: folder of a distilled set
    diagnose: bool = False  #: compare its images with each other and with the real ones, and say what that means
    data: str | None = None  #: real data for --diagnose; none takes the source that the set names
    json: bool = False  #: print the manifest as JSON, or the diagnosis


def main(args: list[str]) -> int:
    """Parse and print."""
    options = parse(InspectOptions, args, "inspect", "Show what a distilled set holds and how it was made.")
    from datastill.core.cost import describe_cost
    from datastill.core.errors import InputError
    from datastill.report import words
    from datastill.store.artifact import load_distilled

    one = load_distilled(options.folder)
    if options.diagnose:
        return _diagnose(options, one)
    if options.data is not None:
        raise InputError("--data names real images to compare with; add --diagnose.")
    if options.json:
        print(json.dumps(one.manifest, indent=2))
        return 0
    images, record = one.images, one.record
    cost, network, rate = record.cost, record.network, record.student.lr
    rows = {
        "set": one.name + f", seed {record.seed}",
        "images": f"{words.images(one)} of {'×'.join(map(str, images.shape[1:]))}",
        "weighs": words.weighs(one),
        "classes": ", ".join(one.class_names[:12]) + (", ..." if len(one.class_names) > 12 else ""),
        "labels": record.labels,
        "space": f"{one.space.kind} ({one.space.source})",
        "range": f"{float(images.min()):.3g} to {float(images.max()):.3g} as stored",
        "network": "none" if network is None else network.spec or network.name,
        "hyper-parameters": ", ".join(f"{k}={v}" for k, v in record.hyper.items()) or "none",
        "evaluate with": record.student.protocol + (f", learning rate {rate:.4g} (learned)" if rate else ""),
        "cost": f"{describe_cost(cost.steps, cost.seconds, cost.prepare_seconds)}, {cost.hardware}"
        if cost.known
        else "not known: made by others",
        "made by": f"datastill {cost.versions.datastill}, torch {cost.versions.torch}",
        "notes": "; ".join([*record.data.notes, *record.notes]) or "none",
    }
    print_rows(rows.items())
    return 0


def _diagnose(options: InspectOptions, one: DistilledSet) -> int:
    """Numbers on the images, each with what it says."""
    from datastill.report import diagnose

    found = diagnose(one, options.data)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_rows([("set", one.name + f", seed {one.record.seed}"), *found.rows()])
    return 0
