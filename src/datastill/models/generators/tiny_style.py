"""A style-based generator that is trained in minutes: a demonstration of GLaD's, for images of any small size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.models.generators import refuse_large

_WIDTH, _LATE = 64, (32, 16)  #: channels of early layers, and of the last two


class _Styled(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose output channels are shifted by it."""

    def __init__(self, channels: int, out: int, w_dim: int, kernel: int = 3, up: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.style = nn.Linear(w_dim, channels + out)
        self.up, self.channels = up, channels

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)[:, :, None, None]
        scale, shift = style[:, : self.channels], style[:, self.channels :]
        x = x * (1 + scale)
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) + shift


class TinyStyleGenerator(nn.Module):
    """Mapping of z and class to styles, a learned constant, and styled convolutions that double it to the image.

    Args:
        shape: channels, height and width of an image.
        classes: number of them.
    """

    z_dim, w_dim = 32, 64

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        refuse_large(shape)
        doublings = max(2, math.ceil(math.log2(max(height, width) / 8)))
        self.img_shape, self.classes = shape, classes
        self.num_layers, self.num_ws = doublings + 2, doublings + 3
        sides = [math.ceil(side / 2**doublings) for side in (height, width)]
        self.constant = nn.Parameter(torch.randn(1, _WIDTH, *sides))
        self.embedding = nn.Embedding(classes, self.z_dim)
        self.mapping = nn.Sequential(
            nn.Linear(2 * self.z_dim, self.w_dim), nn.LeakyReLU(0.2), nn.Linear(self.w_dim, self.w_dim)
        )
        widths = [_WIDTH] * (doublings + 1) + list(_LATE)
        ups = [False] + [True] * doublings + [False]
        self.layers = nn.ModuleList(
            _Styled(i, o, self.w_dim, up=up) for i, o, up in zip(widths[:-1], widths[1:], ups, strict=True)
        )
        self.image = _Styled(widths[-1], channels, self.w_dim, kernel=1)

    def map(self, z: Tensor, y: Tensor) -> Tensor:
        """The same style for every layer."""
        w = self.mapping(torch.cat([z, self.embedding(y).to(z)], dim=1))
        return w[:, None].expand(-1, self.num_ws, -1)

    def features(self, ws: Tensor, n: int) -> Tensor:
        """What enters layer n."""
        return self._run(self.constant.expand(len(ws), -1, -1, -1), ws, 0, n)

    def synthesize(self, ws: Tensor, f: Tensor | None = None, start: int = 0) -> Tensor:
        """Images in [-1, 1]."""
        x = self.features(ws, start) if f is None else f
        x = self.image(self._run(x, ws, start, self.num_layers), ws[:, -1])
        _, height, width = self.img_shape
        return torch.tanh(x[:, :, :height, :width])

    def _run(self, x: Tensor, ws: Tensor, first: int, last: int) -> Tensor:
        for n in range(first, last):
            x = F.leaky_relu(self.layers[n](x, ws[:, n]), 0.2)
        return x


class StyleEncoder(nn.Module):
    """Mean and logarithm of the variance of z for an image and its class; only while the generator is trained."""

    def __init__(self, generator: TinyStyleGenerator) -> None:
        super().__init__()
        channels, height, width = generator.img_shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        size = 64 * math.ceil(height / 4) * math.ceil(width / 4)
        self.embedding = nn.Embedding(generator.classes, 32)
        self.head = nn.Linear(size + 32, 2 * generator.z_dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.head(torch.cat([self.body(x), self.embedding(y)], dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 4)
