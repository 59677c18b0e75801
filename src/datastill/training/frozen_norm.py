"""Batch statistics that stay as they are while a network is matched on, or looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.context import Context

if TYPE_CHECKING:
    from datastill.models.base import Network

#: Real images per class from which the statistics of batch norm are taken before they are frozen.
STATISTICS_IMAGES = 16


def freeze_batch_norm(network: Network, context: Context) -> None:
    """Give batch norm the exact statistics of some real images of every class, and keep them for the match.

    The released code does the same with a momentum of 0.1 from (0, 1), which keeps a tenth of what was measured.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    network.train()
    if not layers:
        return
    batch = context.task.real.of_classes(context.block.classes, STATISTICS_IMAGES, context.generator("batch-norm")).to(
        context.device
    )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average: of one batch, that batch's statistics
    with torch.no_grad():
        network(batch.x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
