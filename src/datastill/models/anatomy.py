"""What a forward pass tells about a network that is not ours: where its features are, and what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.store.files import digest

Size = tuple[int, int]
Embed = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Anatomy:
    """Where a module's features are.

    Attributes:
        head: name of the linear layer that was executed last; "" where the user gave `embed`.
        embed_size: numbers per image in the flattened features.
        linear_logits: whether the module's output is `head(features)` and nothing more.
    """

    head: str
    embed_size: int
    linear_logits: bool


def probe_images(count: int, channels: int, size: Size) -> Tensor:
    """Fixed uniform noise (count, channels, height, width); no global generator is touched."""
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and a private generator; every submodule's mode is put back."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), isolated(0):
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def run_once(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """The logits of a user's module, with one sentence when it cannot take the images.

    Raises:
        InputError: the module fails on these images, or returns something else than a tensor.
    """
    try:
        out = module(x)
    except Exception as error:
        raise InputError(
            f"The network {name} cannot take images of {x.shape[1]} x {x.shape[2]} x {x.shape[3]} "
            f"(channels x height x width): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(out, Tensor):
        raise InputError(f"The network {name} must return one tensor of logits, not {type(out).__name__}.")
    return out


def dissect(module: nn.Module, name: str, channels: int, classes: int, size: Size, embed: Embed | None) -> Anatomy:
    """Find a module's features with one forward pass of two images in evaluation mode.

    Raises:
        InputError: it cannot take the images, gives another number of logits, or runs no linear layer
            and `embed` is None.
    """
    x = probe_images(2, channels, size)
    ran: list[tuple[str, Tensor]] = []

    def remember(layer: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args:
                ran.append((layer, args[0]))

        return hook

    linear = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_pre_hook(remember(n)) for n, m in linear.items()]
    try:
        with evaluating(module):
            out = run_once(module, name, x)
            _check_logits(out, name, classes)
            if embed is not None:
                return Anatomy("", _features(embed(module, x), name).shape[1], False)
            if not ran:
                raise InputError(
                    f"The network {name} has no linear layer to take features from: give it a linear head, "
                    "or pass embed=, a function (module, images) -> features."
                )
            head, features = ran[-1]
            flat = _features(features, name)
            same = features.dim() == 2 and torch.equal(linear[head](features), out)
            return Anatomy(head, flat.shape[1], same)
    finally:
        for handle in handles:
            handle.remove()


def _check_logits(out: Tensor, name: str, classes: int) -> None:
    if tuple(out.shape) != (2, classes):
        raise InputError(
            f"The network {name} gives outputs of shape {tuple(out.shape)} for 2 images, but the data has "
            f"{classes} classes, which needs (2, {classes})."
        )


def _features(features: object, name: str) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() < 1 or features.shape[0] != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"The features of the network {name} must be one tensor with a row per image, not {shape} "
            "for 2 images; pass embed=, a function (module, images) -> features."
        )
    return features.flatten(1)


def count_macs(module: nn.Module, channels: int, size: Size) -> int:
    """Multiply-accumulates of one forward pass of one image, over convolutions and linear layers."""
    total = 0

    def add(layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += out.numel() * layer.in_features
        elif isinstance(layer, nn.modules.conv._ConvNd):
            # Each number of the output, or of the input where transposed, meets one slice of the weight.
            spread = args[0] if layer.transposed else out
            total += spread.numel() * layer.weight[0].numel()

    counted = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, counted)]
    try:
        with evaluating(module):
            module(probe_images(1, channels, size))
    finally:
        for handle in handles:
            handle.remove()
    return total


def shapes_digest(module: nn.Module) -> str:
    """A short hash of the names and shapes of the parameters."""
    return digest({name: list(p.shape) for name, p in module.named_parameters()})
