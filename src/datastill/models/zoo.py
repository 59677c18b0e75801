"""The networks of the dataset-distillation literature, as DC defined them (Zhao et al., arXiv:2006.05929).

Every network takes `(channels, classes, size, **options)` with size = (height, width) in pixels, has
PyTorch's default initialization, which is part of the published protocols, and works out its linear layer
from the image. Each raises InputError when the image is too small for its layers. Parameter counts are for
images of 3 x 32 x 32 and 10 classes.
"""

from __future__ import annotations

from typing import Literal

from datastill.core.errors import InputError
from datastill.models.layers import Size, Stack, StackedNetwork, require_positive

Norm = Literal["none", "batch", "layer", "instance", "group"]
Pool = Literal["none", "max", "avg"]
Activation = Literal["relu", "sigmoid", "leaky", "swish"]


def first_padding(channels: int, padding: int | Literal["auto"] = "auto") -> int:
    """Padding of the first 3 x 3 convolution: 3 for gray images (28 pixels become 32), else 1."""
    if padding == "auto":
        return 3 if channels == 1 else 1
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise InputError(f"padding must be 'auto' or a whole number of at least 0, not {padding!r}.")
    return padding


class ConvNet(StackedNetwork):
    """Blocks of 3 x 3 convolution, norm, activation and 2 x 2 pool, then a linear layer; 320,010 parameters.

    Args:
        width: filters per convolution.
        depth: blocks; the literature uses 3 at 28 and 32 pixels, 4 at 64, 5 at 128, 6 at 256.
        activation: "relu", "sigmoid", "leaky" (slope 0.01) or "swish".
        norm: "instance", "none", "batch", "layer" (over channels and pixels) or "group" (4 groups).
        pool: "avg", "max" or "none".
        padding: of the first convolution; "auto" is 3 for one channel, else 1.

    Raises:
        InputError: an option is out of range, or the image is too small for the depth.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: Size,
        *,
        width: int = 128,
        depth: int = 3,
        activation: Activation = "relu",
        norm: Norm = "instance",
        pool: Pool = "avg",
        padding: int | Literal["auto"] = "auto",
    ) -> None:
        require_positive(width=width, depth=depth)
        stack = Stack(f"a ConvNet of depth {depth}", channels, size)
        for i in range(1, depth + 1):
            stack.conv(f"conv{i}", width, padding=first_padding(channels, padding) if i == 1 else 1)
            stack.norm(f"norm{i}", norm)
            stack.activation(i, activation)
            stack.pool(i, pool)
        super().__init__(stack, channels, classes, size)


class DoublingConvNet(StackedNetwork):
    """Three blocks of width W, 2 W and 4 W, each but the first normalized before its convolution (FRePo).

    Args:
        channels, classes, size: of the images and labels.
        width: W, filters of the first convolution.
        norm: as for `ConvNet`; FRePo distills with "batch" and scores with "none".
        padding: of the first convolution; "auto" is 3 for one channel, else 1.

    Raises:
        InputError: an option is out of range, or the image is too small.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        size: Size,
        *,
        width: int = 128,
        norm: Norm = "batch",
        padding: int | Literal["auto"] = "auto",
    ) -> None:
        require_positive(width=width)
        stack = Stack("a ConvNet of doubling width", channels, size)
        for i in range(1, 4):
            if i > 1:
                stack.norm(f"norm{i}", norm)
            stack.conv(f"conv{i}", width * 2 ** (i - 1), padding=first_padding(channels, padding) if i == 1 else 1)
            stack.activation(i)
            stack.pool(i, "avg")
        super().__init__(stack, channels, classes, size)


class MLP(StackedNetwork):
    """Two hidden linear layers of 128 with ReLU, then a linear layer; 411,146 parameters."""

    def __init__(self, channels: int, classes: int, size: Size) -> None:
        stack = Stack("an MLP", channels, size)
        stack.flatten()
        for i in (1, 2):
            stack.linear(f"linear{i}", 128)
            stack.activation(i)
        super().__init__(stack, channels, classes, size)


class LeNet(StackedNetwork):
    """Two 5 x 5 convolutions with max pools, then linear layers of 120 and 84; 62,006 parameters."""

    def __init__(self, channels: int, classes: int, size: Size) -> None:
        stack = Stack("LeNet", channels, size)
        for i, (width, padding) in enumerate([(6, 2 if channels == 1 else 0), (16, 0)], start=1):
            stack.conv(f"conv{i}", width, kernel=5, padding=padding)
            stack.activation(i)
            stack.pool(i, "max")
        stack.flatten()
        for i, width in enumerate([120, 84], start=3):
            stack.linear(f"linear{i}", width)
            stack.activation(i)
        super().__init__(stack, channels, classes, size)


class AlexNet(StackedNetwork):
    """Five convolutions of 128, 192, 256, 192 and 192 filters with three max pools; 1,872,202 parameters.

    Args:
        norm: after each convolution; "none" (published) or "batch" (its AlexNet-BN), or any other norm.
    """

    def __init__(self, channels: int, classes: int, size: Size, *, norm: Norm = "none") -> None:
        stack = Stack("AlexNet", channels, size)
        plan = [(128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)]
        for i, (width, kernel, pooled) in enumerate(plan, start=1):
            padding = 4 if i == 1 and channels == 1 else kernel // 2
            stack.conv(f"conv{i}", width, kernel=kernel, padding=padding)
            stack.norm(f"norm{i}", norm)
            stack.activation(i)
            stack.pool(i, "max" if pooled else "none")
        super().__init__(stack, channels, classes, size)


class VGG11(StackedNetwork):
    """Eight 3 x 3 convolutions of 64 to 512 filters with five max pools; 9,231,114 parameters.

    Pool taps carry the number of the convolution before them: pool1, pool2, pool4, pool6, pool8.
    """

    def __init__(self, channels: int, classes: int, size: Size, *, norm: Norm = "instance") -> None:
        stack = Stack("VGG11", channels, size)
        widths = (64, 128, 256, 256, 512, 512, 512, 512)
        for i, width in enumerate(widths, start=1):
            stack.conv(f"conv{i}", width, padding=first_padding(channels) if i == 1 else 1)
            stack.norm(f"norm{i}", norm)
            stack.activation(i)
            stack.pool(i, "max" if i in (1, 2, 4, 6, 8) else "none")
        super().__init__(stack, channels, classes, size)
