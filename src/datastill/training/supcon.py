"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, arXiv:2004.11362), and its form that prefers easy pairs.

L = mean_i [ -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / tau) / sum_{a != i} exp(z_i.z_a / tau) ) ]

P(i) are the other samples with the label of i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datastill.core.errors import InputError


def pair_log_probabilities(z: Tensor, tau: float) -> Tensor:
    """log of the softmax of each row of z z^T / tau without its diagonal, which is -inf; z (n, d) to (n, n).

    At least float32, whatever precision the surroundings cast to: at small `tau` half precision would round the
    exponents by more than they differ.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        similarity = z @ z.T / tau
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        return similarity.masked_fill(itself, -torch.inf).log_softmax(1)  # subtracts the row's maximum first


def supcon_loss(z: Tensor, y: Tensor, tau: float = 0.1, *, q: float = 0.0) -> Tensor:
    """The loss of a batch, 0-dim; anchors without a positive are left out of the mean, and it is 0 where all are.

    Args:
        z: embeddings, (n, d), of unit length.
        y: class positions, (n,).
        tau: temperature, above 0.
        q: above 0, the log-probability of every pair is multiplied by its own q p^q, as a constant: pairs that are
            near already weigh more, as in the generalized cross-entropy (SelecMix, arXiv:2211.02291). 0 is the
            plain loss.

    Raises:
        InputError: shapes do not agree, `tau` is not above 0, or `q` is negative.
    """
    if z.ndim != 2 or y.shape != (len(z),):
        raise InputError(f"Embeddings are (n, d) and labels (n,), not {tuple(z.shape)} and {tuple(y.shape)}.")
    if not tau > 0 or q < 0:
        raise InputError(f"The contrastive loss needs a temperature above 0 and q of at least 0, not {tau} and {q}.")
    if len(z) < 2:
        return z.sum() * 0.0
    log_p = pair_log_probabilities(z, tau)
    positive = (y[:, None] == y[None]).fill_diagonal_(False)
    log_p = log_p.masked_fill(~positive, 0.0)
    if q > 0:
        log_p = log_p * (q * log_p.detach().exp().pow(q))
    counts = positive.sum(1)
    anchors = counts > 0
    each = -log_p.sum(1) / counts.clamp_min(1)
    return each.sum() / anchors.sum().clamp_min(1)
