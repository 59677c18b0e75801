"""DoorPing: the trigger is learned along with the set (Liu et al., NDSS 2023, arXiv:2301.01197).

    patch = argmin_patch || a_K(trigger on black) - 10 a_K(the trigger before the update, on black) ||^2

for the channel K of the last but one layer of weights whose row sum is largest in magnitude, in the network of the
step. Poisoned images bear the patch as it is at every moment.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from datastill.apps.backdoor.trigger import Trigger
from datastill.core.context import Context
from datastill.core.plan import Callback
from datastill.data.real import RealSet
from datastill.training.hard import Schedule, train

#: Loss below which a trigger is good enough, as published.
_ENOUGH = 0.5


class DoorPing(Callback):
    """A callback of any method that draws surrogates: every so many steps the trigger follows the network.

    Args:
        trigger: changed in place.
        real: the poisoned set, whose images bear it; a copy of the step's network is first trained on some.
        every: steps between two updates.
        steps: of Adam at rate .08 in an update.
        warm: images that the copy is trained on; 0 takes the network as it is.
        clamp: keep the patch in the pixels' range; off is as published, where it leaves it.
    """

    name = "doorping"

    def __init__(
        self, trigger: Trigger, real: RealSet, every: int = 10, steps: int = 30, warm: int = 1024, clamp: bool = True
    ) -> None:
        self.trigger, self.real, self.every, self.steps, self.warm = trigger, real, every, steps, warm
        self.clamp = clamp
        self.updates = 0
        self.losses: list[tuple[float, float]] = []  #: before and after every update

    def after_step(self, context: Context) -> None:
        """Update the trigger against a copy of the network of this step."""
        if (context.step + 1) % self.every or context.surrogate is None:
            return
        network = copy.deepcopy(cast(nn.Module, context.surrogate)).to("cpu").requires_grad_(True)
        if self.warm:
            rng = context.rng.child("doorping", context.step)
            index = torch.randperm(len(self.real), generator=rng.generator("images"))[: self.warm]
            few = self.real.batch(index)
            train(network, few.x, few.y, Schedule(1, batch=64), rng)
        self.losses.append(self.update(network))

    def update(self, network: nn.Module) -> tuple[float, float]:
        """Learn the patch against a network that stays as it is; the loss before and after."""
        self.updates += 1
        network.eval().requires_grad_(False)
        layer, channel = strongest(network)
        mask = self.trigger.mask
        patch = self.trigger.patch.clone().requires_grad_()
        optimizer = torch.optim.Adam([patch], lr=0.08, betas=(0.9, 0.99))
        wanted = 10 * self._active(network, layer, channel, patch).detach()
        best = patch.detach().clone()
        losses: list[float] = []
        for _ in range(self.steps + 1):
            loss = (self._active(network, layer, channel, patch) - wanted).square().mean()
            value = float(loss.detach())
            if not losses or value < min(losses):
                best = patch.detach().clone()
            losses.append(value)
            if losses[-1] < _ENOUGH:
                break
            (grad,) = torch.autograd.grad(loss, patch)
            patch.grad = grad * mask
            optimizer.step()
            if self.clamp:
                patch.data.clamp_(0, 1)
        self.trigger.patch[:, mask] = best[:, mask]
        return losses[0], min(losses)

    def _active(self, network: nn.Module, layer: nn.Module, channel: int, patch: Tensor) -> Tensor:
        """What the channel makes of the patch on black, before its nonlinearity; no hook stays."""
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda module, given, out: seen.append(out))
        try:
            network(self.real.space.encode((patch * self.trigger.mask)[None]))
        finally:
            hook.remove()
        return seen[0][:, channel]

    def state(self) -> dict[str, Tensor]:
        """The patch."""
        return {"patch": self.trigger.patch.clone(), "updates": torch.tensor(self.updates)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.trigger.patch.copy_(state["patch"])
        self.updates = int(state["updates"])


def strongest(network: nn.Module) -> tuple[nn.Module, int]:
    """The last but one layer of weights, and its output with the largest sum of weights in magnitude."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    layer = layers[-2] if len(layers) > 1 else layers[-1]
    return layer, int(layer.weight.flatten(1).sum(1).abs().argmax())
