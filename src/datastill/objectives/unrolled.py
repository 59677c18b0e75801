"""The loss on real images of a network after a few steps on the synthetic set (DD: arXiv:1811.10959).

L = mean_{t in B} CE(phi(x_t; theta_N), y_t),  theta_{i+1} = theta_i - a_i grad_theta CE(phi(S_i; theta_i), Y_i)

S_i are the images whose turn it is at step i, and a_i = softplus(r_i) is learned for each step, repetitions of a turn
among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.context import Context
from datastill.core.plan import Grads
from datastill.engines import hypergradient as hg
from datastill.engines.flat import FlatModel
from datastill.objectives.sides import share_a_pass
from datastill.training.few_steps import RAW, START, TURNS, positions_of

if TYPE_CHECKING:
    from datastill.core.batch import Batch
    from datastill.models.base import Network


@dataclass(frozen=True)
class UnrolledLoss:
    """The gradient goes to the images, to the raw step sizes, and to labels that are learned as logits.

    The network begins at the leaf `start_weights` where there is one, else at the weights of the step's network.

    Attributes:
        window: steps at most that the gradient goes through, the last of those that are taken; where there are more,
            the network stops after a random number of them, `window` at least. 0 goes through all.
        clip: norm at which the gradient of all leaves together is cut; 0 leaves it.
    """

    window: int = 0
    clip: float = 0.0

    def __call__(self, context: Context) -> Grads:
        """The loss, 0-dim, and its gradients."""
        assert context.synthetic is not None
        network = cast("Network", context.surrogate)
        codes = {name: leaf.detach() for name, leaf in context.codes.items()}
        x, y = context.synthetic.x.detach(), context.synthetic.y.detach().to(context.device)
        model, raw = FlatModel(network), codes[RAW]
        taken = self._taken(context, len(raw))
        rng = context.rng.child("student", context.block.key, context.step)
        steps = [
            hg.InnerStep(index, None, rng.derive("dropout", i))
            for i, index in enumerate(positions_of(codes[TURNS], taken))
        ]
        joint = share_a_pass(context)
        student = hg.Student(
            model,
            x,
            y,
            hg.InnerPlan(len(x), tuple(steps)),
            loss_fn=hg.cross_entropy_of_logits if y.is_floating_point() else None,
            chunk=None if joint else context.chunk,
        )
        batch, chunk = context.real_batch(), None if joint else context.chunk
        found = hg.adjoint_of_loss(
            student,
            codes.get(START, model.flatten()),
            F.softplus(raw[:taken]),
            lambda theta: _on_real(model, network, theta, batch, chunk),
            last=self.window or None,
        )
        slope = torch.zeros_like(raw)
        slope[:taken] = found.sizes * raw[:taken].sigmoid()
        named = {RAW: slope, **({"labels": found.y} if found.y is not None else {})}
        return self._clipped(Grads(found.loss, found.x, named))

    def _taken(self, context: Context, steps: int) -> int:
        """How many steps the network takes."""
        if not 0 < self.window < steps:
            return steps
        return int(torch.randint(self.window, steps + 1, (), generator=context.generator("window")))

    def _clipped(self, grads: Grads) -> Grads:
        if not self.clip:
            return grads
        norm = torch.stack([g.norm() for g in (grads.x, *grads.leaves.values())]).norm()
        factor = (self.clip / norm.clamp_min(1e-30)).clamp(max=1.0)
        return Grads(grads.loss, grads.x * factor, {name: g * factor for name, g in grads.leaves.items()})


@dataclass(frozen=True)
class LossAfterSteps:
    """The same after steps of one given size, each on all images of the block, from the step's network (FedMK).

    L = mean_t s_t CE(phi(x_t; theta_N), y_t), with s_t = 1 / (1 + exp(-focus * CE)) taken for a constant.

    Attributes:
        steps: N.
        lr: their size.
        focus: tau of the weights; 0 weighs all alike.
    """

    steps: int = 1
    lr: float = 0.01
    focus: float = 0.0

    def __call__(self, context: Context) -> Grads:
        """The loss, 0-dim, and its gradient to the images."""
        assert context.synthetic is not None
        network = cast("Network", context.surrogate)
        x, y = context.synthetic.x.detach(), context.synthetic.y.detach().to(context.device)
        model, rng = FlatModel(network), context.rng.child("student", context.block.key, context.step)
        steps = tuple(hg.InnerStep(torch.arange(len(x)), None, rng.derive("dropout", i)) for i in range(self.steps))
        batch, chunk = context.real_batch(), None if share_a_pass(context) else context.chunk
        found = hg.adjoint_of_loss(
            hg.Student(model, x, y, hg.InnerPlan(len(x), steps), chunk=chunk),
            model.flatten(),
            torch.full((self.steps,), self.lr, device=x.device),
            lambda theta: _on_real(model, network, theta, batch, chunk, self.focus),
        )
        return Grads(found.loss, found.x)


def hardness(losses: Tensor, focus: float) -> Tensor:
    """What each image counts for its loss: in [1/2, 1), and twice that of an easy one at most; no gradient passes.

    Args:
        losses: of images, (n,), at least 0.
        focus: tau; with 0 all count 1.
    """
    return (focus * losses.detach()).sigmoid() if focus else torch.ones_like(losses)


def _on_real(
    model: FlatModel, network: Network, theta: Tensor, batch: Batch, chunk: int | None, focus: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The weighted mean cross-entropy at theta and its gradient; no dropout, batch norm by the batch's own numbers."""
    network.eval()
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.train()
    weight = torch.ones(len(batch.y), device=theta.device) if batch.weight is None else batch.weight.to(theta)
    weight = weight / weight.sum().clamp_min(1e-30)
    total, gradient = theta.new_zeros(()), torch.zeros_like(theta)
    for part in torch.arange(len(batch.y), device=theta.device).split(chunk or len(batch.y)):
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(leaf, batch.x[part])
            logits = logits if logits.dtype == torch.float64 else logits.float()
            losses = F.cross_entropy(logits, batch.y[part], reduction="none")
            loss = (losses * hardness(losses, focus) * weight[part]).sum()
            gradient += torch.autograd.grad(loss, leaf)[0]
        total += loss.detach()
    network.train()
    return total, gradient
