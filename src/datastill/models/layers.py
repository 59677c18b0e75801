"""Layers by name, and a stack that infers every shape as it grows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError, nearest
from datastill.models.base import Network

Size = tuple[int, int]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.01),
    "swish": nn.SiLU,
}
NORMS = ("none", "batch", "layer", "instance", "group")
POOLS = ("none", "max", "avg")


def require_choice(option: str, value: str, known: Collection[str]) -> None:
    """InputError unless `value` is one of `known`."""
    if value not in known:
        raise InputError(f"Unknown {option} {value!r}. {nearest(str(value), known)}")


def require_positive(**values: int) -> None:
    """InputError unless every value is a whole number of at least 1."""
    for option, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{option} must be a whole number of at least 1, not {value!r}.")


def make_norm(kind: str, channels: int, size: Size) -> nn.Module | None:
    """The normalization layer `kind` for activations (n, channels, *size); None for "none".

    "instance" is a group norm with one group per channel, "group" has 4 groups; all are affine, eps 1e-5.

    Raises:
        InputError: unknown kind, channels that 4 groups do not divide, or instance norm of a single pixel,
            which would replace every activation by a constant.
    """
    require_choice("norm", kind, NORMS)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "layer":
        return nn.LayerNorm([channels, *size])
    if kind == "instance":
        if size == (1, 1):
            raise InputError(
                "The image is too small for this network: instance norm would see a single pixel and erase "
                "it. Use less depth, norm=group, norm=batch or larger images."
            )
        return nn.GroupNorm(channels, channels)
    if kind == "group":
        if channels % 4:
            raise InputError(f"norm=group needs a width that 4 divides, not {channels}.")
        return nn.GroupNorm(4, channels)
    return None


class AvgPool2(nn.Module):
    """Means over 2 x 2 windows, stride 2; an odd last row or column is left out, as `nn.AvgPool2d(2)` does.

    On a CPU torch's pooling is not vectorized and took a fifth of a ConvNet's forward pass; sums of slices
    are five times as fast and agree to rounding. Compiled code takes means over a view: that of slices, in bf16 after
    a group norm and a ReLU, gave NaN as gradient of the norm's weight (torch 2.13, AVX-512).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c, h // 2, w // 2)."""
        if x.device.type != "cpu":
            return nn.functional.avg_pool2d(x, 2)
        h, w = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        if torch.compiler.is_compiling():
            return x[..., :h, :w].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-3, -1))
        rows = x[..., 0:h:2, :] + x[..., 1:h:2, :]
        return (rows[..., 0:w:2] + rows[..., 1:w:2]) * 0.25


class Stack:
    """Named layers in order, with the shape of what flows between them.

    Attributes:
        layers: name to layer; becomes the body of a `Sequential`.
        taps: tap name to layer name.
        channels, size: the present shape of an activation.
    """

    def __init__(self, network: str, channels: int, size: Size) -> None:
        require_positive(channels=channels, height=size[0], width=size[1])
        self.network = network
        self.image = f"{channels} x {size[0]} x {size[1]}"
        self.channels = channels
        self.size = (int(size[0]), int(size[1]))
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()
        self.taps: dict[str, str] = {}

    @property
    def features(self) -> int:
        """Numbers per image if flattened here."""
        return self.channels * self.size[0] * self.size[1]

    def add(self, name: str, layer: nn.Module | None, tap: str | None = None) -> None:
        """Append a layer that keeps the shape; nothing for None."""
        if layer is not None:
            self.layers[name] = layer
            if tap is not None:
                self.taps[tap] = name

    def shrink(self, kernel: int, stride: int = 1, padding: int = 0) -> None:
        """Update `size` for a convolution or pool, with an InputError when nothing would be left."""
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in self.size)
        if height < 1 or width < 1:
            left = f"{self.size[0]} x {self.size[1]}"
            raise InputError(
                f"Images of {self.image} are too small for {self.network}: {left} is left "
                f"before a {kernel} x {kernel} layer. Use less depth, another network or larger images."
            )
        self.size = (height, width)

    def conv(
        self, name: str, width: int, kernel: int = 3, stride: int = 1, padding: int = 1, bias: bool = True
    ) -> None:
        """Append a convolution."""
        self.shrink(kernel, stride, padding)
        self.layers[name] = nn.Conv2d(self.channels, width, kernel, stride, padding, bias=bias)
        self.channels = width

    def norm(self, name: str, kind: str) -> None:
        """Append a norm layer by name."""
        self.add(name, make_norm(kind, self.channels, self.size))

    def activation(self, index: int, kind: str = "relu") -> None:
        """Append an activation, tapped as relu<index> whatever its kind."""
        require_choice("activation", kind, ACTIVATIONS)
        self.add(f"relu{index}", ACTIVATIONS[kind](), f"relu{index}")

    def pool(self, index: int, kind: str) -> None:
        """Append a 2 x 2 pool with stride 2, tapped as pool<index>."""
        require_choice("pool", kind, POOLS)
        if kind == "none":
            return
        self.shrink(2, 2)
        self.add(f"pool{index}", nn.MaxPool2d(2) if kind == "max" else AvgPool2(), f"pool{index}")

    def flatten(self) -> None:
        """Append a flattening, for stacks with linear layers inside."""
        self.add("flatten", nn.Flatten())
        self.channels, self.size = self.features, (1, 1)

    def linear(self, name: str, width: int) -> None:
        """Append a linear layer after `flatten`."""
        self.layers[name] = nn.Linear(self.channels, width)
        self.channels = width


class StackedNetwork(Network):
    """A network of the zoo: a sequence of named layers, flattened, then one linear layer.

    Args:
        stack: the layers, with the shape of their output.
        channels, classes, size: of the images and labels.
    """

    def __init__(self, stack: Stack, channels: int, classes: int, size: Size) -> None:
        super().__init__()
        require_positive(classes=classes)
        self.channels, self.classes, self.size = channels, classes, (int(size[0]), int(size[1]))
        self.embed_size = stack.features
        self.body = nn.Sequential(stack.layers)
        self.head = nn.Linear(stack.features, classes)
        self._tap_layers = dict(stack.taps)

    def embed(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x).flatten(1)
        return features

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    def tap_names(self) -> tuple[str, ...]:
        return (*self._tap_layers, "flat", "logits")

    def _taps(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        wanted = {layer: tap for tap, layer in self._tap_layers.items() if tap in names}
        found: dict[str, Tensor] = {}
        to_the_end = "flat" in names or "logits" in names
        for layer_name, layer in self.body.named_children():
            if not to_the_end and len(found) == len(wanted):
                return found
            x = layer(x)
            if layer_name in wanted:
                found[wanted[layer_name]] = x
        if to_the_end:
            found["flat"] = x.flatten(1)
        if "logits" in names:
            found["logits"] = self.classify(found["flat"])
        return found
