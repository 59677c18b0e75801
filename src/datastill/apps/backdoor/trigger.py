"""A patch that is put on images, and real sets of which some images bear it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.real import RealSet
from datastill.data.store import Store, as_pixels


@dataclass
class Trigger:
    """A square near the bottom right corner, one pixel from the border.

    Attributes:
        patch: pixels of the whole image in [0, 1], (c, h, w); those outside the mask are of no account. Who learns the
            trigger changes them in place.
        mask: where the trigger is, (h, w) bool.
    """

    patch: Tensor
    mask: Tensor

    @classmethod
    def white(cls, shape: tuple[int, int, int], size: int = 2) -> Trigger:
        """All ones, as NaiveAttack has it."""
        return cls(torch.ones(shape), square(shape, size))

    @classmethod
    def random(cls, shape: tuple[int, int, int], size: int, generator: torch.Generator) -> Trigger:
        """Pixels from 1/255 to 1, where DoorPing begins."""
        drawn = torch.randint(1, 256, shape, generator=generator)
        return cls(drawn.float() / 255, square(shape, size))

    def on(self, pixels: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] with the trigger; others than the mask's stay bit for bit."""
        return torch.where(self.mask, self.patch.to(pixels), pixels)


def square(shape: tuple[int, int, int], size: int) -> Tensor:
    """The mask (h, w).

    Raises:
        InputError: the square and its margin do not fit into the image.
    """
    _, height, width = shape
    if size < 1 or size + 1 > min(height, width):
        raise InputError(
            f"A trigger of {size} x {size} pixels does not fit into images of {height} x {width} with its margin of "
            f"one pixel; take 1 to {min(height, width) - 1} (--pixels)."
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height - 1 - size : height - 1, width - 1 - size : width - 1] = True
    return mask


class Triggered(Store):
    """A store some of whose images bear the trigger as it is at the moment of reading; nothing is copied."""

    def __init__(self, store: Store, rows: Tensor, trigger: Trigger) -> None:
        self.store, self.trigger, self.shape = store, trigger, store.shape
        self.bears = torch.zeros(len(store), dtype=torch.bool)
        self.bears[rows] = True

    def __len__(self) -> int:
        return len(self.store)

    def stored(self, index: Tensor) -> Tensor:
        """Float pixels."""
        pixels = as_pixels(self.store.stored(index))
        bears = self.bears[index]
        pixels[bears] = self.trigger.on(pixels[bears])
        return pixels


def poisoned(real: RealSet, trigger: Trigger, target: int, fraction: float, seed: int) -> tuple[RealSet, Tensor]:
    """A real set a fraction of whose images bear the trigger and the target's label, and which those are.

    Args:
        real: stays as it is; its test split is that of the result.
        trigger: as it is at the moment of reading.
        target: position of the class whose label they get.
        fraction: of all training images, of whatever class; rounded down.
        seed: of the choice.

    Raises:
        InputError: no such class, or so few images that none is poisoned.
    """
    if not 0 <= target < real.classes:
        raise InputError(f"There is no class {target}; {real.name} has {real.classes} classes, from 0.")
    count = int(fraction * len(real))
    if not count:
        raise InputError(f"A fraction of {fraction:g} of {len(real)} images is not one image; poison more.")
    rows = torch.randperm(len(real), generator=Rng(seed).generator("backdoor", "rows"))[:count].sort().values
    labels = real.labels.clone()
    labels[rows] = target
    bad = replace(real, store=Triggered(real.store, rows, trigger), labels=labels, weights=None, source="", options={})
    return bad, rows
