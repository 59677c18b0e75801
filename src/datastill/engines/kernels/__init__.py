"""Kernels, of networks of infinite width and of the features of finite ones, and ridge regression with them."""

from typing import Literal

from datastill.engines.kernels.convolutional import ConvKernel
from datastill.engines.kernels.dense import DenseKernel
from datastill.engines.kernels.features import FeatureKernel
from datastill.engines.kernels.ridge import Kernel, Ridge, fit_ridge, solved_labels

__all__ = [
    "ConvKernel",
    "DenseKernel",
    "FeatureKernel",
    "Kernel",
    "Ridge",
    "fit_ridge",
    "infinite_kernel",
    "solved_labels",
]


def infinite_kernel(
    kind: Literal["ntk", "nngp", "conv-ntk", "conv-nngp"], depth: int = 3, normalize: bool = True
) -> DenseKernel | ConvKernel:
    """The kernel of a dense or a convolutional network of infinite width by its name."""
    family = ConvKernel if kind.startswith("conv-") else DenseKernel
    return family("nngp" if kind.endswith("nngp") else "ntk", depth, normalize=normalize)
