"""Class gradients from one forward and one backward pass over the images of all classes.

The gradient of class k's loss L_k in a layer's weights W is a sum over the images of class k alone,

    dL_k/dW = sum_{i in k} (dz_i/dW)^T dL/dz_i,    z_i = layer(h_i; W),    L = sum_k L_k

since dL/dz_i = dL_k/dz_i where no layer couples samples. So one pass gives all layer inputs h and all dL/dz, and a
formula per kind of layer does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from datastill.engines.class_gradients_batch import (
    ClassBatch,
    ClassGradients,
    Unsupported,
    differentiate,
    zero_gradients,
)
from datastill.engines.class_gradients_layers import LAYERS, Formula
from datastill.engines.weight_gradients import weighted_cross_entropy


def joint_gradients(network: nn.Module, batch: ClassBatch, names: Sequence[str], create_graph: bool) -> ClassGradients:
    """All classes in one pass. The first axis of every layer's input must be the image.

    Raises:
        Unsupported: a wanted parameter is used outside of the layers known here, or an activation is changed in place.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    calls = _Calls({id(parameters[name]): name for name in names}, len(batch.y))
    x = batch.x if batch.x.requires_grad else batch.x.detach().requires_grad_()  # where the graph starts
    with torch.enable_grad():
        with calls:
            logits = functional_call(network, {**parameters, **buffers}, (x,))
        calls.check()
        loss = weighted_cross_entropy(logits, batch.y, batch.share)
        outputs = [call.output for call in calls.found]
        slopes = differentiate(loss, outputs, create_graph)
    rows: ClassGradients = {}
    with torch.set_grad_enabled(create_graph):
        for call, slope in zip(calls.found, slopes, strict=True):
            for name, formula in call.formulas.items():
                new = formula(call.input, slope, batch.counts).to(parameters[name].dtype)
                rows[name] = rows[name] + new if name in rows else new
    unused = zero_gradients(network, [name for name in names if name not in rows], len(batch.counts))
    return {name: rows[name] if name in rows else unused[name] for name in names}


@dataclass
class _Call:
    """One use of a layer: its input, its output, and how the gradients of its parameters follow."""

    input: Tensor
    output: Tensor
    formulas: dict[str, Formula]
    versions: tuple[int, int]


class _Calls(TorchFunctionMode):
    """Watches a forward pass for every use of the wanted parameters, whatever module makes it; leaves no hook.

    Args:
        names: `id` of a parameter's tensor to its name.
        images: number of images n of the pass.
    """

    def __init__(self, names: dict[int, str], images: int) -> None:
        super().__init__()
        self.names, self.images = names, images
        self.found: list[_Call] = []
        self.obstacle: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        used = {self.names[id(v)] for v in _flat([*args, *kwargs.values()]) if id(v) in self.names}
        out = func(*args, **kwargs)
        if not used or not any(isinstance(v, Tensor) for v in _flat([out])):
            return out
        if func not in LAYERS:
            self._stop(used, f"is used by {getattr(func, '__name__', func)}, which is no layer with a formula")
            return out
        layer = LAYERS[func](*args, **kwargs)
        formulas = {self.names[id(p)]: formula for p, formula in layer.formulas if id(p) in self.names}
        if formulas.keys() != used or layer.coupled or layer.input.shape[0] != self.images:
            self._stop(used, "belongs to a layer that mixes images or has another axis in front")
        elif not out.requires_grad:
            self._stop(used, "acts on something else than the images")
        self.found.append(_Call(layer.input, out, formulas, (layer.input._version, out._version)))
        return out

    def check(self) -> None:
        """Unsupported unless every use was understood."""
        if any((call.input._version, call.output._version) != call.versions for call in self.found):
            self.obstacle = "it changes activations in place"
        if self.obstacle:
            raise Unsupported("joint", self.obstacle)

    def _stop(self, used: set[str], why: str) -> None:
        self.obstacle = self.obstacle or f"its parameter {min(used)} {why}"


def _flat(values: Sequence[Any]) -> list[Any]:
    """The values, with lists and tuples among them opened."""
    return [v for value in values for v in (_flat(value) if isinstance(value, (list, tuple)) else [value])]
