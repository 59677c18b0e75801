"""Integrated gradients (Sundararajan, Taly and Yan, ICML 2017, arXiv:1703.01365).

    IG(x) = (x - x') * integral_0^1 dF(x' + a (x - x'))/dx da

by Gauss-Legendre nodes. F is a logit or a log-probability; a probability saturates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from datastill.core.errors import InputError

#: Images in a pass: memory is that of one pass.
_AT_ONCE = 64

Scores = Callable[[Tensor], Tensor]


def score(network: Callable[[Tensor], Tensor], kind: str = "logit") -> Scores:
    """Images to the numbers (n, C) that are explained: "logit" or "log-probability"."""
    if kind == "logit":
        return network
    if kind == "log-probability":
        return lambda x: log_softmax(network(x), dim=1)
    raise InputError(f"What is explained is a logit or a log-probability, not {kind!r}.")


def integrated_gradients(scores: Scores, x: Tensor, baseline: Tensor, target: Tensor, count: int = 50) -> Tensor:
    """Attributions, like `x`.

    Args:
        scores: images to numbers (n, C), each row of its own image alone.
        x: images (n, c, h, w).
        baseline: like `x`, or (1, c, h, w) for all.
        target: the class that is explained, (n,).
        count: nodes of the integral.
    """
    baseline = baseline.expand_as(x)
    nodes, weights = np.polynomial.legendre.leggauss(count)
    total = torch.zeros_like(x)
    pairs = [(i, k) for k in range(count) for i in range(len(x))]
    for first in range(0, len(pairs), _AT_ONCE):
        rows, ks = (torch.tensor(v) for v in zip(*pairs[first : first + _AT_ONCE], strict=True))
        place = torch.tensor((nodes + 1) / 2, dtype=x.dtype)[ks].view(-1, *[1] * (x.ndim - 1))
        between = (baseline[rows] + place * (x[rows] - baseline[rows])).requires_grad_()
        chosen = scores(between).gather(1, target[rows, None]).sum()
        slope = torch.autograd.grad(chosen, between)[0]
        share = torch.tensor(weights / 2, dtype=x.dtype)[ks].view_as(place)
        total.index_add_(0, rows, slope * share)
    return (x - baseline) * total


def completeness(scores: Scores, x: Tensor, baseline: Tensor, target: Tensor, attribution: Tensor) -> Tensor:
    """|sum IG - (F(x) - F(x'))| / |F(x) - F(x')| of every image (n,): 0 for an exact integral."""
    with torch.no_grad():
        ends = [scores(at).gather(1, target[:, None])[:, 0] for at in (x, baseline.expand_as(x))]
    wanted = ends[0] - ends[1]
    return (attribution.flatten(1).sum(1) - wanted).abs() / wanted.abs().clamp_min(1e-12)
