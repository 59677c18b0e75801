"""Where synthetic images start."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Block, Init, Task
from datastill.core.rng import Rng
from datastill.data.real import check_ipc
from datastill.decoders.multi_formation import tile_edges
from datastill.store.files import digest

if TYPE_CHECKING:
    from datastill.data.real import RealSet


def random_indices(real: RealSet, ipc: int, seed: int) -> Tensor:
    """The random selection of a seed: `ipc` distinct images of every class, (C * ipc,), class by class.

    Every real start, the Random method and the Random arm of an evaluation take this one selection, so
    that they pair.
    """
    return torch.cat([shuffled_members(real, c, seed)[:ipc] for c in range(real.classes)])


def shuffled_members(real: RealSet, c: int, seed: int) -> Tensor:
    """All images of a class in the order of a seed's selection, (n_c,)."""
    members = real.class_index(c)
    return members[torch.randperm(len(members), generator=Rng(seed).generator("selection", c))]


def several_indices(real: RealSet, ipc: int, count: int, seed: int) -> Tensor:
    """`count` real images for every stored one, (C * ipc, count), class by class; the first are `random_indices`.

    The images of a class are distinct, and come again in the same order where it has fewer than ipc * count.

    Raises:
        InputError: a class has fewer than `ipc` images.
    """
    check_ipc(real, ipc)
    chosen = []
    for c in range(real.classes):
        order = shuffled_members(real, c, seed)
        chosen.append(order[torch.arange(ipc * count) % len(order)].view(count, ipc).T)
    return torch.cat(chosen)


def placed(block: Block, ipc: int, rows: Mapping[int, Tensor]) -> Tensor:
    """What each stored image of a block has, (n, ...), from that of the ipc images of each class, (ipc, ...)."""
    places = zip(block.index.tolist(), block.y.tolist(), strict=True)
    return torch.stack([rows[c][i % ipc] for i, c in places])


def mosaic(real: RealSet, index: Tensor, factor: int) -> Tensor:
    """Images (n, c, h, w) whose tiles are the real images at `index` (n, factor^2), reduced to the nearest pixel."""
    _, height, width = real.shape
    corners = itertools.product(tile_edges(height, factor), tile_edges(width, factor))
    made = torch.zeros(len(index), *real.shape)
    for k, ((top, bottom), (left, right)) in enumerate(corners):
        tile = F.interpolate(real.batch(index[:, k]).x, size=(bottom - top, right - left), mode="nearest")
        made[:, :, top:bottom, left:right] = tile
    return made


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
class MixReal:
    """Every tile of a stored image is a real image of its class, reduced to the tile (IDC, arXiv:2205.14959).

    Tiles are those of `decoders.multi_formation`; images are reduced by taking the nearest pixel. With factor 1 it is
    `RandomReal`.
    """

    factor: int = 1

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The mosaics, and `mixed`: the position in the real set of every tile, (n, factor^2)."""
        index = several_indices(task.real, task.ipc, self.factor**2, task.seed)[block.index]
        return mosaic(task.real, index, self.factor), {"mixed": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "mix", "factor": self.factor}


@dataclass(frozen=True)
class SeveralReal:
    """Distinct random real images of its class for every stored image, for decoders that store several in the room of
    one: those of a stored image after each other."""

    count: int

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images (n * count, c, h, w), and `mixed`: their positions in the real set, (n, count)."""
        index = several_indices(task.real, task.ipc, self.count, task.seed)[block.index]
        return task.real.batch(index.flatten()).x, {"mixed": index}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "real", "count": self.count}


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers in the Space; in raw pixels, N(0.5, 0.25) clipped to [0, 1].

    With `pixels` it is the latter in every Space, as codes that are stored as pixels need it.
    """

    pixels: bool = False

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Noise, drawn per image so that a partition does not change it."""
        shape = task.real.shape
        drawn = [torch.randn(shape, generator=context.rng.generator("noise", int(i))) for i in block.index]
        noise = torch.stack(drawn)
        if self.pixels or task.real.space.kind == "raw":
            noise = task.real.space.encode((noise / 4 + 0.5).clamp(0, 1))
        return noise, {}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "noise", **({"pixels": True} if self.pixels else {})}


@dataclass(frozen=True)
class NoImages:
    """Zeros, for decoders whose codes begin without images."""

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """Zeros of the right size."""
        return torch.zeros(len(block.y), *task.real.shape), {}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "none"}


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


def make_init(init: str | Tensor | Init, factor: int = 1, pixels: bool = False, others: Sequence[str] = ()) -> Init:
    """An initialization from its name ("real", "mix", "noise" or "weighted"), from images, or as it is.

    Args:
        factor: of multi-formation, whose tiles "mix" fills with a real image each.
        pixels: whether codes are stored as pixels, for "noise".
        others: names that the method knows besides, for the error.

    Raises:
        InputError: unknown name.
    """
    if isinstance(init, Tensor):
        return Given(init)
    if not isinstance(init, str):
        return init
    from datastill.sampling.weighted import WeightedReal

    known: dict[str, Init] = {
        "real": RandomReal(),
        "mix": MixReal(factor),
        "noise": Noise(pixels),
        "weighted": WeightedReal(factor),
    }
    if init not in known:
        raise InputError(f"There is no initialization {init!r}. {nearest(init, (*known, *others))}")
    return known[init]
