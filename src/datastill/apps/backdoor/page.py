"""The page of a backdoor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from datastill.apps.backdoor.attack import BACKDOOR, CLEAN, HEADS, Backdoor
from datastill.apps.backdoor.checks import HEADS as NAMED
from datastill.apps.backdoor.checks import Checks
from datastill.data.real import RealSet
from datastill.report.application import Application, Chapter, Picture
from datastill.report.pictures import png, sheet
from datastill.report.section import Paragraph, Table
from datastill.store.files import write_json

PAGE = "backdoor.html"
SHOWN = 8
MEANING = (
    "Attack success: of test images of other classes that get the trigger, how many are taken for the target. Counted "
    "over all images, those of the target count as successes too, so that a clean network has about a class's share."
)
HINT = (
    "Both are hints and no proof, and a set of which neither says anything may bear a trigger. The signature names a "
    "class whose images share one direction of features far more than those of other classes do. Trigger inversion "
    "looks for the smallest patch by which networks take other classes' images for a class, and names a class that "
    "needs far less than the other classes."
)


def write_backdoor(folder: Path, found: Backdoor, real: RealSet, looks: dict[str, Checks]) -> None:
    """Write `backdoor.json` and `backdoor.html`.

    Args:
        folder: where.
        found: the attack.
        real: whose test images are shown with the trigger.
        looks: checks of the sets, by what they were distilled from.
    """
    config = found.config
    write_json(folder / BACKDOOR.proof, told(found, looks))
    clean = real.known_test.pixels(torch.arange(min(SHOWN, len(real.known_test))))
    bad = found.trigger.on(clean).clamp(0, 1)
    strips = torch.cat([clean, bad, (10 * (bad - clean)).abs().clamp(0, 1)])
    y = found.sets[CLEAN].hard_labels
    target = real.class_names.index(config["target"])
    own = torch.cat([found.sets[name].pixels[y == target][:SHOWN] for name in (CLEAN, config["attack"])])
    pictures = [
        Picture("Test images: clean, with the trigger, ten times the difference", png(sheet(strips, len(clean)))),
        Picture("Distilled images of the target: of clean images, of poisoned ones", png(sheet(own, len(own) // 2))),
    ]
    chapters = [
        Chapter("Does it work?", [Table(HEADS, found.rows()), Paragraph(MEANING)], pictures),
        Chapter("Would it be noticed?", [noticed(found, looks), Paragraph(HINT)], _masks(found, looks, target)),
    ]
    lead = (
        f"{config['method']} on {config['data']}, {100 * config['fraction']:g} % of whose images bear a square of "
        f"{config['size']} x {config['size']} pixels and the label {config['target']}; {config['updates']} updates of "
        "the trigger."
    )
    title = f"A backdoor in a distilled {config['data']}"
    Application("backdoor", title, lead, found.verdict, chapters).write(folder / PAGE)


def told(found: Backdoor, looks: dict[str, Checks]) -> dict[str, Any]:
    """For JSON."""
    return {**found.to_dict(), "checks": {name: one.to_dict() for name, one in looks.items()}}


def noticed(found: Backdoor, looks: dict[str, Checks]) -> Table:
    """Which classes each check names."""
    names = found.sets[CLEAN].class_names
    return Table(NAMED, [[name, *one.row(names)] for name, one in looks.items()])


def _masks(found: Backdoor, looks: dict[str, Checks], target: int) -> list[Picture]:
    """The trigger beside the masks that were found for the target."""
    true, title = found.trigger.mask, ["the trigger's pixels"]
    shown = [true.float().expand_as(found.trigger.patch), found.trigger.patch.clamp(0, 1) * true]
    for name, one in looks.items():
        if one.inversion is not None:
            mask = one.inversion.found.masks[target]
            shown += [mask.expand_as(found.trigger.patch), one.inversion.found.patterns[target] * mask]
            title.append(f"those found in the set of {name}")
    if len(title) == 1:
        return []
    return [Picture(f"Mask and pattern of the target: {', '.join(title)}", png(sheet(torch.stack(shown), 2)))]
