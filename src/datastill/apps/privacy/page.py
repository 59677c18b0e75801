"""The page of an audit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datastill.apps.privacy.audit import HEADS, Audit
from datastill.apps.privacy.visual import Visual
from datastill.data.real import RealSet
from datastill.report.application import Application, Chapter, Picture
from datastill.report.pictures import png, to_image
from datastill.report.section import Items, Paragraph, Table
from datastill.report.words import percent
from datastill.store.artifact import DistilledSet
from datastill.store.files import write_json

RESULT, PAGE = "privacy.json", "privacy.html"
#: Synthetic images in the picture of neighbors, and their size.
SHOWN, SIDE = 10, 64

MEANING = (
    "An advantage of 0 is a coin's, 100 is always right. The threshold of the first column was chosen on other samples "
    "than it is told of; the oracle's on the same, which is an upper bound and above 0 even where there is nothing to "
    "find. TPR: of the members, how many are found where so many others are taken for members at most."
)


def write_audit(folder: Path, found: Audit, made: DistilledSet, members: RealSet) -> None:
    """Write `privacy.json` and `privacy.html`.

    Args:
        folder: where.
        found: the audit.
        made: the set.
        members: all images that it was made from, whose nearest are shown.
    """
    write_json(folder / RESULT, found.to_dict())
    config = found.config
    chapters = [
        Chapter("Membership", [Table(HEADS, found.rows()), Paragraph(MEANING)]),
        *(_looks(one, made, members) for one in found.visual),
    ]
    if found.notes:
        chapters.append(Chapter("Notes", [Items(found.notes)]))
    lead = (
        f"{config['set']}, seed {config['seed']}, trained on with {config['protocol']} "
        f"({percent(found.accuracy)} % accuracy on images that are no members)."
    )
    page = Application("privacy audit", f"What {made.record.method} on {config['data']} tells of its images", lead,
                       found.verdict, chapters)  # fmt: skip
    page.write(folder / PAGE)


def _looks(one: Visual, made: DistilledSet, members: RealSet) -> Chapter:
    text = (
        f"Mean distance ({one.by}) of a synthetic image to its nearest training image over that to its nearest "
        f"held-out image, among equally many of both: {one.ratio:.3f}. Near 1, training images are no nearer than "
        f"others; far below, they were copied. Of {len(one.sampled)} synthetic images {one.copies} are real ones, "
        "or nearly."
    )
    chosen = torch.linspace(0, len(one.sampled) - 1, min(SHOWN, len(one.sampled))).round().long()
    names = made.class_names
    labels = made.hard_labels
    rows = [
        [str(i), names[int(labels[i])], *(f"{v:.3f}" for v in one.train.distance[i].tolist())] for i in chosen.tolist()
    ]
    heads = ["image", "class", *(f"nearest {k + 1}" for k in range(one.train.distance.shape[1]))]
    picture = Picture(
        f"Synthetic images, and below each its nearest training images ({one.by})",
        png_of(made.pixels, members, chosen, one.train.index),
    )
    return Chapter(f"Nearest real images by {one.by}", [Paragraph(text), Table(heads, rows)], [picture])


def png_of(pixels: Tensor, members: RealSet, chosen: Tensor, index: Tensor) -> bytes:
    """A column for each chosen image: itself, and its nearest real images."""
    from PIL import Image

    columns = [[pixels[i], *members.pixels(index[i])] for i in chosen.tolist()]
    height = len(columns[0])
    sheet = Image.new("RGB", (len(columns) * (SIDE + 4), height * (SIDE + 4) + 6), (255, 255, 255))
    for x, column in enumerate(columns):
        for y, one in enumerate(column):
            tile = to_image(one).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(tile, (x * (SIDE + 4), y * (SIDE + 4) + (6 if y else 0)))
    return png(sheet)
