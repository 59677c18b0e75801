"""Kernels, of networks of infinite width and of the features of finite ones, and ridge regression with them."""

from datastill.engines.kernels.dense import DenseKernel
from datastill.engines.kernels.features import FeatureKernel
from datastill.engines.kernels.ridge import Kernel, Ridge, fit_ridge, solved_labels

__all__ = ["DenseKernel", "FeatureKernel", "Kernel", "Ridge", "fit_ridge", "solved_labels"]
