"""Where synthetic images start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.files import digest
from datastill.core.plan import Block, Init, Task
from datastill.core.rng import Rng

if TYPE_CHECKING:
    from datastill.data.real import RealSet


def random_indices(real: RealSet, ipc: int, seed: int) -> Tensor:
    """The random selection of a seed: `ipc` distinct images of every class, (C * ipc,), class by class.

    Every real start, the Random method and the Random arm of an evaluation take this one selection, so
    that they pair.
    """
    chosen = []
    for c in range(real.classes):
        members = real.class_index(c)
        order = torch.randperm(len(members), generator=Rng(seed).generator("selection", c))
        chosen.append(members[order[:ipc]])
    return torch.cat(chosen)


@dataclass(frozen=True)
class RandomReal:
    """Distinct random real images of each class."""

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images, and `selected`: their positions in the real set."""
        index = random_indices(task.real, task.ipc, task.seed)[block.index]
        return task.real.batch(index).x, {"selected": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "real"}


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers in the Space; in raw pixels, N(0.5, 0.25) clipped to [0, 1]."""

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Noise, drawn per image so that a partition does not change it."""
        shape = task.real.shape
        drawn = [torch.randn(shape, generator=context.rng.generator("noise", int(i))) for i in block.index]
        noise = torch.stack(drawn)
        if task.real.space.kind == "raw":
            noise = (noise / 4 + 0.5).clamp(0, 1)
        return noise, {}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "noise"}


@dataclass(frozen=True)
class Given:
    """Images of the caller's, in the Space, class by class (C * ipc, c, h, w)."""

    tensor: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The given images of the block."""
        expected = (len(task.labels), *task.real.shape)
        if tuple(self.tensor.shape) != expected:
            raise InputError(
                f"The given initial images have shape {tuple(self.tensor.shape)}; {expected} is needed: "
                "ipc images of every class, class by class."
            )
        if not bool(torch.isfinite(self.tensor).all()):
            raise InputError("The given initial images hold NaN or infinite numbers; replace them first.")
        return self.tensor[block.index].float(), {n: t[block.index] for n, t in self.extra.items()}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "given", "images": digest(self.tensor)}


def make_init(init: str | Tensor | Init) -> Init:
    """An initialisation from its name ("real" or "noise"), from images, or as it is.

    Raises:
        InputError: unknown name.
    """
    if isinstance(init, Tensor):
        return Given(init)
    if not isinstance(init, str):
        return init
    known: dict[str, Init] = {"real": RandomReal(), "noise": Noise()}
    if init not in known:
        raise InputError(f"There is no initialisation {init!r}. {nearest(init, known)}")
    return known[init]
