"""Residual networks (He et al., arXiv:1512.03385) with a stem for small images: stride 1, no max pool."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from datastill.models.layers import AvgPool2, Size, Stack, StackedNetwork, make_norm
from datastill.models.zoo import Norm

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # filters, down-sampling
BLOCKS_PER_STAGE = 2


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; (n, c, h, w) to (n, width, h/down, w/down).

    Args:
        down: 1 or 2.
        pooled: down-sample by a 2 x 2 average pool after a stride-1 convolution instead of by stride.
        size: of the output, which a layer norm needs.
        middle: size where the first norm acts; differs from `size` only when pooled.
    """

    def __init__(self, channels: int, width: int, down: int, norm: str, pooled: bool, middle: Size, size: Size) -> None:
        super().__init__()
        stride = 1 if pooled else down
        pool = down if pooled else 1
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = make_norm(norm, width, middle) or nn.Identity()
        self.pool = AvgPool2() if pool == 2 else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = make_norm(norm, width, size) or nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if down != 1 or channels != width:
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            parts["conv"] = nn.Conv2d(channels, width, 1, stride, bias=False)
            if pool == 2:
                parts["pool"] = AvgPool2()
            parts["norm"] = make_norm(norm, width, size) or nn.Identity()
            self.shortcut = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(F.relu(self.norm1(self.conv1(x))))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class _ResNet(StackedNetwork):
    """Taps: relu1 after the stem, relu2 to relu9 after the residual blocks, pool1 after a final pool."""

    def __init__(self, channels: int, classes: int, size: Size, norm: str, pooled: bool) -> None:
        stack = Stack("ResNet18", channels, size)
        stack.conv("conv1", 64, bias=False)
        stack.norm("norm1", norm)
        stack.activation(1)
        for stage, (width, stage_down) in enumerate(STAGES):
            for k in range(BLOCKS_PER_STAGE):
                _append_block(stack, BLOCKS_PER_STAGE * stage + k + 2, width, stage_down if k == 0 else 1, norm, pooled)
        if not pooled:
            window = (min(4, stack.size[0]), min(4, stack.size[1]))
            stack.size = (stack.size[0] // window[0], stack.size[1] // window[1])
            stack.add("pool1", nn.AvgPool2d(window), "pool1")
        super().__init__(stack, channels, classes, size)


def _append_block(stack: Stack, index: int, width: int, down: int, norm: str, pooled: bool) -> None:
    before = stack.size
    if pooled and down == 2:
        stack.shrink(2, 2)
        middle = before
    else:
        stack.shrink(3, down, 1)
        middle = stack.size
    block = ResidualBlock(stack.channels, width, down, norm, pooled, middle, stack.size)
    stack.channels = width
    stack.add(f"block{index - 1}", block, f"relu{index}")


class ResNet18(_ResNet):
    """Residual blocks 2-2-2-2, 4 x 4 average pool, linear; 11,173,962 parameters.

    Below 25 pixels the last pool shrinks to what is left; the published network cannot take such images.

    Args:
        norm: "instance" (published default), "batch" or any other norm.
    """

    def __init__(self, channels: int, classes: int, size: Size, *, norm: Norm = "instance") -> None:
        super().__init__(channels, classes, size, norm, pooled=False)


class ResNet18AP(_ResNet):
    """ResNet18 that down-samples by average pools and keeps the last 4 x 4 map; 11,250,762 parameters.

    In a down-sampling block the pool stands after the first activation, in the shortcut before the norm.
    """

    def __init__(self, channels: int, classes: int, size: Size, *, norm: Norm = "instance") -> None:
        super().__init__(channels, classes, size, norm, pooled=True)
