"""What a layer inside of any network gives: its features, without a hook that stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError, nearest
from datastill.engines.statistics import restored


class Seen:
    """The output of a module, or what the last linear layer was given, noted while a network runs.

    Args:
        network: any network.
        layer: name of one of its modules; "" notes what its linear layers are given.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        self.network, self.layer = network, layer
        self.found: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Features of images, (n, ...), with their graph.

        Raises:
            InputError: the layer did not run, or gives no tensor.
        """
        self.found = None
        if self.layer:
            handles = [self.network.get_submodule(self.layer).register_forward_hook(self._note)]
        else:
            linear = [m for m in self.network.modules() if isinstance(m, nn.Linear)]
            handles = [m.register_forward_pre_hook(self._note_given) for m in linear]
        try:
            self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(self.found, Tensor):
            raise InputError(
                f"The layer {self.layer or 'before the last'!r} gives no features; name another (--layer)."
            )
        return self.found

    def _note(self, module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        self.found = out.clone() if isinstance(out, Tensor) else None  # the network may add to it in place

    def _note_given(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self.found = given[0]


def layer_named(network: nn.Module, name: str) -> str:
    """A module's full name from the name that its author gave it: wrappers put prefixes before.

    Raises:
        InputError: there is none, or there are several.
    """
    known = [full for full, _ in network.named_modules() if full]
    found = [full for full in known if full == name] or [full for full in known if full.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{name!r} is the name of several layers ({found[0]}, {found[1]}, ...); give one in full.")
    raise InputError(f"The network has no layer {name!r}. {nearest(name, known)}")


def last_maps(network: nn.Module, x: Tensor) -> str:
    """The last module to end with maps (n, c, h, w) of more than one pixel; "" where there is none.

    That is the last block of a residual network or ConvNet, before its pooled features.

    Args:
        network: any network.
        x: images (n, c, h, w) to run it on, once.
    """
    ended: list[str] = []

    def noting(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] * out.shape[3] > 1:
                ended.append(name)

        return note

    handles = [module.register_forward_hook(noting(name)) for name, module in network.named_modules() if name]
    try:
        with restored(network), torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return ended[-1] if ended else ""
