"""The label behind a gradient, without any optimization (iDLG: Zhao, Mopuri and Bilen, arXiv:2001.02610).

With cross-entropy, row i of the last layer's weight gradient is (p_i - [i = c]) h, and entry i of its bias gradient
p_i - [i = c]: negative for the label c alone.
"""

from __future__ import annotations

from torch import Tensor


def label_of(weight: Tensor, bias: Tensor | None = None) -> int:
    """The label c of the one example that a gradient was taken at.

    By the bias gradient, whose only negative entry is c. Without a bias, c is the row that points away from all others,
    <g_c, g_j> <= 0, whatever the signs of the features h. With two classes both rows do so, and where probabilities
    underflow products are 0: among equals the row of the least sum is taken, which is right for h >= 0.

    Args:
        weight: gradient of the last layer's weights, (C, d).
        bias: gradient of its biases, (C,).
    """
    if bias is not None:
        return int(bias.argmin())
    rows = weight.double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    products = rows @ rows.T
    products.fill_diagonal_(-1.0)
    agreeing = (products > 0).sum(1)
    least = agreeing == agreeing.min()
    return int(weight.double().sum(1).masked_fill(~least, float("inf")).argmin())


def last_layer(gradient: dict[str, Tensor], classes: int) -> tuple[Tensor, Tensor | None]:
    """Weight (C, d) and bias (C,) of the last linear layer in gradients by parameter name, in their order."""
    name = [name for name, g in gradient.items() if g.ndim == 2 and len(g) == classes][-1]
    bias = gradient.get(f"{name.removesuffix('weight')}bias")
    return gradient[name], bias
