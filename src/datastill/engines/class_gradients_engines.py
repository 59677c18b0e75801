"""Class gradients by differentiating each class's loss: one class after the other, or side by side under `vmap`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

from datastill.core import compilation
from datastill.engines.class_gradients_batch import (
    ClassBatch,
    ClassGradients,
    Unsupported,
    differentiate,
    zero_gradients,
)
from datastill.engines.weight_gradients import weight_gradients, weighted_cross_entropy


def loop_gradients(network: nn.Module, batch: ClassBatch, names: Sequence[str], create_graph: bool) -> ClassGradients:
    """One class after the other: the published behavior, and the only right one where layers couple samples.

    Running statistics are left as they are.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    leaves = [parameters[name].requires_grad_() for name in names]
    rows = []
    for part in batch.classes():
        if not len(part.y):
            rows.append(tuple(torch.zeros_like(p) for p in leaves))
            continue
        buffers = {name: b.clone() for name, b in network.named_buffers()}
        with torch.enable_grad():
            logits = functional_call(network, {**parameters, **buffers}, (part.x,))
            loss = weighted_cross_entropy(logits, part.y, part.share)
            rows.append(differentiate(loss, leaves, create_graph))
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def chunked_gradients(
    network: nn.Module, batch: ClassBatch, names: Sequence[str], chunk: int | None, compiled: bool
) -> ClassGradients:
    """One class after the other through `weight_gradients`, in chunks and without a graph."""
    rows = zero_gradients(network, names, len(batch.counts))
    with _only_trained(network, names):
        for k, part in enumerate(batch.classes()):
            if len(part.y):
                x, y, share = part.x.detach(), part.y, part.share
                _, found = weight_gradients(network, x, y, share, chunk=chunk, compiled=compiled)
                for name in names:
                    rows[name][k] = found[name]
    return rows


def vmap_gradients(network: nn.Module, batch: ClassBatch, names: Sequence[str], create_graph: bool) -> ClassGradients:
    """All classes side by side, each padded to the largest by an image that weighs nothing.

    Raises:
        Unsupported: the network draws random numbers, or its code does not survive `vmap`.
    """
    if compilation.draws(network):
        raise Unsupported("vmap", "it draws random numbers, as dropout does")
    fixed = {name: p.detach() for name, p in network.named_parameters()}
    leaves = {name: fixed.pop(name) for name in names}

    def loss(leaves: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return weighted_cross_entropy(functional_call(network, {**fixed, **leaves}, (x,)), y, share)

    try:
        with torch.set_grad_enabled(create_graph), _SplitNorms():
            rows: ClassGradients = vmap(grad(loss), in_dims=(None, 0, 0, 0))(leaves, *_padded(batch))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise Unsupported("vmap", f"{type(error).__name__}, {str(error).splitlines()[0]}") from error
    return rows


def _padded(batch: ClassBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Images (K, m, ...), targets and shares (K, m), with share 0 where a class has fewer than m images."""
    most = max(batch.counts)
    if min(batch.counts) == most:
        x, y, share = (t.unflatten(0, (-1, most)) for t in (batch.x, batch.y, batch.share))
        return x, y, share
    counts = torch.tensor(batch.counts, device=batch.x.device)[:, None]
    column = torch.arange(most, device=batch.x.device)
    inside = column < counts  # (K, m)
    at = torch.where(inside, counts.cumsum(0) - counts + column, 0)
    return batch.x[at], batch.y[at], batch.share[at] * inside


@contextlib.contextmanager
def _only_trained(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """`requires_grad` for exactly these parameters; afterwards as before."""
    wanted = set(names)
    before = [(p, p.requires_grad) for p in network.parameters()]
    try:
        for name, p in network.named_parameters():
            p.requires_grad_(name in wanted)
        yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


class _SplitNorms(TorchFunctionMode):
    """Takes scale and shift out of layer and instance norms, whose second derivatives are wrong under `vmap`.

    The batching rules of their backward take the saved mean and variance for constants (pytorch/functorch#534; seen
    with torch 2.13 as errors of tens of per cent in the pixels' gradient).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _SPLIT.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _scaled(F.layer_norm(input, list(normalized_shape), eps=eps), weight, bias)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    plain = F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    weight, bias = (t if t is None else t.view(-1, *[1] * (input.ndim - 2)) for t in (weight, bias))
    return _scaled(plain, weight, bias)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


_SPLIT: dict[Any, Any] = {F.layer_norm: _layer_norm, F.instance_norm: _instance_norm}
