"""What builds fresh networks: a name, the shapes, and a seed in; a network out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.core.usercode import blaming
from datastill.models.anatomy import Size, count_macs, probe_images, shapes_digest
from datastill.models.base import Network, couples_samples, probe_coupling
from datastill.models.layers import StackedNetwork

#: Parameters of a network that a file may name; the caller may name a larger one.
MOST_RECORDED = 200_000_000
#: The largest depth, and the largest other number, in the options of a network that a file may name.
_DEEPEST, _LARGEST = 1_000, 10**9

_LIMIT: ContextVar[tuple[int, str] | None] = ContextVar("limit", default=None)


@contextmanager
def at_most(parameters: int, what: str) -> Iterator[None]:
    """Inside, a named network is resolved only where it has at most so many parameters.

    Args:
        parameters: their number.
        what: who names the network, for the error.
    """
    before = _LIMIT.set((parameters, what))
    try:
        yield
    finally:
        _LIMIT.reset(before)


def refuse_outsized(build: Callable[[], Any], name: str, options: Mapping[str, Any]) -> None:
    """Count a network's parameters where `at_most` bounds them, without memory for any.

    Raises:
        InputError: there are more.
    """
    if (limit := _LIMIT.get()) is None:
        return
    most, what = limit
    for option, value in options.items():
        bound = _DEEPEST if option == "depth" else _LARGEST
        if isinstance(value, int) and abs(value) > bound:
            raise InputError(f"{what} names a network {name} of {option} {value:,}; at most {bound:,} is built so.")
    try:
        with isolated(0), torch.device("meta"):
            count = sum(p.numel() for p in build().parameters())
    except InputError:
        raise
    except (OverflowError, MemoryError) as error:
        raise InputError(f"{what} names a network {name} that cannot be built ({error}).") from error
    except Exception:  # some networks of libraries look at values, which there are none of
        return
    if count > most:
        raise InputError(
            f"{what} names a network {name} of {count:,} parameters, and at most {most:,} are built on its word; name "
            "the network yourself if you mean it."
        )


@dataclass(frozen=True)
class _Facts:
    """What one throw-away network tells of its kind."""

    parameters: int
    embed_size: int
    shapes: str
    macs: int
    couples: bool


@dataclass(frozen=True, eq=False)
class NetworkFactory:
    """Builds networks of one architecture, one per seed.

    `factory(seed)` gives the same weights for the same seed in every process and leaves the global generator
    as it was. A factory can be pickled where its `build` can: for every name and for importable classes.

    Attributes:
        name: of the architecture: "convnet", "torchvision/resnet18", or a user's qualified name.
        channels, classes, size: images (channels, height, width) and number of logits.
        build: makes a network with weights from the global generator; called only inside `isolated`.
        options: every option of the architecture, defaults included; JSON-able.
        defaults: the options' default values, which `str(factory)` leaves out.
        embed: qualified name of the user's function for features, or "".
    """

    name: str
    channels: int
    classes: int
    size: Size
    build: Callable[[], Network] = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict, repr=False)
    embed: str = ""

    def __call__(self, seed: int) -> Network:
        """A fresh network on the CPU, in training mode."""
        with isolated(seed):
            network = self.build()
        network.train()
        return network

    def __str__(self) -> str:
        """The name with the options that are not default, as `resolve_network` reads it."""
        given = [f"{k}={v}" for k, v in self.options.items() if self.defaults.get(k, None) != v]
        return self.name + (":" + ",".join(given) if given else "")

    def describe(self) -> dict[str, Any]:
        """What identifies the architecture, JSON-able, for manifests and hashes.

        `shapes` is a hash of the parameters' names and shapes, which stands for the code.
        """
        record: dict[str, Any] = {
            "name": self.name,
            "options": dict(self.options),
            "channels": self.channels,
            "classes": self.classes,
            "size": list(self.size),
            "shapes": self._facts.shapes,
        }
        if self.embed:
            record["embed"] = self.embed
        return record

    @property
    def couples_samples(self) -> bool:
        """Whether, in training mode, one image's logits depend on the other images of the batch."""
        return self._facts.couples

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass of one image, over convolutions and linear layers."""
        return self._facts.macs

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return self._facts.parameters

    @property
    def embed_size(self) -> int:
        """Number of features d that `embed` gives per image."""
        return self._facts.embed_size

    @cached_property
    def _facts(self) -> _Facts:
        network = self(0)
        couples = couples_samples(network)
        if not couples and not isinstance(network, StackedNetwork):
            with isolated(0), blaming(lambda: "in a first look at the network"):
                couples = probe_coupling(network, probe_images(3, self.channels, self.size))
        return _Facts(
            parameters=sum(p.numel() for p in network.parameters()),
            embed_size=network.embed_size,
            shapes=shapes_digest(network),
            macs=count_macs(network, self.channels, self.size),
            couples=couples,
        )
