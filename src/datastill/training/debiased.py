"""`train_debiased`: a network trained so that it resists a bias of the set it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.rng import Rng
from datastill.data.sources import split_options, typed_option
from datastill.models import Network, NetworkFactory
from datastill.training.debiased_steps import steps_for
from datastill.training.dfa import Dfa, DfaTrainer
from datastill.training.hard import Images
from datastill.training.selecmix import SelecMix, SelecMixTrainer

#: Options and trainer of every way.
_WAYS: dict[str, tuple[type[Dfa] | type[SelecMix], Any]] = {
    "dfa": (Dfa, DfaTrainer),
    "selecmix": (SelecMix, SelecMixTrainer),
}


def train_debiased(
    network_factory: NetworkFactory,
    x: Images,
    y: Tensor,
    how: str = "dfa",
    *,
    rng: Rng,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
    **options: Any,
) -> Network:
    """Train a network on a labeled set, real or synthetic, without being told its bias.

    A set that holds no image against its bias leaves nothing to find: sets distilled from biased data without
    re-weighting are nearly so, and the gain on them is small or negative.

    Args:
        network_factory: builds the network; "dfa" builds two of them, under one linear layer.
        x: images in the set's Space, (n, c, h, w), or a function from positions (b,) to images.
        y: class positions, (n,) int64.
        how: "dfa" or "selecmix".
        rng: of every draw.
        device: where to train.
        on_step: called after every step with its number, from 0.
        **options: of `dfa.Dfa` or `selecmix.SelecMix`.

    Returns:
        The network as it is after the last step, in train mode.

    Raises:
        InputError: unknown `how` or option, a number out of range, or labels that are not class positions.
        Diverged: a loss is not finite.
    """
    settings, trainer = _way(how)
    _refuse_unknown(how, options)
    network: Network = trainer(network_factory, y, settings(**options), rng, device).train(x, on_step)
    return network


@dataclass(frozen=True)
class DebiasedTraining:
    """A way to train with its options, as words name it: "dfa", "selecmix:steps=500,lr=0.005".

    Raises:
        InputError: see `train_debiased`.
    """

    how: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings, _ = _way(self.how)
        _refuse_unknown(self.how, self.options)
        settings(**self.options)

    @classmethod
    def parse(cls, text: str) -> DebiasedTraining | None:
        """What the text names; None for "plain", training that takes the images as they are."""
        how, given = split_options(text)
        if how == "plain":
            if given:
                raise InputError(f"Plain training is the protocol's and takes no options, and {text!r} gives some.")
            return None
        if how not in _WAYS:
            raise InputError(f"There is no training {how!r}. {nearest(how, ('plain', *_WAYS))}")
        _refuse_unknown(how, given)
        fields = _WAYS[how][0].__dataclass_fields__
        return cls(how, {n: _typed(how, n, value, fields[n].default) for n, value in given.items()})

    def with_defaults(self, **options: Any) -> DebiasedTraining:
        """The same with these options where it has none of its own."""
        return replace(self, options={**options, **self.options})

    def __call__(
        self,
        factory: NetworkFactory,
        x: Images,
        y: Tensor,
        *,
        rng: Rng,
        device: torch.device | str = "cpu",
        on_step: Callable[[int], None] | None = None,
    ) -> Network:
        """`train_debiased` in this way."""
        return train_debiased(factory, x, y, self.how, rng=rng, device=device, on_step=on_step, **self.options)

    def describe(self) -> dict[str, Any]:
        """JSON-able: the way, and the options that were given."""
        return {"how": self.how, **self.options}

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.how}:{given}" if given else self.how

    @property
    def lr(self) -> float:
        """Learning rate of the network."""
        return self._settings().lr

    def batch(self, images: int) -> int:
        """Images per step, of so many."""
        return min(self._settings().batch, images)

    def steps(self, images: int) -> int:
        """Steps on so many images."""
        return self._settings().steps or steps_for(images, self.batch(images))

    def settled(self) -> dict[str, Any]:
        """Every option with its value, defaults included; JSON-able."""
        return asdict(self._settings())

    def _settings(self) -> Dfa | SelecMix:
        return _WAYS[self.how][0](**self.options)


def _way(how: str) -> tuple[type[Dfa] | type[SelecMix], Any]:
    if how not in _WAYS:
        raise InputError(f"There is no de-biased training {how!r}. {nearest(how, _WAYS)}")
    return _WAYS[how]


def _refuse_unknown(how: str, options: Any) -> None:
    known = _WAYS[how][0].__dataclass_fields__
    for name in options:
        if name not in known:
            raise InputError(f"{how} has no option {name!r}. {nearest(name, known)}")


def _typed(how: str, name: str, text: str, default: Any) -> Any:
    """An option in the type of its default; None stands for a whole number that follows from the set."""
    return typed_option(text, 0 if default is None else default, f"{how}:{name}")
