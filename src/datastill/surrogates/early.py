"""Networks in an early stage of training, moved a little at random (Acc-DD: Zhang et al., CVPR 2023, arXiv:2212.06152).

A few networks are trained for a few epochs, once. Whoever needs a new network takes one of them, and adds noise that is
as large for each filter as the filter itself says: one stored network then stands for many.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from datastill.core.context import Context
from datastill.core.plan import Task
from datastill.core.precision import casting
from datastill.core.rng import Rng
from datastill.core.runtime import silent
from datastill.core.threads import threads_for
from datastill.surrogates.on_real import TrainedOnReal
from datastill.training.feature_network import load_weights, origin, trained_weights
from datastill.training.hard import Schedule

if TYPE_CHECKING:
    from datastill.models.base import Network

#: Steps of training that a rehearsal takes its time from.
_TIMED = 4


@dataclass(frozen=True)
class EarlyNetwork:
    """A network after a few epochs on the real set, as a prepared unit.

    Attributes:
        k: its number; each has a file of its own.
        schedule: of the training.
        part: of the real images, which is drawn for each network; below 1 an epoch is shorter.
        seed: not the run's, so that runs of all seeds share it.
    """

    k: int
    schedule: Schedule
    part: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """What the unit is called."""
        return f"early-network-{self.k}"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on."""
        precision = {} if task.precision == "float32" else {"precision": task.precision}
        return {"unit": self.name, **asdict(self), **origin(task), **precision}

    def images(self, task: Task) -> int:
        """Real images of an epoch; two at least, since batch norm has no statistics of one."""
        return min(len(task.real), max(2, round(self.part * len(task.real))))

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: forward and backward are about three passes."""
        return 3.0 * self.schedule.passes * self.images(task) * task.network.macs

    def run(self, task: Task) -> dict[str, Tensor]:
        """`weight/<name>` for the state of the network."""
        rng = Rng(self.seed).child("early-network", self.k)
        if self.part < 1:
            order = torch.randperm(len(task.real), generator=rng.generator("part"))
            task = replace(task, real=task.real.subset(order[: self.images(task)].sort().values))
        with casting(task.device, task.precision):
            return trained_weights(task, self.schedule, rng, f"early network {self.k + 1}")

    def seconds(self, task: Task) -> float:
        """What `run` would take, from a few steps of it."""
        batch = self.schedule.batch
        few = replace(task, real=task.real.subset(torch.arange(min(len(task.real), _TIMED * batch))))
        few = replace(few, runtime=replace(task.runtime, progress=silent))
        once = replace(self, schedule=replace(self.schedule, passes=1), part=1.0)
        with threads_for(task.network.macs):
            replace(once, part=min(1.0, 2 * batch / len(few.real))).run(few)
            started = time.perf_counter()
            once.run(few)
        return (time.perf_counter() - started) * self.schedule.passes * self.images(task) / len(few.real)


class EarlyStage(TrainedOnReal):
    """Each new network is one of a bank, drawn at random and perturbed; it goes on training on real images.

    Args:
        like: the surrogates whose networks begin at random otherwise.
        bank: the units that train the networks; none leaves networks at their random weights.
        low, high: how large each of the two perturbations is in relation to the weights, uniform between them.
    """

    def __init__(self, like: TrainedOnReal, bank: Sequence[EarlyNetwork], low: float, high: float) -> None:
        super().__init__(like.factory, outer=like.outer, images=like.images, schedule=like.schedule, early=like.early)
        self.bank, self.low, self.high = bank, low, high

    def start(self, network: Network, context: Context) -> None:
        """The weights of a network of the bank, with noise."""
        if self.bank:
            k = int(torch.randint(len(self.bank), (1,), generator=context.generator("early network")))
            load_weights(network, context.prepared[self.bank[k].name])
        generator = context.generator("perturbation")
        size = self.low + (self.high - self.low) * torch.rand(2, generator=generator)
        sign = 2.0 * torch.randint(2, (2,), generator=generator) - 1
        perturb(network, (sign * size).tolist(), generator)
        super().start(network, context)


def perturb(network: nn.Module, sizes: Sequence[float], generator: torch.Generator) -> None:
    """Add noise to the matrices and filters of a network, in place: theta <- theta + sum_i a_i d_i.

    Each d_i is Gaussian, and has the norm of theta in every filter (row along the first axis). Biases and norm layers,
    which have one axis, stay as they are.

    Args:
        network: what is moved.
        sizes: a_i, one for each direction.
        generator: of the directions.
    """
    if not any(sizes):
        return
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim < 2:
                continue
            length = weight.flatten(1).norm(dim=1)
            move = torch.zeros_like(weight)
            for size in sizes:
                drawn = torch.randn(weight.shape, generator=generator).to(weight)
                scale = size * length / drawn.flatten(1).norm(dim=1).clamp_min(1e-12)
                move += drawn * scale.view(-1, *[1] * (weight.ndim - 1))
            weight.add_(move)
