"""Gradients of a mean cross-entropy with respect to a network's weights, a few images at a time.

Chunks keep the activations in a CPU's cache; their sum is the gradient of the whole batch, up to rounding, where no
layer couples samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gradients = dict[str, Tensor]


def weight_gradients(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Gradients]:
    """The weighted mean cross-entropy of a batch, and its gradient for every trained parameter; no graph is kept.

    Args:
        network: maps (n, c, h, w) to logits (n, C); only parameters with `requires_grad` are differentiated.
        x: images, (n, c, h, w).
        y: class positions (n,) int64, or probabilities (n, C).
        weight: weight per image (n,), not negative, or None for equal weights.
        chunk: images per pass; None takes all at once, as networks that couple samples must.

    Returns:
        The loss, 0-dim, and the gradients by parameter name, shaped like the parameters.
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    share = _shares(weight, x)
    loss = torch.zeros((), device=x.device)
    total: Gradients = {}
    step = len(x) if chunk is None else chunk
    for images, target, w in zip(x.split(step), y.split(step), share.split(step), strict=True):
        with torch.enable_grad():
            part = (F.cross_entropy(network(images).float(), target, reduction="none") * w).sum()
            found = torch.autograd.grad(part, list(named.values()))
        loss = loss + part.detach()
        for name, g in zip(named, found, strict=True):
            total[name] = total[name].add_(g) if name in total else g.detach().clone()
    return loss, total


def _shares(weight: Tensor | None, x: Tensor) -> Tensor:
    """What each image weighs in the mean, (n,); a batch that weighs nothing has loss 0."""
    if weight is None:
        return x.new_full((len(x),), 1 / len(x))
    weight = weight.to(x)
    return weight / weight.sum().clamp_min(torch.finfo(x.dtype).tiny)
