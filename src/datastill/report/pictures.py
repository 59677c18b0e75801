"""Pictures of image sets with Pillow: labeled grids, two sets side by side, an animation."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datastill.core.errors import InputError
from datastill.report.plotting import plotting
from datastill.report.snapshots import Snapshots, Timeline, chosen
from datastill.store.artifact import DistilledSet

if TYPE_CHECKING:
    from PIL import Image

#: A distilled set, or pixels (n, c, h, w) in [0, 1], labels and class names.
Pictured = DistilledSet | tuple[Tensor, Tensor, Sequence[str]]

INK, FAINT, PAPER = (31, 41, 55), (107, 114, 128), (255, 255, 255)
GAP, MARGIN = 3, 14
GUTTER = 14  #: between columns of rows
WIDEST = 1000  #: a grid is not folded beyond this width
#: Cells are enlarged to at least the first and reduced to at most the second number of pixels.
SMALLEST, LARGEST = 56, 128


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels of [0, 1] as uint8, clamped and rounded to the nearest of 256 levels."""
    return (pixels.detach().cpu().float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)


def to_image(pixels: Tensor) -> Image.Image:
    """One image (c, h, w) of [0, 1]: gray for one channel, else RGB (of more than three, the first three)."""
    from PIL import Image

    array = to_bytes(pixels).numpy()
    if len(array) == 1:
        return Image.fromarray(np.ascontiguousarray(array[0]))
    if len(array) == 2:
        array = np.concatenate([array, np.zeros_like(array[:1])])
    return Image.fromarray(np.ascontiguousarray(array[:3].transpose(1, 2, 0)))


def png(image: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def scaled(image: Image.Image, smallest: int = SMALLEST, largest: int = LARGEST) -> Image.Image:
    """Enlarged by a whole factor so that its shorter side is at least `smallest`, or reduced to `largest`."""
    from PIL import Image

    w, h = image.size
    if max(w, h) > largest:
        ratio = largest / max(w, h)
        return image.resize((max(1, round(w * ratio)), max(1, round(h * ratio))), Image.Resampling.LANCZOS)
    factor = max(1, min(math.ceil(smallest / min(w, h)), largest // max(w, h)))
    return image.resize((w * factor, h * factor), Image.Resampling.NEAREST)


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans as matplotlib ships it, so that pictures look alike on every machine."""
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(str(Path(plotting("matplotlib").get_data_path()) / "fonts" / "ttf" / name), size)
    except OSError:
        return ImageFont.load_default(size)


def hard(labels: Tensor) -> Tensor:
    """Class positions (n,), of class positions or of probabilities (n, C)."""
    labels = labels.detach().cpu()
    return labels if labels.ndim == 1 else labels.argmax(1)


def grid(
    pixels: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    title: str = "",
    columns: int = 10,
    rows: int = 20,
) -> Image.Image:
    """One row per class with its name at the left, tiny images enlarged without smoothing.

    Classes of few images are folded into several columns of rows. What does not fit is cut, and a note
    below says so.

    Args:
        pixels: (n, c, h, w) in [0, 1]; values outside are clamped.
        labels: class positions (n,), or probabilities (n, C).
        class_names: one per class position.
        columns: at most so many images of a class.
        rows: at most so many classes.
    """
    from PIL import Image, ImageDraw

    y = hard(labels)
    present = [int(c) for c in y.unique()]
    shown = [(c, (y == c).nonzero().flatten()[:columns].tolist()) for c in present[:rows]]
    layout = _layout([(_short(class_names[c]), len(index)) for c, index in shown], pixels.shape[2:])
    notes = _cuts(y, len(present), rows, columns, pixels.shape[1])
    heading, footing = (26 if title else 0), (22 * len(notes))
    width = layout.width + 2 * MARGIN
    for text, size, bold in [(title, 15, True), *((note, 11, False) for note in notes)]:
        width = max(width, 2 * MARGIN + math.ceil(font(size, bold).getlength(text)))
    picture = Image.new("RGB", (width, layout.height + 2 * MARGIN + heading + footing), PAPER)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((MARGIN, MARGIN - 2), title, fill=INK, font=font(15, True))
    for k, (c, index) in enumerate(shown):
        left, top = layout.place(k)
        left, top = left + MARGIN, top + MARGIN + heading
        middle = (left + layout.names - 8, top + layout.cell[1] // 2)
        draw.text(middle, _short(class_names[c]), fill=INK, font=font(13), anchor="rm")
        for column, i in enumerate(index):
            cell = scaled(to_image(pixels[i]))
            picture.paste(cell, (left + layout.names + column * (layout.cell[0] + GAP), top))
    for line, note in enumerate(notes):
        place = (MARGIN, picture.height - MARGIN - 22 * (len(notes) - line) + 8)
        draw.text(place, note, fill=FAINT, font=font(11))
    return picture


@dataclass(frozen=True)
class _Layout:
    """Where the rows of a grid stand: `fold` columns of `lines` rows."""

    cell: tuple[int, int]
    names: int  #: width of the names
    row: int  #: width of a row
    lines: int
    fold: int

    @property
    def width(self) -> int:
        return self.fold * self.row + (self.fold - 1) * GUTTER

    @property
    def height(self) -> int:
        return self.lines * (self.cell[1] + GAP) - GAP

    def place(self, k: int) -> tuple[int, int]:
        """Left and top of row `k`."""
        column, line = divmod(k, self.lines)
        return column * (self.row + GUTTER), line * (self.cell[1] + GAP)


def _layout(named: Sequence[tuple[str, int]], size: Sequence[int]) -> _Layout:
    cell = scaled(to_image(torch.zeros(1, *size))).size
    names = max(math.ceil(font(13).getlength(name)) for name, _ in named) + 8
    row = names + max(count for _, count in named) * (cell[0] + GAP) - GAP
    best = _Layout(cell, names, row, len(named), 1)
    for fold in range(2, len(named) + 1):
        lines = math.ceil(len(named) / fold)
        wider = _Layout(cell, names, row, lines, math.ceil(len(named) / lines))
        if best.height <= 1.9 * best.width or wider.width > WIDEST:
            break
        best = wider
    return best


def _cuts(y: Tensor, classes: int, rows: int, columns: int, channels: int) -> list[str]:
    most = int(torch.bincount(y).max())
    cuts = []
    if classes > rows:
        cuts.append(f"first {rows} of {classes} classes")
    if most > columns:
        cuts.append(f"first {columns} of {most} images per class")
    if channels > 3:
        cuts.append(f"first 3 of {channels} channels")
    return [", ".join(cuts)] if cuts else []


def _short(name: str, limit: int = 24) -> str:
    plain = " ".join("".join(ch if ch.isprintable() else " " for ch in name).split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def _parts(pictured: Pictured) -> tuple[Tensor, Tensor, Sequence[str]]:
    if isinstance(pictured, DistilledSet):
        return pictured.pixels, pictured.hard_labels, pictured.class_names
    return pictured


def preview(distilled: DistilledSet, *, columns: int = 10, rows: int = 20) -> Image.Image:
    """The picture of a distilled set that lies beside it as `preview.png`."""
    if distilled.label_kind == "pairs":
        from datastill.report.paired import captioned

        return captioned(distilled.pixels, distilled.record.captions, title=distilled.name)
    return grid(*_parts(distilled), title=distilled.name, columns=columns, rows=rows)


def comparison(
    left: Pictured, right: Pictured, titles: tuple[str, str], *, columns: int = 10, rows: int = 10
) -> Image.Image:
    """Two labeled grids side by side: Random beside what was distilled, say."""
    from PIL import Image, ImageDraw

    grids = [
        grid(*_parts(side), title=title, columns=columns, rows=rows)
        for side, title in zip((left, right), titles, strict=True)
    ]
    height = max(g.height for g in grids)
    picture = Image.new("RGB", (sum(g.width for g in grids) + 8, height), PAPER)
    picture.paste(grids[0], (0, 0))
    picture.paste(grids[1], (grids[0].width + 8, 0))
    middle = grids[0].width + 4
    ImageDraw.Draw(picture).line((middle, MARGIN, middle, height - MARGIN), fill=(229, 231, 235))
    return picture


def sheet(
    pixels: Tensor, columns: int, *, background: tuple[int, ...] = PAPER, gap: int = GAP, smallest: int = SMALLEST
) -> Image.Image:
    """All images in reading order, `columns` to a line, without names; a 4-number background may be clear."""
    from PIL import Image

    cells = [scaled(to_image(image), smallest) for image in pixels]
    w, h = cells[0].size
    lines = math.ceil(len(cells) / columns)
    mode = "RGBA" if len(background) == 4 else "RGB"
    size = (columns * (w + gap) - gap, lines * (h + gap) - gap)
    picture = Image.new(mode, size, tuple(background))
    for k, cell in enumerate(cells):
        line, column = divmod(k, columns)
        picture.paste(cell.convert(mode), (column * (w + gap), line * (h + gap)))
    return picture


def frames(timeline: Timeline | Snapshots, *, values: int = 320_000, **options: Any) -> list[Image.Image]:
    """One sheet per moment: a line per class, or ten classes to a line where each has one image.

    Args:
        values: numbers that are drawn per moment at most; of more images, the first of each class.
        **options: of `sheet`.
    """
    timeline = timeline_of(timeline)
    index = framed(timeline, values)
    each = int(torch.bincount(timeline.labels[index]).max())
    columns = each if each > 1 else min(10, len(index))
    return [sheet(pixels[index].float(), columns, **options) for pixels in timeline.pixels]


def framed(timeline: Timeline, values: int = 320_000) -> Tensor:
    """Positions of the images that `frames` draws, class by class."""
    return chosen(timeline.labels, 10, max(1, values // int(timeline.pixels[0, 0].numel())))


def timeline_of(snapshots: Timeline | Snapshots) -> Timeline:
    """A timeline, out of a callback too."""
    found = snapshots.timeline if isinstance(snapshots, Snapshots) else snapshots
    if found is None:
        raise InputError("These snapshots are empty: no run has started with them.")
    return found


def animation(snapshots: Timeline | Snapshots, *, milliseconds: int = 350) -> bytes:
    """A GIF from the initialization to the end that rests on the last images."""
    from PIL import Image, ImageDraw

    timeline = timeline_of(snapshots)
    pictures = []
    for step, picture in zip(timeline.steps, frames(timeline), strict=True):
        caption = f"step {step:,} of {timeline.total:,}" if step else "initialization"
        width = max(picture.width, math.ceil(font(13).getlength(f"step {timeline.total:,} of {timeline.total:,}")))
        page = Image.new("RGB", (width + 2 * MARGIN, picture.height + 2 * MARGIN + 22), PAPER)
        page.paste(picture, (MARGIN, MARGIN))
        ImageDraw.Draw(page).text((MARGIN, page.height - MARGIN - 14), caption, fill=INK, font=font(13))
        pictures.append(page)
    times = [milliseconds] * (len(pictures) - 1) + [5 * milliseconds]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return buffer.getvalue()


def thumbnail(pixels: Tensor, side: int = 96) -> bytes:
    """One image (c, h, w) as PNG at its own resolution, averaged down where it is larger than `side`."""
    h, w = pixels.shape[1:]
    if (shrink := max(h, w) / side) > 1:
        size = (max(1, round(h / shrink)), max(1, round(w / shrink)))
        pixels = functional.interpolate(pixels[None].float(), size=size, mode="area")[0]
    return png(to_image(pixels))
