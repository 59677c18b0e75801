"""A client's round as a unit of work: it reads the round's network, and writes what it sends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datastill.apps.federated.strategy import Client, Payload, State, Strategy
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.experiments.sources import RealSets
from datastill.models.factory import NetworkFactory
from datastill.store.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Work:
    """What all clients share; it can be pickled.

    Attributes:
        spec: the network as the caller gives it.
        held: positions of every client's images in the training set.
    """

    reals: RealSets
    strategy: Strategy
    spec: object
    held: tuple[Tensor, ...]
    seed: int
    device: str

    @property
    def real(self) -> RealSet:
        """The training set of all clients together."""
        return self.reals.get(self.reals.labels()[0])

    @property
    def factory(self) -> NetworkFactory:
        """What builds the network."""
        return self.reals.network(self.reals.labels()[0], self.spec)

    def client(self, k: int, r: int) -> Client:
        """A client in a round."""
        real, rng = self.real, Rng(self.seed)
        public = len(real) / (real.classes * len(self.held))
        runtime = Runtime.of(self.device)
        seed = rng.derive("client", r, k)
        return Client(k, real.subset(self.held[k]), self.factory, public, seed, rng.child("own", k), runtime)

    def given(self, state: State, k: int, r: int) -> Payload:
        """What the server sends a client in a round."""
        return self.strategy.given(state, k, Rng(self.seed).child("given", r, k))


def play(work: Work, r: int, k: int, before: Path, target: Path) -> None:
    """One client in one round.

    Args:
        work: of all.
        r: the round.
        k: the client.
        before: the network of the round.
        target: where what it sends is written.
    """
    state = read_state(before)
    with torch.enable_grad():
        payload = work.strategy.send(work.client(k, r), work.given(state, k, r))
    write_tensors(target, payload)


def read_state(path: Path) -> State:
    """The network of a round."""
    return read_tensors(path)[0]


def read_payload(path: Path) -> Payload:
    """What a client sent."""
    return read_tensors(path)[0]
