"""Where the nonlinear maps of a network are: the taps that objectives on several layers match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from datastill.models.anatomy import evaluating, probe_images, run_once
from datastill.models.factory import NetworkFactory
from datastill.models.layers import StackedNetwork
from datastill.models.wrapped import Wrapped

_NONLINEAR = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus,
)  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """A tap of a network's features."""

    name: str
    spatial: bool  #: whether it is a map (n, c, h, w) of more than one pixel


def activations(factory: NetworkFactory) -> tuple[Activation, ...]:
    """Taps of the activation functions before the last linear layer, in the order of computation.

    Those of the library's networks are called relu1, relu2, ..., whatever the function. In other networks they are the
    modules of torch's activation functions; where there is none, as in code that calls `F.relu`, the convolutions.
    """
    network = factory(0)
    if isinstance(network, StackedNetwork):
        names = [name for name in network.tap_names() if name.startswith("relu")]
        with evaluating(network):
            found = network.taps(probe_images(2, factory.channels, factory.size), names)
        return tuple(_activation(name, found[name]) for name in names)
    assert isinstance(network, Wrapped)
    return _ran(network, factory, _NONLINEAR) or _ran(network, factory, (nn.modules.conv._ConvNd,))


def _ran(network: Wrapped, factory: NetworkFactory, kinds: tuple[type[nn.Module], ...]) -> tuple[Activation, ...]:
    """The modules of these kinds that run before the head does, in the order of their last run."""
    found: dict[str, Activation] = {}
    done = False

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if not done and isinstance(out, Tensor) and out.ndim > 1 and len(out) == 2:
                found.pop(name, None)
                found[name] = _activation(name, out)

        return hook

    def finish(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal done
        done = True

    module, head = network.module, network.anatomy.head
    named = [(name, m) for name, m in module.named_modules() if name and isinstance(m, kinds)]
    handles = [m.register_forward_hook(note(name)) for name, m in named]
    if head:
        handles.append(module.get_submodule(head).register_forward_hook(finish))
    try:
        with evaluating(module):
            run_once(module, factory.name, probe_images(2, factory.channels, factory.size))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found.values())


def _activation(name: str, values: Tensor) -> Activation:
    return Activation(name, values.ndim == 4 and values[0, 0].numel() > 1)
