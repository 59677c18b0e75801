"""A pool of networks that learn the synthetic set by a squared error, each at another age (FRePo: arXiv:2206.00719)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.context import Context
from datastill.core.precision import casting
from datastill.core.rng import isolated
from datastill.surrogates.pooled import Pooled, parts, states
from datastill.training.regression import squared_error, targets_of

if TYPE_CHECKING:
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory

#: Of batch norm: what a training step leaves of running statistics is a tenth.
_BATCH_NORM_MOMENTUM = 0.9


class Staggered:
    """Each step matches on one of `size` networks; then it takes a step of Adam on the set, or a fresh one replaces it.

    All networks begin fresh, but with counters that are spread from 0 to `horizon`, so that they are replaced at
    different times: whichever was drawn with a counter above `horizon`.

    Features come from networks in evaluation mode: batch norm has running statistics there.

    Args:
        factory: builds the networks.
        size: networks.
        horizon: updates after which a network is replaced.
        lr: Adam's, of the networks.
        batch: synthetic images of an update at most.
    """

    def __init__(self, factory: NetworkFactory, *, size: int, horizon: int, lr: float, batch: int) -> None:
        self.factory, self.size, self.horizon = factory, size, horizon
        self.lr, self.batch = lr, batch
        self.members: list[_Member] = []
        self._drawn = 0

    @property
    def counters(self) -> list[int]:
        """Of the networks: their updates, and what they began with."""
        return [member.counter for member in self.members]

    def begin(self, context: Context) -> None:
        """Counters of the beginning; networks are made when they are needed."""
        self.members = [_Member(k, counter=k * self.horizon // self.size) for k in range(self.size)]

    def draw(self, context: Context) -> Network:
        """A random network of the pool."""
        self._drawn = int(torch.randint(len(self.members), (), generator=context.generator("pool")))
        return self._network(self.members[self._drawn], context).requires_grad_(False).eval()

    def advance(self, context: Context) -> None:
        """Train the network of this step, or replace it; after the last step, let all go."""
        if context.step + 1 >= context.steps:
            self.members = []
            return
        member = self.members[self._drawn]
        if member.counter > self.horizon:
            self.members[self._drawn] = _Member(self._drawn, born=context.step)
            return
        with casting(context.device, context.task.precision), isolated(context.seed("net-dropout")):
            self._train(member, context)

    def _train(self, member: _Member, context: Context) -> None:
        plan, network = context.plan, self._network(member, context)
        with torch.no_grad():
            record = plan.decoder.draw(context.generator("decode", "inner"))
            synthetic = plan.decoder.decode(context.codes, plan.labels.during(context), record)
        y = targets_of(synthetic.y.to(context.device), context.task.classes)
        order = torch.randperm(len(y), generator=context.generator("net-data"))[: self.batch].to(context.device)
        network.requires_grad_(True).train()
        optimizer = member.optimizer_of(network, self.lr)
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            torch.autograd.backward(squared_error(network(synthetic.x[order]).float(), y[order]))
        optimizer.step()
        member.counter, member.trainings = member.counter + 1, member.trainings + 1
        context.net_updated(network)

    def _network(self, member: _Member, context: Context) -> Network:
        if member.network is None:
            seed = context.rng.derive("surrogate", context.block.key, member.slot, member.born)
            for layer in member.made(self.factory, seed, context.device).modules():
                if isinstance(layer, _BatchNorm) and layer.momentum is not None:
                    layer.momentum = _BATCH_NORM_MOMENTUM
        assert member.network is not None
        return member.network

    def state(self) -> dict[str, Tensor]:
        """Counters, and weights and moments of who was trained; nothing is copied."""
        numbers = [[m.born, m.counter, m.trainings] for m in self.members]
        return {"numbers": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 3), **states(self.members)}

    @property
    def parts(self) -> list[str]:
        """One for each network that was trained."""
        return parts(self.members)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.members = []
        for slot, (born, counter, trainings) in enumerate(state["numbers"].tolist()):
            member = _Member(slot, born, counter, trainings)
            member.take(state)
            self.members.append(member)


class _Member(Pooled):
    """A network of the pool.

    Args:
        slot: its place in the pool.
        born: the step after which it came, -1 for the beginning; its first weights are drawn from both.
        counter: see `Staggered.counters`.
        trainings: its updates.
    """

    def __init__(self, slot: int, born: int = -1, counter: int = 0, trainings: int = 0) -> None:
        super().__init__(trainings)
        self.slot, self.born, self.counter = slot, born, counter
        self.optimizer: torch.optim.Adam | None = None

    @property
    def part(self) -> str:
        """A name of its state until another update."""
        return f"network{self.slot}-{self.born}-{self.trainings}"

    def optimizer_of(self, network: Network, lr: float) -> torch.optim.Adam:
        """Its optimizer, with the moments that it had."""
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(network.parameters(), lr=lr)
            for name, parameter in network.named_parameters():
                prefix = f"adam/{name}/"
                kept = {n.removeprefix(prefix): t.clone() for n, t in self.stored.items() if n.startswith(prefix)}
                if kept:
                    step = kept.pop("step").cpu()
                    self.optimizer.state[parameter] = {
                        "step": step,
                        **{n: t.to(parameter.device) for n, t in kept.items()},
                    }
            self.stored = {}  # all of it is in network and optimizer now
        return self.optimizer

    def moments(self, network: Network) -> dict[str, Tensor] | None:
        """Of Adam."""
        if self.optimizer is None:
            return None
        return {
            f"adam/{name}/{n}": value.detach()
            for name, parameter in network.named_parameters()
            for n, value in self.optimizer.state.get(parameter, {}).items()
        }
