"""Pictures of pairs: each image above its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from datastill.report.pictures import FAINT, INK, MARGIN, PAPER, font, scaled, to_image

if TYPE_CHECKING:
    from PIL import Image

_WIDTH, _LINE, _SIZE = 150, 13, 10
_MOST_LINES = 5


def captioned(
    pixels: Tensor, captions: Sequence[str], *, title: str = "", columns: int = 6, most: int = 60
) -> Image.Image:
    """Images in reading order, each above its caption.

    Args:
        pixels: (n, c, h, w) in [0, 1].
        captions: one for each.
        title: above them.
        columns: to a line.
        most: at most so many pairs; a note tells of the others.
    """
    from PIL import Image, ImageDraw

    cells = [scaled(to_image(image), 96) for image in pixels[:most]]
    texts = [wrapped(text) for text in captions[:most]]
    width = max(_WIDTH, cells[0].width + 10)
    height = cells[0].height + _MOST_LINES * _LINE + 14
    lines, heading = math.ceil(len(cells) / columns), 26 if title else 0
    note = f"first {most} of {len(pixels)} pairs" if len(pixels) > most else ""
    size = (columns * width + 2 * MARGIN, lines * height + 2 * MARGIN + heading + (20 if note else 0))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 2), title, fill=INK, font=font(15, True))
    for k, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        line, column = divmod(k, columns)
        left, top = MARGIN + column * width, MARGIN + heading + line * height
        picture.paste(cell, (left, top))
        for row, part in enumerate(text):
            draw.text((left, top + cell.height + 4 + row * _LINE), part, fill=INK, font=font(_SIZE))
    draw.text((MARGIN, picture.height - MARGIN - 10), note, fill=FAINT, font=font(11))
    return picture


def wrapped(text: str) -> list[str]:
    """A caption in lines that fit below an image; one that is too long ends in an ellipsis."""
    plain = "".join(ch if ch.isprintable() else " " for ch in text).split()
    lines, face = [""], font(_SIZE)
    for word in plain:
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= _WIDTH - 10 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], f"{lines[_MOST_LINES - 1]} …"]
