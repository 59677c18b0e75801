"""A run's images at about twelve steps, from the initialization to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from datastill.core.errors import InputError
from datastill.core.plan import Callback
from datastill.store.files import read_tensors, write_tensors
from datastill.store.schema import Kind

if TYPE_CHECKING:
    from datastill.core.context import Context

FILE = "snapshots.safetensors"
KINDS = {
    "steps": Kind(("I64",), (1,)),
    "pixels": Kind(("U8", "F16", "F32"), (5,)),
    "labels": Kind(("I64",), (1,)),
    "total": Kind(("I64",), (0,)),
}
#: Larger images are averaged down to this side: a timeline is looked at, not trained on.
SIDE = 64
#: Numbers per snapshot; with a dozen float16 snapshots at most about 25 MB in a checkpoint.
VALUES = 2**20


def moments(steps: int, count: int = 12) -> list[int]:
    """At most `count` steps to keep: 0, then roughly geometric, and the last; depends on `steps` alone."""
    if steps <= 0:
        return [0]
    growing = max(1, count - 2)
    return sorted({0, steps, *(round(steps ** (i / growing)) for i in range(growing))})


def chosen(labels: Tensor, per_class: int, limit: int) -> Tensor:
    """Positions of the first images of every class, class by class: at most `per_class` each, `limit` in all."""
    classes = labels.unique().tolist()
    each = min(per_class, max(1, limit // max(1, len(classes))))
    found = [(labels == c).nonzero().flatten()[:each] for c in classes]
    return torch.cat(found)[:limit] if found else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Timeline:
    """Images of a run over time.

    Attributes:
        steps: the k image updates after which they were kept, ascending; 0 is the initialization.
        pixels: (k, n, c, h, w) in [0, 1], float16.
        labels: class positions, (n,).
        total: image updates of the whole run.
    """

    steps: tuple[int, ...]
    pixels: Tensor
    labels: Tensor
    total: int

    def __len__(self) -> int:
        return len(self.steps)


class Snapshots(Callback):
    """Keeps a block's rendered images at about twelve steps; a resumed run has the identical timeline.

    Of several blocks the first is kept. Images larger than 64 pixels are averaged down.

    Args:
        per_class: images of each class.
        limit: images in all.
        count: how many moments.
    """

    name = "snapshots"

    def __init__(self, per_class: int = 10, limit: int = 200, count: int = 12) -> None:
        self.per_class, self.limit, self.count = per_class, limit, count
        self._forget()

    def _forget(self) -> None:
        self._block: int | None = None
        self._total = 0
        self._kept: dict[int, Tensor] = {}
        self._labels = torch.zeros(0, dtype=torch.int64)

    def start(self, context: Context) -> None:
        """Keep the initialization. A second start of the same block is a new run, and begins anew."""
        if self._block == context.block.key:
            self._forget()
        if self._block is None:
            self._keep(context)

    def after_step(self, context: Context) -> None:
        """Keep the images where this step is one of the moments."""
        if self._block not in (None, context.block.key):
            return
        if context.step in moments(context.steps, self.count):
            self._keep(context)

    def _keep(self, context: Context) -> None:
        with torch.no_grad():
            synthetic = context.plan.decoder.decode(context.codes, context.block.y)
            x, y = synthetic.x.detach().cpu().float(), synthetic.y.detach().cpu()
            y = y if y.ndim == 1 else y.argmax(1)
            c, h, w = x.shape[1:]
            shrink = max(1.0, max(h, w) / SIDE)
            size = (max(1, round(h / shrink)), max(1, round(w / shrink)))
            index = chosen(y, self.per_class, min(self.limit, max(1, VALUES // (c * size[0] * size[1]))))
            pixels = context.task.real.space.decode(x[index])
            if shrink > 1:
                pixels = functional.interpolate(pixels, size=size, mode="area")
        self._block, self._total, self._labels = context.block.key, context.steps, y[index]
        self._kept[context.step] = pixels.clamp(0, 1).half()

    @property
    def timeline(self) -> Timeline | None:
        """What was kept so far, or None before the first step."""
        if not self._kept:
            return None
        steps = sorted(self._kept)
        return Timeline(tuple(steps), torch.stack([self._kept[s] for s in steps]), self._labels, self._total)

    def state(self) -> dict[str, Tensor]:
        """The timeline so far, for a checkpoint."""
        timeline = self.timeline
        if timeline is None:
            return {}
        return {**_tensors(timeline), "block": torch.tensor(self._block)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's timeline."""
        self._forget()
        if "pixels" not in state:
            return
        self._block, self._total = int(state["block"]), int(state["total"])
        self._labels = state["labels"].clone()
        self._kept = dict(zip(state["steps"].tolist(), state["pixels"].clone(), strict=True))

    def save(self, folder: str | Path) -> Path | None:
        """Write `snapshots.safetensors` into a folder; None, and no file, where nothing was kept."""
        timeline = self.timeline
        if timeline is None:
            return None
        path = Path(folder) / FILE
        write_tensors(path, _tensors(timeline), {"format": "datastill-snapshots"})
        return path


def load_snapshots(folder: str | Path) -> Timeline:
    """Read what `Snapshots.save` wrote.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    path = Path(folder) / FILE
    tensors, _ = read_tensors(path, KINDS)
    missing = [name for name in ("steps", "pixels", "labels", "total") if name not in tensors]
    if missing:
        raise InputError(f"{path} is not a timeline of datastill ({missing[0]} is missing).")
    steps, pixels, labels = tensors["steps"], tensors["pixels"], tensors["labels"]
    sound = pixels.ndim == 5 and len(steps) == len(pixels) > 0 and pixels.shape[1] == len(labels)
    if not sound or steps.ndim != 1 or not bool(torch.isfinite(pixels).all()):
        raise InputError(f"The steps, images and labels in {path} do not fit together; it is damaged.")
    return Timeline(tuple(int(s) for s in steps), pixels, labels, int(tensors["total"]))


def _tensors(timeline: Timeline) -> dict[str, Tensor]:
    return {
        "steps": torch.tensor(timeline.steps, dtype=torch.int64),
        "pixels": timeline.pixels,
        "labels": timeline.labels,
        "total": torch.tensor(timeline.total),
    }
