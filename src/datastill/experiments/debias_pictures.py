"""The pictures of a de-biasing study: its sets side by side, and a bar for every row."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.experiments.debias_rows import NAMES, described
from datastill.report.plotting import plotting
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.files import member, write_bytes

#: Images of a class, and classes, that are shown of a set; panels beside one another.
MOST, PANELS = 10, 3
#: Accuracies of all, aligned and conflicting test images.
_BARS = (
    ("accuracy", "all test images", "#4f46e5"),
    ("aligned", "aligned", "#c7c9d9"),
    ("conflicting", "conflicting", "#e0a030"),
)


def write_pictures(records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """`images.png`, a panel for the first set of every row, and `accuracy.png`; the paths.

    Args:
        records: of the cells, whose sets lie in `out`.
        rows: of `debias_rows.rows`.
    """
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for one in records:
        if member(out, one["set"], 2).is_dir():
            first.setdefault(tuple(one[name] for name in (*NAMES[:-1], "seed")), one)
    seed = min((one["seed"] for one in first.values()), default=0)
    chosen = [one for one in first.values() if one["seed"] == seed]
    written = [out / "accuracy.png"]
    write_bytes(written[0], accuracy_chart(rows))
    if chosen:
        written.append(out / "images.png")
        panels = [(described(one, chosen), load_distilled(member(out, one["set"], 2))) for one in chosen]
        write_bytes(written[1], sheet(panels))
    return written


def sheet(panels: Sequence[tuple[str, DistilledSet]]) -> bytes:
    """Sets side by side, each under its name: a row of images for every class. PNG."""
    across = min(PANELS, len(panels))
    down = math.ceil(len(panels) / across)
    tiles = [tiled(one) for _, one in panels]
    height, width = tiles[0].shape[-2:]
    side = min(3.2, 3.2 * width / height)
    size = (across * max(2.4, side), down * (side * height / width + 0.3))
    figure = plotting().figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, _), image in zip(axes.flat, panels, tiles):
        axis.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(name, fontsize=8)
    return _png(figure)


def tiled(one: DistilledSet) -> Tensor:
    """The first images of the first classes as one image in [0, 1], a row for each class."""
    pixels, y = one.pixels.clamp(0, 1), one.hard_labels
    lines = []
    count = min(MOST, int(torch.bincount(y).max()))
    for c in y.unique()[:MOST].tolist():
        found = pixels[y == c][:count]
        padded = torch.ones(count, *pixels.shape[1:])
        padded[: len(found)] = found
        lines.append(torch.cat(list(torch.nn.functional.pad(padded, (1, 1, 1, 1), value=1.0)), 2))
    return torch.cat(lines, 1)


def accuracy_chart(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Accuracy of every row, of all, of aligned and of conflicting test images, percent. PNG."""
    figure = plotting().figure.Figure(figsize=(8.0, 0.8 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for k, (name, label, color) in enumerate(_BARS):
        error = [0.0 if name != "accuracy" or math.isnan(r["interval"]) else r["interval"] for r in rows]
        places = [i + 0.28 * (k - 1) for i in range(len(rows))]
        axis.barh(places, [r[name] for r in rows], 0.26, color=color, label=label, xerr=error, ecolor="#1f2937")
    axis.set_yticks(range(len(rows)), [described(row, rows) for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("test accuracy (%)", fontsize=9)
    axis.grid(True, axis="x", color="#e5e7eb")
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.45 / (0.8 + 0.42 * len(rows))), ncols=3, frameon=False, fontsize=8
    )
    return _png(figure)


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    figure.set_dpi(130)
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
