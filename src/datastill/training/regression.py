"""Training on a squared error: labels that were learned as targets, or classes as centered one-hot rows.

L = mean_b 1/2 || f(x_b) - y_b ||^2,   y = onehot(c) - 1/C where labels are classes (FRePo: Zhou et al., NeurIPS 2022,
arXiv:2206.00719).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.augment.dsa import Dsa
from datastill.core.rng import Rng, isolated
from datastill.core.runtime import Runtime
from datastill.engines.hypergradient.steps import batches
from datastill.training.hard import LossWatch
from datastill.training.trainers import Labeled, Told, Trained

if TYPE_CHECKING:
    from datastill.models import Network
    from datastill.models.factory import NetworkFactory

#: Steps of FRePo's evaluation by the number of images; a number between two takes the steps of the larger.
PUBLISHED_STEPS = ((10, 1000), (100, 2000), (200, 20_000), (1000, 10_000), (5000, 40_000))


def centered(y: Tensor, classes: int) -> Tensor:
    """Class positions (n,) as rows of 1 - 1/C for the class and -1/C for the others, (n, C) float32."""
    return F.one_hot(y, classes).float() - 1 / classes


def targets_of(y: Tensor, classes: int) -> Tensor:
    """Targets (n, C) as they are, or of class positions (n,) their centered one-hot rows."""
    return y if y.is_floating_point() else centered(y, classes)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the sum of squares of each row, (b, C), as a mean over the rows; 0-dim."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def published_steps(count: int) -> int:
    """Steps of FRePo's evaluation on a set of so many images."""
    return next((steps for size, steps in PUBLISHED_STEPS if count <= size), PUBLISHED_STEPS[-1][1])


@dataclass(frozen=True)
class SquaredError:
    """Adam on the squared error: a linear warm-up, then a cosine to a hundredth of the rate.

    Attributes:
        classes: C.
        lr: the rate after the warm-up.
        most: steps at most; fewer where `published_steps` are.
        warmup: steps of the warm-up; at most half of all.
        batch: images of a step at most.
        augment: DSA strategy, one operation per batch.
    """

    classes: int
    lr: float
    most: int = 40_000
    warmup: int = 500
    batch: int = 500
    augment: str = "none"

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`."""
        assert isinstance(data.x, Tensor)
        x, y = data.x.to(runtime.device), data.y.to(runtime.device)
        targets = targets_of(y, self.classes)
        made, losses = [], []
        for k, rng in enumerate(rngs):
            network = factory(rng.derive("network")).to(runtime.device).train()
            losses.append(self._train(network, x, targets, rng, lambda part, n, k=k: told(k + part, n)))  # type: ignore[misc]
            made.append(network)
        return Trained(made, losses)

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by at a step."""
        warmup = min(self.warmup, steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def _train(self, network: Network, x: Tensor, targets: Tensor, rng: Rng, told: Told) -> list[float]:
        """One network, in place; the losses of all steps, in 100 means at most."""
        steps = min(self.most, published_steps(len(x)))
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        dsa, order = Dsa(self.augment), batches(len(x), min(self.batch, len(x)), rng)
        watch = LossWatch("step")
        with isolated(rng.derive("dropout")):
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = self.lr * self.factor(step, steps)
                index = next(order).to(x.device)
                images = x[index]
                if dsa.ops:
                    channels, height, width = images.shape[1:]
                    generator = rng.generator("augment", step)
                    images = dsa.apply(images, dsa.draw(len(index), (channels, height, width), generator, one_op=True))
                optimizer.zero_grad(set_to_none=True)
                loss = squared_error(network(images), targets[index])
                torch.autograd.backward(loss)
                optimizer.step()
                watch.add(loss.detach(), 1)
                if step % 100 == 99:
                    told((step + 1) / steps, {"loss": float(loss.detach())})
        found = watch.finish()
        return [float(part.mean()) for part in found.split(-(-steps // 100))]
