"""The image operations of DSA: batched, one parameter set per image, twice differentiable in the images.

Every function takes images (n, c, h, w) and per-image parameters on the same device; every operation is
affine in the images for fixed parameters. What lies outside the picture is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast.

    Args:
        x: images, (n, c, h, w).
        brightness: what is added to every value, (n,).
        saturation: factor of the distance from the mean over channels, (n,); no effect on one channel.
        contrast: factor of the distance from the image's mean, (n,).
    """
    x = x + _per_image(brightness, x)
    if x.shape[1] > 1:
        gray = x.mean(1, keepdim=True)
        x = (x - gray) * _per_image(saturation, x) + gray
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * _per_image(contrast, x) + mean


def shift(x: Tensor, offset: Tensor) -> Tensor:
    """Whole-pixel shift: output pixel (i, j) is input pixel (i + offset_y, j + offset_x), 0 outside.

    Args:
        x: images, (n, c, h, w).
        offset: (n, 2) int64, rows then columns.
    """
    n, c, h, w = x.shape
    row = torch.arange(h, device=x.device) + offset[:, :1]  # (n, h)
    column = torch.arange(w, device=x.device) + offset[:, 1:]  # (n, w)
    inside = ((row >= 0) & (row < h))[:, :, None] & ((column >= 0) & (column < w))[:, None, :]
    source = row.clamp(0, h - 1)[:, :, None] * w + column.clamp(0, w - 1)[:, None, :]  # (n, h, w)
    moved = x.flatten(2).gather(2, source.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)
    return moved.masked_fill(~inside[:, None], 0.0)


def cut_out(x: Tensor, hole: Tensor) -> Tensor:
    """Zero a rectangle: rows top..bottom-1 and columns left..right-1, clipped to the image.

    Args:
        x: images, (n, c, h, w).
        hole: (n, 4) int64: top, left, bottom, right; may reach outside the image.
    """
    row = torch.arange(x.shape[2], device=x.device)
    column = torch.arange(x.shape[3], device=x.device)
    rows = (row >= hole[:, 0:1]) & (row < hole[:, 2:3])  # (n, h)
    columns = (column >= hole[:, 1:2]) & (column < hole[:, 3:4])  # (n, w)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def mirror(x: Tensor, flip: Tensor) -> Tensor:
    """Mirror left-right where `flip` (n,) bool is set."""
    return torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)


def scale(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the sampling grid by factor (n, 2), columns (x) then rows (y); above 1 shrinks the picture."""
    theta = x.new_zeros(len(x), 2, 3)
    theta[:, 0, 0] = factor[:, 0]
    theta[:, 1, 1] = factor[:, 1]
    return _warp(x, theta)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate the sampling grid by angle (n,) in radians, in normalized coordinates (exact when h = w)."""
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    return _warp(x, theta)


def _warp(x: Tensor, theta: Tensor) -> Tensor:
    """Bilinear resampling under an affine map of normalized coordinates, zeros outside."""
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _per_image(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).view(-1, 1, 1, 1)
