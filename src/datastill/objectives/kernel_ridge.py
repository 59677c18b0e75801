"""Ridge regression from the synthetic set to real images (KIP: arXiv:2011.00050, FRePo: arXiv:2206.00719).

L = mean_t 1/2 || y_t - K_ts (K_ss + lam tr(K_ss)/n I)^(-1) y_s ||^2 [ - mean_s min(y_s(1) - y_s(2), 1/C) ]

with y_t the centered one-hot rows of real images, and y_s(1), y_s(2) the two largest entries of a synthetic label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.engines.kernels import FeatureKernel, Kernel, fit_ridge, solved_labels
from datastill.objectives.sides import share_a_pass
from datastill.training.regression import centered, targets_of

if TYPE_CHECKING:
    from datastill.models.base import Network


@dataclass
class KernelRidge:
    """The error on a real batch of a regression on the synthetic set; through autograd, also to learned labels.

    Attributes:
        kernel: None takes the features of the step's network.
        ridge: lam.
        flip: mirrored copies with the same labels double the support.
        margin: whether the margin term of labels is there.
        solve: take the labels that fit the real batch best instead of the set's; at the best ones the error has no
            slope in them, so that its gradient in the images is that of the whole.
        remark: what the plan has to say of the kernel, for the notes of the run.
    """

    kernel: Kernel | None = None
    ridge: float = 1e-6
    flip: bool = False
    margin: bool = False
    solve: bool = False
    remark: str = ""
    _grown: float = field(default=1.0, init=False)

    def __call__(self, context: Context) -> Tensor:
        """The loss, 0-dim, with a graph to the images and to labels that are learned."""
        assert context.synthetic is not None
        x, y = context.synthetic.x, context.synthetic.y.to(context.device)
        classes, batch = context.task.classes, context.real_batch()
        y = targets_of(y, classes)
        wanted = centered(batch.y, classes).double()
        term = margin_term(y) if self.margin else 0.0
        if self.flip:
            x, y = torch.cat([x, x.flip(-1)]), torch.cat([y, y])
        kernel = self.kernel or self._features(context)
        if self.solve:
            y = solved_labels(kernel, x.detach(), batch.x, wanted, self.ridge, batch.weight)
        fitted = fit_ridge(kernel, x, y, self.ridge)
        self._remember(context, fitted.grown)
        each = 0.5 * (fitted(batch.x) - wanted).square().sum(1)
        weight = torch.ones_like(each) if batch.weight is None else batch.weight.to(each)
        return (each * weight).sum() / weight.sum().clamp_min(1e-30) + term

    def note(self, losses: Tensor) -> str:
        """What the plan says of the kernel, and by how much the ridge had to grow."""
        grown = f"the ridge grew {self._grown:g}-fold where the kernel matrix could not be decomposed"
        return "; ".join(filter(None, [self.remark, grown if self._grown > 1 else ""]))

    def _features(self, context: Context) -> FeatureKernel:
        network = cast("Network", context.surrogate)
        return FeatureKernel(network.embed, None if share_a_pass(context) else context.chunk)

    def _remember(self, context: Context, grown: float) -> None:
        """The largest growth of all steps, those before a resumption among them."""
        before = float(context.state["ridge_grown"]) if "ridge_grown" in context.state else 1.0
        self._grown = max(self._grown, before, grown)
        context.state["ridge_grown"] = torch.tensor(self._grown, dtype=torch.float64)


def margin_term(y: Tensor) -> Tensor:
    """- mean_s min(y_s(1) - y_s(2), 1/C) of labels (n, C), 0-dim: labels are to tell two classes apart by 1/C."""
    largest = y.topk(2, dim=1).values
    return -(largest[:, 0] - largest[:, 1]).clamp(max=1 / y.shape[1]).mean()
