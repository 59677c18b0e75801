"""Images of a class that spread out: data densification (G-VBSM: Shao et al., CVPR 2024, arXiv:2311.17950).

L = sum_c KL( softmax(e_c / tau) || softmax(e_c) ), e_c the eigenvalues of the Gram matrix of a class's images; the
flattened side has no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def densification(x: Tensor, y: Tensor, tau: float = 4.0, scale: str = "mean", side: int = 32) -> Tensor:
    """The loss of a block; 0 for classes of one image.

    Args:
        x: images (n, c, h, w).
        y: their classes (n,).
        tau: how much the target is flattened.
        scale: "mean" divides the eigenvalues of a class by their mean, which has no gradient. "raw" is as released:
            eigenvalues of Gram matrices are in the thousands, both softmaxes are one-hot then, and the loss is 0
            whatever the images are.
        side: larger images are pooled to so many pixels to a side.
    """
    if min(x.shape[2:]) > side:
        x = F.adaptive_avg_pool2d(x, side)
    total = x.new_zeros(())
    for c in y.unique().tolist():
        rows = x[y == c].flatten(1)
        if len(rows) < 2:
            continue
        values = torch.linalg.eigvalsh(rows @ rows.T)
        if scale == "mean":
            values = values / values.detach().mean().clamp_min(torch.finfo(values.dtype).tiny)
        flat = F.log_softmax(values.detach() / tau, dim=0)
        total = total + (flat.exp() * (flat - F.log_softmax(values, dim=0))).sum()
    return total
