"""Biased sets for the tests of de-biasing: colored MNIST, and colored squares where no data are needed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from datastill import load_real
from datastill.data import RealSet

#: Mean colors of the de-biasing literature's colored MNIST, by bias value.
COLORS = torch.tensor(
    [
        [0.9837, 0.3125, 0.1686],
        [0.9905, 0.9156, 0.3515],
        [0.6730, 0.4611, 0.5798],
        [0.7833, 0.8316, 0.6013],
        [0.0880, 0.7780, 0.9818],
        [0.3214, 0.9611, 0.4464],
        [0.0246, 0.2357, 0.7587],
        [0.5552, 0.1016, 0.7618],
        [0.2077, 0.3929, 0.0187],
        [0.8337, 0.2024, 0.2669],
    ]
)


def assign_bias(y: Tensor, ratio: float, generator: torch.Generator, values: int = 10) -> Tensor:
    """Bias values, (n,): in every class a share of `ratio` conflicts, spread evenly over the other values."""
    bias = y.clone()
    for c in y.unique().tolist():
        members = (y == c).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        conflicting = members[: round(ratio * len(members))]
        others = torch.tensor([b for b in range(values) if b != c])
        bias[conflicting] = others[torch.arange(len(conflicting)) % len(others)]
    return bias


def colored(gray: Tensor, bias: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """Gray images (n, 1, h, w) in the color of their bias value, jittered per image and channel, (n, 3, h, w)."""
    color = COLORS[bias] + jitter * torch.randn(len(bias), 3, generator=generator)
    return gray * color.clamp(0, 1)[:, :, None, None]


def biased_set(gray: Tensor, y: Tensor, ratio: float, jitter: float = 0.05, seed: int = 0) -> RealSet:
    """A RealSet of colored images that knows its bias, without test split."""
    generator = torch.Generator().manual_seed(seed)
    bias = assign_bias(y, ratio, generator)
    x = colored(gray, bias, jitter, generator)
    real = load_real((x, y), holdout=0.0)
    return dataclasses.replace(real, bias=bias)


def colored_mnist(per_class: int | None, ratio: float, jitter: float = 0.05, seed: int = 0) -> RealSet:
    """Colored MNIST of so many training images per class, or of all."""
    mnist = load_real("mnist", limit=per_class, space="raw")
    return biased_set(mnist.pixels(torch.arange(len(mnist))), mnist.labels, ratio, jitter, seed)


def colored_strokes(
    per_class: int = 40, ratio: float = 0.1, classes: int = 3, side: int = 12, seed: int = 0
) -> RealSet:
    """Small images of bars: the class is a bar's place, with noise, and its color is the bias."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(per_class)
    gray = 0.3 * torch.rand(len(y), 1, side, side, generator=generator)
    for c in range(classes):
        gray[y == c, :, 3 * c + 1 : 3 * c + 3, 2:-2] += 0.6
    bias = assign_bias(y, ratio, generator, classes)
    x = colored(gray.clamp(0, 1), bias, 0.02, generator)
    return dataclasses.replace(load_real((x, y), holdout=0.0), bias=bias)
