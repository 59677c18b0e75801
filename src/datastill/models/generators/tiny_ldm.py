"""A latent diffusion model that is trained in minutes: a demonstration of LD3M's, for small images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.models.generators import refuse_large

_TIMES, _WIDTH, _CONDITION, _BLOCKS, _CHANNELS = 1000, 64, 32, 4, 4


class _Block(nn.Module):
    """Two convolutions around a scale and a shift of each channel, added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, _WIDTH), nn.SiLU(), nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1))
        self.norm = nn.GroupNorm(8, _WIDTH)
        self.film = nn.Linear(_WIDTH, 2 * _WIDTH)
        self.second = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.film(told)[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.silu(self.norm(self.first(x)) * (1 + scale) + shift))


class TinyLDM(nn.Module):
    """An auto-encoder to 4 channels at a quarter of the size, and a network for the noise in them.

    Args:
        shape: channels, height and width of an image.
        classes: number of them.
    """

    condition_dim = _CONDITION
    alphas_cumprod: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        refuse_large(shape)
        self.img_shape, self.classes = shape, classes
        self.latent_shape = (_CHANNELS, math.ceil(height / 4), math.ceil(width / 4))
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(32, _CHANNELS, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(_CHANNELS, 32, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, channels, 3, padding=1),
        )  # fmt: skip
        self.embedding = nn.Embedding(classes + 1, _CONDITION)  # the last says nothing
        self.told = nn.Sequential(nn.Linear(32 + _CONDITION, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU())
        self.first = nn.Conv2d(_CHANNELS, _WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(_Block() for _ in range(_BLOCKS))
        self.last = nn.Sequential(nn.GroupNorm(8, _WIDTH), nn.SiLU(), nn.Conv2d(_WIDTH, _CHANNELS, 3, padding=1))
        betas = torch.linspace(1e-4, 0.02, _TIMES, dtype=torch.float64)
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float())
        self.register_buffer("scale", torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images in [-1, 1], of unit variance over the real set."""
        return self.encoder(x) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Images in [-1, 1], about."""
        _, height, width = self.img_shape
        return self.decoder(z / self.scale)[:, :, :height, :width]

    def eps(self, z: Tensor, t: int, c: Tensor | None) -> Tensor:
        """The noise in latents at one time."""
        return self.noise_at(z, torch.full((len(z),), t, device=z.device), self.null_embed(len(z)) if c is None else c)

    def noise_at(self, z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """The noise in latents at a time of each."""
        rates = torch.exp(-math.log(10_000) * torch.arange(16, device=z.device) / 16).to(z.dtype)
        angles = t.to(z.dtype)[:, None] * rates
        told = self.told(torch.cat([angles.sin(), angles.cos(), c], dim=1))
        x = self.first(z)
        for block in self.blocks:
            x = block(x, told)
        return self.last(x)

    def embed(self, y: Tensor) -> Tensor:
        """The conditions of classes."""
        return self.embedding(y)

    def null_embed(self, n: int) -> Tensor:
        """The condition of no class."""
        return self.embedding.weight[-1:].expand(n, -1)

    def quantize(self, z: Tensor) -> Tensor:
        """There is no codebook."""
        return z
