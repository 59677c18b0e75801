"""Networks that are trained on the synthetic set between image updates (Zhao et al., ICLR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from datastill.core.context import Context
from datastill.core.rng import Key, Rng
from datastill.surrogates.trained import Trajectory
from datastill.training.hard import Schedule, train

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


class TrainedOnSynthetic(Trajectory):
    """`outer` matches per network, with `epochs` passes over the synthetic set between two of them.

    Args:
        factory: builds the networks.
        outer: image updates per network.
        epochs: passes of plain SGD (no momentum, no weight decay) over the synthetic set in between.
        lr: learning rate of the network.
        batch: images per step of the network.
        augment: DSA strategy of this training, with parameters per image, or "none".
    """

    def __init__(
        self,
        factory: NetworkFactory,
        *,
        outer: int,
        epochs: int,
        lr: float = 0.01,
        batch: int = 256,
        augment: str = "none",
    ) -> None:
        super().__init__(factory, outer)
        self.schedule = Schedule(epochs, lr=lr, momentum=0.0, weight_decay=0.0, batch=batch, augment=augment)

    def train(self, network: Network, context: Context, *key: Key) -> None:
        """On the images as they are after this step's update; a key tells trainings within one step apart."""
        plan = context.plan
        with torch.no_grad():
            record = plan.decoder.draw(context.generator("decode", "inner", *key))
            synthetic = plan.decoder.decode(context.codes, plan.labels.during(context), record)
        network.requires_grad_(True)
        train(
            network,
            synthetic.x,
            synthetic.y,
            self.schedule,
            Rng(context.seed("inner", *key)),
            compiled=context.task.compile,
            chunk=context.chunk,
            on_pass=lambda p, loss: context.net_updated(network),
        )
