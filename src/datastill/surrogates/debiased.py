"""A few networks trained on the real set by a way that resists its bias, one of them drawn for each step.

They stand where a method takes a fresh random network: the poster's "de-biased surrogates". Random features see a
colour like everything else; features that were trained to ignore it do not pass it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Task
from datastill.core.rng import Rng
from datastill.core.threads import threads_for
from datastill.data.sources import split_options, typed_option
from datastill.debias.dfa import Disentangled
from datastill.debias.training import DebiasedTraining

if TYPE_CHECKING:
    from datastill.models import Network, NetworkFactory

#: Where no steps are given: enough to learn past the bias on coloured digits.
STEPS = 600


@dataclass(frozen=True)
class DebiasedNetworks:
    """Networks trained on the real set by DFA or SelecMix, as a prepared unit.

    Args:
        factory: builds them.
        training: the way.
        count: how many.
        seed: of all of them; not the run's, so that runs of all seeds share them.
    """

    factory: NetworkFactory
    training: DebiasedTraining
    count: int = 3
    seed: int = 0

    name = "debiased-networks"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on; weights of images are not among it, these networks look away."""
        return {
            "unit": self.name,
            "training": self.training.describe(),
            "count": self.count,
            "seed": self.seed,
            "network": self.factory.describe(),
            "data": task.real.with_weights(None).fingerprint,
            "space": task.real.space.id,
            "device": task.device.type,
            "threads": torch.get_num_threads(),
        }

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: about three passes an image, of two networks."""
        n = len(task.real)
        return 6.0 * self.count * self.training.steps(n) * self.training.batch(n) * self.factory.macs

    def run(self, task: Task) -> dict[str, Tensor]:
        """`<k>/<name>` for the state of network k."""
        kept: dict[str, Tensor] = {}
        total = self.count * self.training.steps(len(task.real))
        with threads_for(self.factory.macs):
            for k in range(self.count):
                network = self._train(task, k, total)
                kept |= {f"{k}/{name}": value.detach().cpu() for name, value in network.state_dict().items()}
        return kept

    def _train(self, task: Task, k: int, total: int) -> Network:
        real, each = task.real, total // self.count
        network = self.training(
            self.factory,
            lambda index: real.batch(index).x,
            real.labels,
            rng=Rng(self.seed).child("debiased-network", k),
            device=task.device,
            on_step=lambda step: task.progress("debiased networks", k * each + step + 1, total, {}),
        )
        return network.intrinsic if isinstance(network, Disentangled) else network

    def load(self, prepared: Mapping[str, Tensor], k: int) -> Network:
        """Network k as it was trained, frozen, in train mode like a fresh one."""
        network = self.factory(0)
        start = f"{k}/"
        network.load_state_dict({n.removeprefix(start): t for n, t in prepared.items() if n.startswith(start)})
        return network.requires_grad_(False).train()


@dataclass
class DebiasedPool:
    """One of the prepared networks for every step, drawn at random.

    Args:
        unit: how they were made.
    """

    unit: DebiasedNetworks
    _networks: list[Network] = field(default_factory=list, repr=False)

    def begin(self, context: Context) -> None:
        """Build them, once for all blocks."""
        if not self._networks:
            prepared = context.prepared[self.unit.name]
            self._networks = [self.unit.load(prepared, k).to(context.device) for k in range(self.unit.count)]

    def draw(self, context: Context) -> Network:
        """The network of this step."""
        k = torch.randint(len(self._networks), (1,), generator=context.generator("surrogate"))
        return self._networks[int(k)]

    def advance(self, context: Context) -> None:
        """Nothing to advance: the networks stay as they are."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to remember."""


@dataclass(frozen=True)
class DebiasedSurrogates:
    """What `surrogates="dfa:count=3,steps=600"` asks for."""

    training: DebiasedTraining
    count: int = 3

    @classmethod
    def parse(cls, text: str) -> DebiasedSurrogates | None:
        """What the text names; None for "method", the method's own surrogates.

        Raises:
            InputError: an unknown way or option.
        """
        if text == "method":
            return None
        how, given = split_options(text)
        if how not in ("dfa", "selecmix"):
            raise InputError(f"There are no surrogates {how!r}. {nearest(how, ('method', 'dfa', 'selecmix'))}")
        count = typed_option(given.pop("count", "3"), 3, f"{how}:count")
        if count < 1:
            raise InputError(f"A pool of {count} networks is empty; take count of at least 1.")
        rest = ",".join(f"{name}={value}" for name, value in given.items())
        training = DebiasedTraining.parse(f"{how}:{rest}")
        assert training is not None
        return cls(training.with_defaults(steps=STEPS), count)

    def unit(self, factory: NetworkFactory) -> DebiasedNetworks:
        """The unit that trains them."""
        return DebiasedNetworks(factory, self.training, self.count)

    def describe(self) -> dict[str, Any]:
        """JSON-able, for configurations and manifests."""
        return {**self.training.describe(), "count": self.count}
