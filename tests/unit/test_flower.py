"""The rounds over Flower's messages are those of the local runner. `make flower` runs these where flwr is installed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import ClassVar

import pytest
import torch

from datastill import load_real
from datastill.apps.federated.averaging import FedAvg
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.fedmk import FedMK
from datastill.apps.federated.result import Federation
from datastill.apps.federated.runner import deal, federated
from datastill.apps.federated.strategy import Client
from datastill.core.errors import InputError, MissingExtra
from datastill.data.real import RealSet

HERE = find_spec("flwr") is not None
with_flower = pytest.mark.skipif(not HERE, reason="the extra `flower` is not installed: make flower")
NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    real = load_real("digits")
    assert real.test is not None
    return replace(real.subset(torch.arange(300)), test=real.test.subset(torch.arange(50)))


@dataclass(frozen=True, kw_only=True)
class Fails(FedDM):
    """Client 1 fails."""

    name: ClassVar[str] = "fails"

    def send(self, client: Client, given):
        if client.id == 1:
            raise RuntimeError("out of memory")
        return super().send(client, given)


def both(strategy, digits: RealSet, **options) -> tuple[Federation, Federation]:
    from datastill.apps.federated.flower import federated_with_flower

    work = deal(strategy, digits, 3, "dirichlet:0.5", network=NETWORK, seed=4, device="cpu")
    local = federated(strategy, digits, clients=3, network=NETWORK, seed=4, device="cpu", rounds=2, **options)
    return federated_with_flower(work, rounds=2, **options), local


@with_flower
@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(),
        FedDM(ipc=1, steps=2, real_batch=4, server_passes=2),
        FedMK(ipc=1, steps=2, real_batch=4, server_passes=2, generator_steps=2),
        Fails(ipc=1, steps=2, real_batch=4, server_passes=2),
    ],
    ids=lambda s: s.name,
)
def test_accuracy_bytes_and_clients_are_those_of_the_local_runner(strategy, digits: RealSet) -> None:
    ours, local = both(strategy, digits, active=1.0 if strategy.name == "fails" else 0.7)
    for one, two in zip(ours.rounds, local.rounds, strict=True):
        assert replace(one, seconds=0.0, dropped={}) == replace(two, seconds=0.0, dropped={})
        assert set(one.dropped) == set(two.dropped)
    if strategy.name == "fails":
        assert "out of memory" in next(iter(ours.rounds[0].dropped.values()))


@with_flower
def test_bad_input_is_a_sentence(digits: RealSet) -> None:
    from datastill.apps.federated.flower import federated_with_flower

    work = deal(FedAvg(), digits, 2, "iid", network=NETWORK, device="cpu")
    with pytest.raises(InputError, match="no backend 'smoke'"):
        federated_with_flower(work, backend="smoke")
    with pytest.raises(InputError, match="timeout"):
        federated_with_flower(work, timeout=0)


@with_flower
def test_a_client_without_a_node_is_named(digits: RealSet) -> None:
    from datastill.apps.federated.flower import InMemoryGrid, Rounds, client_app

    work = deal(FedAvg(), digits, 3, "iid", network=NETWORK, device="cpu")
    with pytest.raises(InputError, match="no node for client 2"):
        Rounds(work).know(InMemoryGrid(client_app(work), 2))


@pytest.mark.skipif(HERE, reason="flwr is installed")
def test_without_flower_a_sentence_says_what_to_install() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'datastill\[flower\]'"):
        import datastill.apps.federated.flower  # noqa: F401
