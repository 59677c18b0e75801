"""An image from the gradient of a loss at it (DLG: Zhu et al., arXiv:1906.08935; iDLG: Zhao et al., arXiv:2001.02610).

    x' = argmin_x' D( dL(x', c')/dw, g ),   g = dL(x, c)/dw

DLG learns c' as the softmax of logits beside x'; iDLG reads c' = c off the last layer first. With D of gradient
matching and the mean over weights instead of one network's it is DC (arXiv:2006.05929).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from datastill.apps.leakage.labels import label_of, last_layer
from datastill.core.errors import InputError
from datastill.objectives.gradient_distances import make_distance

#: A loss this many times the first one is a failed search, which starts again from other noise.
_FAILED = 1e3


@dataclass
class Recovery:
    """What an attack made of a gradient.

    Attributes:
        image: (c, h, w) float64 in the data's Space, of the least distance met.
        label: the class that was found.
        losses: distance of gradients after every iteration of the last start.
        snapshots: images (k, c, h, w) along the way, the noise first.
        restarts: how often a search failed and began anew.
    """

    image: Tensor
    label: int
    losses: list[float] = field(default_factory=list)
    snapshots: Tensor = field(default_factory=lambda: torch.zeros(0))
    restarts: int = 0


def gradient_of(network: nn.Module, x: Tensor, y: Tensor, graph: bool = False) -> dict[str, Tensor]:
    """The gradient of the cross-entropy at one example, by parameter name.

    Args:
        network: whose weights it is a gradient of.
        x: (1, c, h, w).
        y: the class (1,) int64, or probabilities (1, C).
        graph: whether it can be differentiated again.

    Raises:
        InputError: more than one example; their labels and images mix in a gradient.
    """
    if len(x) != 1:
        raise InputError(
            f"The attack is on the gradient of one example, and this one is of {len(x)}: of several, no more than "
            "which labels are present can be told."
        )
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    out = log_softmax(network(x), dim=1)
    target = one_hot(y, out.shape[1]).to(out) if y.ndim == 1 else y
    grads = torch.autograd.grad(-(target * out).sum(), list(named.values()), create_graph=graph)
    return dict(zip(named, grads, strict=True))


@dataclass(frozen=True)
class Attack:
    """How an image is looked for.

    Attributes:
        kind: "idlg" reads the label off the gradient, "dlg" learns it beside the image.
        distance: "mse", "row-cosine", "cos" or "l1" of gradients, as in gradient matching.
        iterations: of L-BFGS with a strong Wolfe line search.
        restarts: at most, where a search fails.
        snapshots: images kept along the way.
    """

    kind: Literal["idlg", "dlg"] = "idlg"
    distance: str = "mse"
    iterations: int = 400
    restarts: int = 5
    snapshots: int = 8

    def recover(
        self,
        network: nn.Module,
        gradient: dict[str, Tensor],
        shape: tuple[int, ...],
        classes: int,
        generator: torch.Generator,
        told: Callable[[float], None] = lambda loss: None,
    ) -> Recovery:
        """Look for the image (c, h, w) of `shape` whose gradient is `gradient`.

        Args:
            network: whose gradient it is, float64.
            gradient: by parameter name, at one example.
            shape: of the image, (c, h, w).
            classes: C.
            generator: of the noise that a search begins from.
            told: called with the distance after every iteration.
        """
        best: Recovery | None = None
        for start in range(self.restarts + 1):
            x = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
            logits = torch.randn(1, classes, generator=generator, dtype=torch.float64)
            found = self._search(network, gradient, x, logits, classes, told)
            found.restarts = start
            if best is None or min(found.losses) < min(best.losses):
                best = found
            if math.isfinite(found.losses[-1]) and found.losses[-1] < _FAILED * found.losses[0]:
                break
        assert best is not None
        return best

    def _search(
        self,
        network: nn.Module,
        gradient: dict[str, Tensor],
        x: Tensor,
        logits: Tensor,
        classes: int,
        told: Callable[[float], None],
    ) -> Recovery:
        known = label_of(*last_layer(gradient, classes)) if self.kind == "idlg" else None
        leaves = [x.requires_grad_()] if known is not None else [x.requires_grad_(), logits.requires_grad_()]
        distance = make_distance(self.distance)
        wanted = {name: g[None].detach() for name, g in gradient.items()}

        def loss() -> Tensor:
            y = logits.softmax(1) if known is None else torch.tensor([known])
            return distance({n: g[None] for n, g in gradient_of(network, x, y, graph=True).items()}, wanted).sum()

        search = torch.optim.LBFGS(leaves, lr=1.0, max_iter=1, max_eval=25, history_size=100, tolerance_change=0.0,
                                   tolerance_grad=0.0, line_search_fn="strong_wolfe")  # fmt: skip

        def closure() -> Tensor:
            search.zero_grad()
            value = loss()
            for leaf, grad in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
                leaf.grad = grad
            return value.detach()

        def label() -> int:
            return int(logits.detach().argmax()) if known is None else known

        found = Recovery(x.detach()[0].clone(), label(), [float(loss().detach())])
        kept, every = [x.detach()[0].clone()], max(1, self.iterations // max(1, self.snapshots - 1))
        for k in range(1, self.iterations + 1):
            search.step(closure)
            value = float(loss().detach())
            if value < min(found.losses):
                found.image, found.label = x.detach()[0].clone(), label()
            found.losses.append(value)
            told(value)
            if k % every == 0:
                kept.append(x.detach()[0].clone())
            if not math.isfinite(value) or value > _FAILED * found.losses[0] or value < 1e-16:
                break
        found.snapshots = torch.stack([*kept, found.image])
        return found
