"""What every engine returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class HyperGradients:
    """The matching loss of N student steps and its gradients, all detached.

    Attributes:
        loss: L, 0-dim.
        x: dL/dX for the images before augmentation, (n, c, h, w); zero where the plan never went.
        y: dL/dY, (n, C), or None for class positions.
        alpha: dL/dalpha, 0-dim.
        distances: every term's normalized distance without its weight, (K,).
        theta: where the student ended, theta_N, (P,).
    """

    loss: Tensor
    x: Tensor
    y: Tensor | None
    alpha: Tensor
    distances: Tensor
    theta: Tensor
