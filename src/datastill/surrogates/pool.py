"""A pool of networks that are trained on real images, a little at every step (IDM: Zhao et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.precision import casting
from datastill.core.rng import Rng
from datastill.surrogates.pooled import Pooled, parts, states
from datastill.training.hard import Schedule, sgd, train
from datastill.training.momentum import give_momentum, momentum_of

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


class Pool:
    """Networks of all ages: each step matches on one of them, then trains a few.

    A fresh network joins at the first of every `interval` steps, and the oldest leaves where there are `most`. The
    optimizer of a network lives as long as it does. A checkpoint holds weights and momentum of those that were trained,
    and writes only what is new; the others are drawn again.

    Args:
        factory: builds the networks.
        start: networks at the beginning, before the first joins; at most `most`.
        most: networks at any time.
        interval: steps between two that join.
        trained: networks, drawn at random, that are trained after a step.
        updates: of each of them, on a new sample of real images.
        schedule: learning rate, momentum, weight decay and batch of the training.
    """

    def __init__(
        self,
        factory: NetworkFactory,
        *,
        start: int,
        most: int,
        interval: int,
        trained: int,
        updates: int,
        schedule: Schedule,
    ) -> None:
        self.factory, self.schedule = factory, schedule
        self.start, self.most, self.interval = min(start, most), most, interval
        self.trained, self.updates = trained, updates
        self.members: list[_Member] = []
        self._drawn: _Member | None = None

    @property
    def accuracy(self) -> float:
        """Of the network of this step on the images of its last training, before each update; 0 without training."""
        return 0.0 if self._drawn is None else self._drawn.accuracy

    @property
    def born(self) -> list[int]:
        """The steps at which the networks joined, oldest first; below 0 for those of the beginning."""
        return [member.born for member in self.members]

    def begin(self, context: Context) -> None:
        """The networks of the beginning, each of which is made when it is needed."""
        self.members, self._drawn = [_Member(-k) for k in range(self.start, 0, -1)], None

    def draw(self, context: Context) -> Network:
        """A random network of the pool, which a fresh one may have joined.

        Batch norm takes the statistics of each side, as in DM: under frozen ones features are not bounded, and the
        pixels run away.
        """
        if context.step % self.interval == 0:
            self.members = [*self.members, _Member(context.step)][-self.most :]
        position = int(torch.randint(len(self.members), (), generator=context.generator("pool")))
        self._drawn = self.members[position]
        return self._network(self._drawn, context).requires_grad_(False).train()

    def advance(self, context: Context) -> None:
        """Train some; after the last step, let all go."""
        if context.step + 1 >= context.steps:
            self.members = []
            return
        order = torch.randperm(len(self.members), generator=context.generator("pool-trained"))
        for position in order[: self.trained].tolist():
            with casting(context.device, context.task.precision):
                self._train(self.members[position], context)

    def _train(self, member: _Member, context: Context) -> None:
        real = context.task.real
        schedule = replace(self.schedule, batch=min(self.schedule.batch, len(real)))
        count = self.updates * schedule.batch
        rounds = range(-(-count // len(real)))
        generators = [context.generator("net-data", member.born, r) for r in rounds]
        chosen = torch.cat([torch.randperm(len(real), generator=g) for g in generators])[:count]
        labels = real.labels[chosen]
        network = self._network(member, context).requires_grad_(True)
        right = torch.zeros((), dtype=torch.int64, device=context.device)

        def told(index: Tensor, logits: Tensor) -> None:
            right.add_((logits.argmax(1) == labels[index].to(logits.device)).sum())
            context.net_updated(network)

        train(
            network,
            lambda index: real.batch(chosen[index]).x,
            labels,
            schedule,
            Rng(context.seed("net-training", member.born)),
            weight=None if real.weights is None else real.weights[chosen],
            on_batch=told,
            optimizer=member.optimizer_of(network, schedule),
            compiled=context.task.compile,
            chunk=context.chunk,
        )
        member.accuracy = float(right) / count
        member.trainings += 1

    def _network(self, member: _Member, context: Context) -> Network:
        seed = context.rng.derive("surrogate", context.block.key, member.born)
        return member.made(self.factory, seed, context.device)

    def state(self) -> dict[str, Tensor]:
        """Who is there, and weights and momentum of who was trained; nothing is copied."""
        return {
            "born": torch.tensor(self.born, dtype=torch.int64),
            "trainings": torch.tensor([member.trainings for member in self.members], dtype=torch.int64),
            "accuracy": torch.tensor([member.accuracy for member in self.members], dtype=torch.float64),
            **states(self.members),
        }

    @property
    def parts(self) -> list[str]:
        """One for each network that was trained."""
        return parts(self.members)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.members, self._drawn = [], None
        known = (state[name].tolist() for name in ("born", "trainings", "accuracy"))
        for born, trainings, accuracy in zip(*known, strict=True):
            member = _Member(born, trainings, accuracy)
            member.take(state)
            self.members.append(member)


class _Member(Pooled):
    """A network of the pool.

    Args:
        born: the step at which it joined, from which its first weights are drawn.
        trainings: how often it was trained.
        accuracy: see `Pool.accuracy`.
    """

    def __init__(self, born: int, trainings: int = 0, accuracy: float = 0.0) -> None:
        super().__init__(trainings)
        self.born, self.accuracy = born, accuracy
        self.optimizer: torch.optim.SGD | None = None

    @property
    def part(self) -> str:
        """A name of its state until another training; running statistics may change: nothing reads them."""
        return f"network{self.born}-{self.trainings}"

    def optimizer_of(self, network: Network, schedule: Schedule) -> torch.optim.SGD:
        """Its optimizer, with the momentum that it had."""
        if self.optimizer is None:
            self.optimizer = sgd(network.parameters(), schedule, schedule.lr)
            give_momentum(network, self.optimizer, self.stored)
            self.stored = {}  # all of it is in network and optimizer now
        return self.optimizer

    def moments(self, network: Network) -> dict[str, Tensor] | None:
        """Momentum."""
        return None if self.optimizer is None else momentum_of(network, self.optimizer)
