"""Ridge regression with a kernel: in the space of the images (dual), or of the features (primal).

    P = K_ts (K_ss + lam tr(K_ss)/n I)^(-1) y  =  F_t (F_s'F_s + lam tr(F_s F_s')/n I)^(-1) F_s' y

The system is solved in float64 by a Cholesky decomposition. Where that fails, lam grows tenfold, six times at most;
what it became is part of the result.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from datastill.core.errors import Diverged, InputError

#: How often lam may grow tenfold.
RETRIES = 6


class Kernel(Protocol):
    """A positive semi-definite function of two images, differentiable in both."""

    def gram(self, x: Tensor) -> Tensor:
        """Of images with themselves, (n, n) float64."""
        ...

    def cross(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (m, ...) with others (n, ...), (m, n) float64."""
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """A kernel that is an inner product of features that can be written down."""

    def features(self, x: Tensor) -> Tensor:
        """(n, d)."""
        ...


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted regression.

    Attributes:
        support: images of the dual form (n, c, h, w); None in the primal one.
        weights: of the support (n, C), or of the features (d, C); float64.
        grown: what lam was multiplied by until the decomposition succeeded; 1 where it did at once.
    """

    kernel: Kernel
    support: Tensor | None
    weights: Tensor
    grown: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Predictions for images (m, c, h, w), (m, C) float64."""
        if self.support is not None:
            return self.kernel.cross(x, self.support) @ self.weights
        assert isinstance(self.kernel, HasFeatures)
        return self.kernel.features(x).double() @ self.weights


def fit_ridge(kernel: Kernel, x: Tensor, y: Tensor, lam: float) -> Ridge:
    """Fit targets (n, C) of support images (n, c, h, w).

    The primal form is taken where the kernel has fewer features than there are images: its system is smaller.

    Raises:
        InputError: the system is larger than the memory of the machine.
        Diverged: it cannot be decomposed, whatever lam.
    """
    y = y.double()
    if not isinstance(kernel, HasFeatures):
        refuse_size(len(x), x.device)
        weights, grown = _solve(kernel.gram(x), y, lam)
        return Ridge(kernel, x, weights, grown)
    rows = kernel.features(x).double()
    n, d = rows.shape
    refuse_size(min(n, d), x.device)
    if n <= d:
        weights, grown = _solve(rows @ rows.T, y, lam)
        return Ridge(kernel, None, rows.T @ weights, grown)
    weights, grown = _solve(rows.T @ rows, rows.T @ y, lam, count=n)
    return Ridge(kernel, None, weights, grown)


def solved_labels(
    kernel: Kernel, x: Tensor, targets: Tensor, y: Tensor, lam: float, weight: Tensor | None = None
) -> Tensor:
    """The labels (n, C) of a support x by which the regression fits targets' y (m, C) best, in least squares.

    The minimum of sum_t w_t |y_t - (A y_s)_t|^2 with A = K_ts (K_ss + lam tr/n I)^(-1), of smallest norm; without a
    graph. `weight` is (m,), None for equal ones.
    """
    with torch.no_grad():
        inverse, _ = _solve(kernel.gram(x), kernel.cross(targets, x).T, lam)
        rows, wanted = inverse.T, y.double()
        if weight is not None:
            root = weight.double().sqrt()[:, None]
            rows, wanted = root * rows, root * wanted
        return torch.linalg.pinv(rows) @ wanted


def refuse_size(n: int, device: torch.device) -> None:
    """Refuse a system of n equations that does not fit into the memory of the machine.

    Raises:
        InputError: with the bytes that it takes and those that there are.
    """
    there = _memory(device)
    needed = 3 * 8 * n * n  # the system, its decomposition, and a gradient of it
    if needed > there:
        raise InputError(
            f"Ridge regression on {n:,} images solves a system of {n:,} x {n:,} numbers, which takes {needed:,} bytes, "
            f"and {device} has {there:,}; take fewer images per class (--ipc)."
        )


def _memory(device: torch.device) -> int:
    """Bytes of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if not hasattr(os, "sysconf"):  # Windows does not say
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _solve(system: Tensor, right: Tensor, lam: float, count: int | None = None) -> tuple[Tensor, float]:
    """(system + lam tr/n I)^(-1) right, and what lam was multiplied by; `count` is n where it is not the system's."""
    scale = system.diagonal().sum() / (count or len(system))
    one = torch.eye(len(system), dtype=system.dtype, device=system.device)
    for k in range(RETRIES + 1):
        factor, failed = torch.linalg.cholesky_ex(system + lam * 10.0**k * scale * one)
        if not bool(failed):
            return torch.cholesky_solve(right, factor), 10.0**k
    raise Diverged(
        f"The ridge regression cannot be solved: its kernel matrix is not positive definite, not even with a ridge of "
        f"{lam * 10.0**RETRIES:g} of its mean diagonal; raise the ridge (--ridge), or look for extreme images."
    )
