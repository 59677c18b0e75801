"""A user's, torchvision's or timm's module as a `Network`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from datastill.core.errors import InputError
from datastill.core.usercode import wrong_logits
from datastill.models.anatomy import Anatomy, Embed, probe_images, run_once
from datastill.models.base import Network

Size = tuple[int, int]


class Wrapped(Network):
    """A module with the interface of `Network`.

    The features are the flattened input of the linear layer that runs last, seen by a hook that lives for
    one call, or what the user's `embed(module, images)` returns. Taps are the module's own submodule names.

    Args:
        module: the classifier; its `inplace` activations are switched off.
        anatomy: where the features are, from `dissect` on a module of the same build.
        embed: the user's function, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        channels: int,
        classes: int,
        size: Size,
        embed: Embed | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.channels, self.classes, self.size = channels, classes, size
        self.embed_size = anatomy.embed_size
        self.anatomy = anatomy
        self._embed = embed

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        if (wrong := wrong_logits(out, len(x), self.classes, self.module)) is not None:
            raise wrong
        return out

    def embed(self, x: Tensor) -> Tensor:
        if self._embed is not None:
            return self._embed(self.module, x).flatten(1)
        return self._observe(x, frozenset())["flat"]

    def classify(self, features: Tensor) -> Tensor:
        """Features (n, d) to logits (n, C), where the logits are one linear layer of the features.

        Raises:
            InputError: they are not, or the user gave `embed`.
        """
        if not self.anatomy.linear_logits:
            raise InputError(
                f"{type(self.module).__name__} has no linear layer that maps these features to its logits; "
                "use a network that ends in one."
            )
        logits: Tensor = self.module.get_submodule(self.anatomy.head)(features)
        return logits

    def tap_names(self) -> tuple[str, ...]:
        return (*(name for name, _ in self.module.named_modules() if name), "flat", "logits")

    def _taps(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        found = self._observe(x, names - {"flat", "logits"})
        missing = names - found.keys() - {"flat"}
        if missing:
            raise InputError(f"{sorted(missing)} of {type(self.module).__name__} did not run in this pass.")
        if "flat" in names and self._embed is not None:
            found["flat"] = self._embed(self.module, x).flatten(1)
        return found

    def _observe(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        """One forward pass: outputs of `names`, "logits", and "flat" unless the user's `embed` gives it."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
                if not isinstance(out, Tensor):
                    raise InputError(f"The tap {name!r} gives {type(out).__name__}, not a tensor.")
                seen[name] = out.clone()  # the network may add to it in place afterwards

            return hook

        def keep_features(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen["flat"] = args[0].flatten(1)

        handles = []
        try:
            for name in names:
                handles.append(self.module.get_submodule(name).register_forward_hook(keep(name)))
            if self._embed is None:
                head = self.module.get_submodule(self.anatomy.head)
                handles.append(head.register_forward_pre_hook(keep_features))
            seen["logits"] = self.forward(x)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def prepare(module: nn.Module, name: str, channels: int, size: Size) -> nn.Module:
    """Make a fresh module fit for double backward and taps: lazy layers sized, nothing in place, training.

    Call it inside `isolated`, since lazy layers draw their weights here.
    """
    for m in module.modules():
        if getattr(m, "inplace", None) is True:
            m.inplace = False  # type: ignore[assignment]
        if getattr(m, "fused_attn", None) is True:
            m.fused_attn = False  # type: ignore[assignment]  # timm: fused attention has no double backward
    if any(is_lazy(p) for p in module.parameters()):
        with torch.no_grad():
            run_once(module.eval(), name, probe_images(2, channels, size))
    return module.train()


def reinitialized(template: nn.Module) -> nn.Module:
    """A copy of `template` with fresh weights from every submodule's `reset_parameters`.

    Inner modules come first, so that a parent's own rule has the last word.

    Raises:
        InputError: a module that owns parameters cannot draw them anew.
    """
    module = copy.deepcopy(template)
    for name, part in reversed(list(module.named_modules())):
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
        elif any(p is not None for p in part._parameters.values()):
            raise InputError(
                f"{type(part).__name__} ({name or 'the network itself'}) owns parameters but has no "
                "reset_parameters(), so fresh weights cannot be drawn; pass a function or class that builds "
                "the network instead."
            )
    return module
