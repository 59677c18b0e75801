"""Non-finite numbers change nothing: the step is counted and skipped, and after a bound the run stops. So do numbers
that have left any range which images can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import Diverged, RanAway

#: RMS of a leaf, beyond which nothing that trains a network is left of it: real images have about 1, in any Space.
FARTHEST = 50.0


@dataclass
class Guard:
    """Counts non-finite steps; `limit` in a row end the run."""

    limit: int = 25
    skipped: int = 0
    in_a_row: int = 0

    def accepts(self, loss: Tensor, grads: Mapping[str, Tensor], step: int) -> bool:
        """Whether the step may be applied.

        Raises:
            Diverged: `limit` steps in a row were not finite.
        """
        bad = "" if bool(torch.isfinite(loss).all()) else "the loss"
        for name, grad in grads.items():
            if not bad and not bool(torch.isfinite(grad).all()):
                bad = f"the gradient of {name!r}"
        if not bad:
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise Diverged(
                f"Stopped at step {step}: {bad} was not finite {self.limit} times in a row; nothing was changed by "
                "those steps. Lower the learning rate of the images (--image-lr) and start again."
            )
        return False

    def holds(self, leaves: Mapping[str, Tensor], step: int) -> None:
        """Look at the leaves of the images after a step.

        Raises:
            RanAway: one is beyond `FARTHEST`.
        """
        for name, leaf in leaves.items():
            rms = float(leaf.detach().square().mean().sqrt()) if leaf.is_floating_point() and leaf.numel() else 0.0
            if rms > FARTHEST:
                raise RanAway(
                    f"Stopped at step {step}: the numbers of {name!r} have run away (their RMS is {rms:.3g}; that of "
                    "real images is about 1). Lower the learning rate of the images (--image-lr) and start again."
                )
