"""Statistics of convolutions and batch-norm layers: of channels, and of patches (G-VBSM, arXiv:2311.17950).

A batch-norm layer has targets of its own, its running statistics. A convolution has none: they are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.engines.statistics import channel_moments

#: Pixels to a side of a patch.
PATCH = 4


def matched_layers(network: nn.Module) -> list[nn.Module]:
    """Batch norm with running statistics, and convolutions over images, in the order of the module's definition."""
    return [m for m in network.modules() if has_targets(m) or isinstance(m, nn.Conv2d)]


def has_targets(layer: nn.Module) -> bool:
    """Whether a layer keeps the statistics that it was trained on."""
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def running(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch-norm layer's mean and variance of each channel."""
    assert isinstance(layer, _BatchNorm)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


@contextmanager
def watching(layers: Mapping[int, nn.Module], note: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, `note` is told the number and the input of each layer that runs; no hook stays."""

    def telling(k: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
            note(k, given[0])

        return hook

    handles = [layer.register_forward_pre_hook(telling(k)) for k, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def moments_of(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Mean and biased variance of each channel; of a convolution's input also those of each patch.

    Args:
        layer: whose input `x` is.
        x: (n, c, ...).
    """
    if has_targets(layer):
        return channel_moments(x)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if x.shape[2] % PATCH == 0 and x.shape[3] % PATCH == 0:
        found: tuple[Tensor, ...] = _ChannelsAndPatches.apply(x)
        return found
    return (*channel_moments(x), *patch_moments(x))


def patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over images, channels and the 4 x 4 pixels of each patch, each (p,), row by row.

    Args:
        x: maps (n, c, h, w), enlarged bilinearly to the next multiple of 4.
    """
    variance, mean = torch.var_mean(_patches(x), (0, 1, 3, 5), correction=0)
    return mean.flatten(), variance.flatten()


def moments_per_image(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """As `moments_of`, for each image apart, (n, ...)."""
    over = list(range(2, x.ndim))
    variance, mean = torch.var_mean(x, over, correction=0) if over else (torch.zeros_like(x), x)
    if has_targets(layer):
        return mean, variance
    of_patches, patches = torch.var_mean(_patches(x), (1, 3, 5), correction=0)
    return mean, variance, patches.flatten(1), of_patches.flatten(1)


def _patches(x: Tensor) -> Tensor:
    height, width = (-(-side // PATCH) for side in x.shape[2:])
    whole = (height * PATCH, width * PATCH)
    if tuple(x.shape[2:]) != whole:
        x = F.interpolate(x, size=whole, mode="bilinear", align_corners=False)
    return x.reshape(*x.shape[:2], height, PATCH, width, PATCH)


class _ChannelsAndPatches(torch.autograd.Function):
    """Four statistics of maps whose sides are multiples of 4, with a backward pass of one sweep over them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        of_patches, patches = torch.var_mean(_patches(x), (0, 1, 3, 5), correction=0)
        ctx.save_for_backward(x, mean, patches)
        return mean, variance, patches.flatten(), of_patches.flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, mean, patches = ctx.saved_tensors
        n, c, h, w = x.shape
        pixels, numbers = n * h * w, n * c * PATCH**2
        slope = (2 / pixels) * grads[1]  # d v / d x = 2 (x - mu) / n
        bias = grads[0] / pixels - slope * mean
        patch_slope = (2 / numbers) * grads[3].view_as(patches)
        patch_bias = grads[2].view_as(patches) / numbers - patch_slope * patches
        return x * _spread(slope, patch_slope) + _spread(bias, patch_bias)


def _spread(channels: Tensor, patches: Tensor) -> Tensor:
    """A number for each channel and pixel, (c, h, w)."""
    wide = patches.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    return channels.view(-1, 1, 1) + wide
