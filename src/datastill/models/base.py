"""What every network of the library offers: logits, flat features, and named activations on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.errors import InputError, nearest
from datastill.core.usercode import refuse_no_graph


class Network(nn.Module, ABC):
    """A classifier of images (n, c, h, w) that shows its features.

    `embed` gives the input of the last linear layer, `classify` maps that to logits, and `taps` gives
    activations by name. Nothing is done in place, so double backward and `torch.func` work throughout.

    Attributes:
        channels: image channels c.
        classes: number of logits C.
        size: image height and width in pixels.
        embed_size: number of features d.
    """

    channels: int
    classes: int
    size: tuple[int, int]
    embed_size: int

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) to flat features (n, d)."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Flat features (n, d) to logits (n, C)."""

    @abstractmethod
    def tap_names(self) -> tuple[str, ...]:
        """Names that `taps` accepts, in the order of computation; the last two are "flat" and "logits"."""

    @abstractmethod
    def _taps(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        """The activations `names`, all known."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) to logits (n, C)."""
        return self.classify(self.embed(x))

    def taps(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Named activations from one forward pass, in the order of `names`.

        "flat" is `embed(x)` and "logits" is `forward(x)`, so one call serves an objective that needs
        features and logits. Gradients flow through; no hook stays on the module.

        Raises:
            InputError: a name is not among `tap_names()`.
        """
        wanted = list(dict.fromkeys(names))
        known = self.tap_names()
        for name in wanted:
            if name not in known:
                raise InputError(f"{type(self).__name__} has no tap {name!r}. {nearest(name, known)}")
        found = self._taps(x, frozenset(wanted))
        return {name: found[name] for name in wanted}


class _Method(nn.Module):
    """A module whose forward is one method of another, so that `functional_call` reaches every method."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.network, self.method)(*args, **kwargs)


def functional(
    network: nn.Module, tensors: Mapping[str, Tensor], *args: Any, method: str = "forward", **kwargs: Any
) -> Any:
    """Call `network.<method>(*args, **kwargs)` with other weights, leaving the network's own alone.

    Args:
        tensors: parameters and buffers by their names in `network`; those left out keep the network's own.
        method: "forward", "embed", "classify" or "taps".
    """
    inner = {f"network.{name}": value for name, value in tensors.items()}
    return torch.func.functional_call(_Method(network, method), inner, args, kwargs)


def couples_samples(module: nn.Module) -> bool:
    """Whether one image's output depends on the other images of its batch, in the module's present mode.

    True when any batch norm (of 1, 2 or 3 dimensions, or synchronised) would normalize by the batch's own
    statistics: in training mode, or in evaluation mode when it keeps no running statistics. Instance,
    layer and group norm never do. Custom layers are not seen here; `NetworkFactory.couples_samples`
    probes those by gradient.
    """
    return any(
        isinstance(m, _BatchNorm) and (m.training or (m.running_mean is None and m.running_var is None))
        for m in module.modules()
    )


def probe_coupling(module: nn.Module, x: Tensor) -> bool:
    """Whether, in the present mode, the first image's output has a gradient in another image of `x`.

    Raises:
        UserCodeFailed: the output has no gradient at all.
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        first: Tensor = module(x)[0].flatten()
        refuse_no_graph(first, module)
        # Unequal weights: a softmax sums to one, whatever the other images are.
        weights = torch.linspace(1, 2, len(first), dtype=first.dtype, device=first.device)
        (gradient,) = torch.autograd.grad(first @ weights, x, allow_unused=True)
    return gradient is not None and bool((gradient[1:] != 0).any())
