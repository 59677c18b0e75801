"""A few networks trained on the real set by a way that resists its bias, one of them drawn for each step.

They stand where a method takes a fresh random network: the poster's "de-biased surrogates". Random features see a
color like everything else; features that were trained to ignore it do not pass it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Task
from datastill.core.ranges import Few, check_fields
from datastill.core.rng import Rng
from datastill.core.threads import threads_for
from datastill.data.sources import split_options, typed_option
from datastill.models.code import code_key
from datastill.store.schema import Name, Positive, Record
from datastill.training.debiased import DebiasedTraining
from datastill.training.dfa import Disentangled

if TYPE_CHECKING:
    from datastill.models import Network, NetworkFactory

#: Where no steps are given: enough to learn past the bias on colored digits.
STEPS = 600


class PoolRecord(Record):
    """How a pool was trained, as manifests have it: options of the way stand beside these."""

    how: Name
    count: Positive = 1


@dataclass(frozen=True)
class DebiasedNetwork:
    """A network trained on the real set by DFA or SelecMix, as a prepared unit.

    Args:
        factory: builds it.
        training: the way.
        k: its number.
        seed: not the run's, so that runs of all seeds share it.
    """

    factory: NetworkFactory
    training: DebiasedTraining
    k: int
    seed: int = 0

    @property
    def name(self) -> str:
        """What the unit is called; each number has a file of its own."""
        return f"debiased-network-{self.k}"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on; weights of images are not among it, this network looks away."""
        return {
            "unit": self.name,
            "training": {"how": self.training.how, **self.training.settled()},
            "seed": self.seed,
            "network": self.factory.describe(),
            **code_key(self.factory),
            "data": task.real.with_weights(None).fingerprint,
            "space": task.real.space.id,
            "device": task.device.type,
            "threads": torch.get_num_threads(),
        }

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: about three passes an image, of two networks."""
        n = len(task.real)
        return 6.0 * self.training.steps(n) * self.training.batch(n) * self.factory.macs

    def run(self, task: Task) -> dict[str, Tensor]:
        """The state of the network by name."""
        real, steps = task.real, self.training.steps(len(task.real))
        with threads_for(self.factory.macs):
            network = self.training(
                self.factory,
                lambda index: real.batch(index).x,
                real.labels,
                rng=Rng(self.seed).child("debiased-network", self.k),
                device=task.device,
                on_step=lambda step: task.progress(f"surrogate {self.k + 1} against the bias", step + 1, steps, {}),
            )
        kept = network.intrinsic if isinstance(network, Disentangled) else network
        return {name: value.detach().cpu() for name, value in kept.state_dict().items()}

    def load(self, prepared: Mapping[str, Tensor]) -> Network:
        """The network as it was trained, frozen, in train mode like a fresh one."""
        network = self.factory(0)
        network.load_state_dict(dict(prepared))
        return network.requires_grad_(False).train()


@dataclass
class DebiasedPool:
    """One of the prepared networks for every step, drawn at random.

    Of networks by DFA the features are trained and the last layer is not: DFA predicts by a head of its own. Objectives
    on features, such as DM's, never see it.

    Args:
        units: how they were made.
    """

    units: Sequence[DebiasedNetwork]
    _networks: list[Network] = field(default_factory=list, repr=False)

    def begin(self, context: Context) -> None:
        """Build them, once for all blocks."""
        if not self._networks:
            made = (unit.load(context.prepared[unit.name]) for unit in self.units)
            self._networks = [network.to(context.device) for network in made]

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
    count: Few = 3

    def __post_init__(self) -> None:
        check_fields(self, "{name} of surrogates")

    @classmethod
    def parse(cls, text: str) -> DebiasedSurrogates | None:
        """What the text names; None for "method", the method's own surrogates.

        Raises:
            InputError: an unknown way or option.
        """
        if text == "method":
            return None
        how, given = split_options(text)
        if how == "method":
            raise InputError(f"The method's own surrogates take no options here, and {text!r} gives some.")
        if how not in ("dfa", "selecmix"):
            raise InputError(f"There are no surrogates {how!r}. {nearest(how, ('method', 'dfa', 'selecmix'))}")
        count = typed_option(given.pop("count", "3"), 3, f"{how}:count")
        rest = ",".join(f"{name}={value}" for name, value in given.items())
        training = DebiasedTraining.parse(f"{how}:{rest}")
        assert training is not None
        return cls(training.with_defaults(steps=STEPS), count)

    def units(self, factory: NetworkFactory) -> list[DebiasedNetwork]:
        """The units that train them."""
        return [DebiasedNetwork(factory, self.training, k) for k in range(self.count)]

    def describe(self) -> dict[str, Any]:
        """JSON-able, for configurations and manifests."""
        return {**self.training.describe(), "count": self.count}
