"""Non-finite numbers change nothing: the step is counted and skipped, and after a bound the run stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datastill.core.errors import Diverged


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
