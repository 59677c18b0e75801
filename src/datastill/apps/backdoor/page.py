"""The page of a backdoor."""

from __future__ import annotations

from pathlib import Path

import torch

from datastill.apps.backdoor.attack import BACKDOOR, CLEAN, HEADS, Backdoor
from datastill.apps.backdoor.signature import Signature
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
    "The signature is a hint and no proof. A class whose images share one direction far more than those of other "
    "classes is named; a trigger that is spread over all images of a class shares none, and is not found so."
)


def write_backdoor(folder: Path, found: Backdoor, real: RealSet, signs: dict[str, Signature]) -> None:
    """Write `backdoor.json` and `backdoor.html`.

    Args:
        folder: where.
        found: the attack.
        real: whose test images are shown with the trigger.
        signs: signatures of the sets, by what they were distilled from.
    """
    config = found.config
    told = {name: {"suspected": one.suspected, "deviations": one.deviations} for name, one in signs.items()}
    write_json(folder / BACKDOOR.proof, {**found.to_dict(), "signatures": told})
    assert real.test is not None
    clean = real.test.pixels(torch.arange(min(SHOWN, len(real.test))))
    bad = found.trigger.on(clean).clamp(0, 1)
    strips = torch.cat([clean, bad, (10 * (bad - clean)).abs().clamp(0, 1)])
    y = found.sets[CLEAN].hard_labels
    target = real.class_names.index(config["target"])
    own = torch.cat([found.sets[name].pixels[y == target][:SHOWN] for name in (CLEAN, config["attack"])])
    pictures = [
        Picture("Test images: clean, with the trigger, ten times the difference", png(sheet(strips, len(clean)))),
        Picture("Distilled images of the target: of clean images, of poisoned ones", png(sheet(own, len(own) // 2))),
    ]
    rows = [[name, ", ".join(real.class_names[c] for c in one.suspected) or "none"] for name, one in signs.items()]
    chapters = [
        Chapter("Does it work?", [Table(HEADS, found.rows()), Paragraph(MEANING)], pictures),
        *(
            [Chapter("Would it be noticed?", [Table(["distilled from", "classes named"], rows), Paragraph(HINT)])]
            if rows
            else []
        ),
    ]
    lead = (
        f"{config['method']} on {config['data']}, {100 * config['fraction']:g} % of whose images bear a square of "
        f"{config['size']} x {config['size']} pixels and the label {config['target']}; {config['updates']} updates of "
        "the trigger."
    )
    title = f"A backdoor in a distilled {config['data']}"
    Application("backdoor", title, lead, found.verdict, chapters).write(folder / PAGE)
