"""The page of attributions: numbers of every baseline, and pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datastill.apps.attribution.attribute import ATTRIBUTION, HEADS, Attributions
from datastill.report.application import Application, Chapter, Picture
from datastill.report.pictures import png, sheet
from datastill.report.section import Paragraph, Table
from datastill.store.files import write_json

PAGE = "attribution.html"
#: Images in the picture, and the side of each.
SHOWN, SIDE = 8, 64

MEANING = (
    "Deletion replaces pixels by the mean gray (or color), the highest attributions first: a low area says that they "
    "count. Insertion shows them alone. At a good baseline the network is undecided (1 is as after guessing), so that "
    "nothing of the class is left in it. The completeness gap is of the numerical integral alone."
)


def write_attributions(folder: Path, found: Attributions) -> None:
    """Write `attribution.json` and `attribution.html`."""
    write_json(folder / ATTRIBUTION.proof, found.to_dict())
    config = found.config
    names = list(found.maps)
    order = ", ".join(names)
    pictures = [
        Picture(f"Image, then attributions against: {order}", png(sheet(strips(found), 1 + len(names), smallest=SIDE))),
        Picture(f"Baselines of the first image: {order}", png(sheet(firsts(found), len(names), smallest=SIDE))),
    ]
    lead = (
        f"A network with {100 * found.accuracy:.1f} % on these {config['images']} images of {config['data']}; families "
        f"{' / '.join(config['families'])}, distilled by {config['method']} to {config['ipc']} image(s) each."
    )
    chapters = [Chapter("Baselines", [Table(HEADS, found.rows()), Paragraph(MEANING)], pictures)]
    title = f"What decides within a family of {config['data']}"
    Application("attribution", title, lead, found.verdict, chapters).write(folder / PAGE)


def strips(found: Attributions) -> Tensor:
    """Images, each with its maps after it: blue speaks against the class, red for it; (rows * columns, 3, h, w)."""
    rows = []
    for i in range(min(SHOWN, len(found.images))):
        rows.append(found.images[i].expand(3, -1, -1))
        rows += [colored(one[i]) for one in found.maps.values()]
    return torch.stack(rows)


def firsts(found: Attributions) -> Tensor:
    """Every baseline of the first image, (baselines, 3, h, w)."""
    return torch.stack([one[0].expand(3, -1, -1) for one in found.baselines.values()])


def colored(attribution: Tensor) -> Tensor:
    """A map (c, h, w) as a picture (3, h, w): white is 0, the color is full at the 99th percentile."""
    flat = attribution.sum(0)
    scale = flat.abs().flatten().quantile(0.99).clamp_min(1e-12)
    value = (flat / scale).clamp(-1, 1)
    red, blue = value.clamp_min(0), (-value).clamp_min(0)
    return torch.stack([1 - blue, 1 - red - blue, 1 - red])
