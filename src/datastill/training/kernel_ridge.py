"""Ridge regression with a kernel in the place of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.engines.kernels import Kernel, Ridge, fit_ridge
from datastill.training.regression import targets_of
from datastill.training.trainers import Labeled, Told, Trained

if TYPE_CHECKING:
    from datastill.models import Network
    from datastill.models.factory import NetworkFactory


class Regressor(nn.Module):
    """A fitted regression as a module without weights: images (n, c, h, w) to numbers (n, C)."""

    def __init__(self, ridge: Ridge) -> None:
        super().__init__()
        self.ridge = ridge

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, float32."""
        return self.ridge(x).float()


@dataclass(frozen=True)
class KernelTrainer:
    """A closed form: nothing is random, so that all networks of a set are one regression.

    Attributes:
        kernel, ridge: of the regression.
        classes: C.
        lr: for tables alone; there is no rate.
    """

    kernel: Kernel
    ridge: float
    classes: int
    lr: float

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`; the network's family is of no account."""
        assert isinstance(data.x, Tensor)
        targets = targets_of(data.y, self.classes).to(runtime.device)
        with torch.no_grad():
            fitted = Regressor(fit_ridge(self.kernel, data.x.to(runtime.device), targets, self.ridge))
        told(len(rngs), {})
        return Trained([cast("Network", fitted)] * len(rngs), [])
