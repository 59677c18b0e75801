"""Where canvases of textures start: see `decoders.texture`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.plan import Block, Task
from datastill.sampling.inits import several_indices


@dataclass(frozen=True)
class CanvasInit:
    """Canvases to start from: of distinct real images of the class, tile by tile, or of noise.

    The first tile is the image that a set without canvases would start from.
    """

    factor: int
    noise: bool = False

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Canvases (n, c, factor h, factor w), and `mixed`: the real image of every tile, (n, factor^2)."""
        f, (c, h, w) = self.factor, task.real.shape
        if self.noise:
            shape = (c, f * h, f * w)
            drawn = torch.stack(
                [torch.randn(shape, generator=context.rng.generator("noise", int(i))) for i in block.index]
            )
            raw = task.real.space.kind == "raw"
            return task.real.space.encode((drawn / 4 + 0.5).clamp(0, 1)) if raw else drawn, {}
        index = several_indices(task.real, task.ipc, f * f, task.seed)[block.index]
        tiles = task.real.batch(index.flatten()).x.view(len(index), f, f, c, h, w)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(index), c, f * h, f * w), {"mixed": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "noise" if self.noise else "real", "canvas": self.factor}
