"""A small network with batch norm: 16, 32 and 32 channels, average pooling, one feature per channel."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class SmallBN(nn.Module):
    """Three blocks of convolution, batch norm, ReLU and 2 x 2 average pool; the last pools the whole image."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        widths = (channels, 16, 32, 32)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms):
            x = F.relu(norm(convolution(x)))
            x = F.avg_pool2d(x, 2) if convolution is not self.convolutions[-1] else x.mean((2, 3))
        return self.linear(x)
