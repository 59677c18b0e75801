"""The parts of a round that do not depend on how messages travel."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from datastill.apps.federated.clients import Work
from datastill.apps.federated.strategy import Payload, Server, State, network_of, state_of
from datastill.core.errors import DatastillError
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.evaluation.metrics import Accuracy, TestSplit


def start_of(work: Work) -> dict[str, torch.Tensor]:
    """The network that the first round begins with."""
    return state_of(work.factory(Rng(work.seed).derive("network")))


def asked_of(work: Work, active: float, r: int) -> tuple[list[int], dict[int, str]]:
    """Clients of a round, and those of them that cannot take part.

    Args:
        work: of all.
        active: share of the clients that take part.
        r: the round.
    """
    count = len(work.held)
    order = torch.randperm(count, generator=Rng(work.seed).generator("active", r)).tolist()
    chosen = sorted(order[: max(1, round(active * count))])
    empty = {k: "it has no images" for k in chosen if not len(work.held[k])}
    return [k for k in chosen if k not in empty], empty


def flaw_of(work: Work, payload: Payload, state: State) -> str:
    """What is wrong with what a client sent, or ""."""
    return work.strategy.flaw(payload, state, work.real.shape, work.real.classes)


def gathered(
    work: Work, r: int, state: State, payloads: Mapping[int, Payload], dropped: Mapping[int, str]
) -> dict[str, torch.Tensor]:
    """What the server keeps after a round.

    Args:
        work: of all.
        r: the round.
        state: what it kept before.
        payloads: that can be used, by client.
        dropped: why others cannot.

    Raises:
        DatastillError: none can be used.
    """
    if not payloads:
        reasons = "; ".join(f"client {k}: {why.rstrip('.')}" for k, why in sorted(dropped.items())[:3])
        raise DatastillError(f"No client of round {r + 1} sent anything that can be used ({reasons}).")
    runtime = Runtime.of(work.device)
    rng = Rng(work.seed).child("server", r)
    server = Server(work.factory, work.real.shape, work.real.space, work.real.name, rng, runtime)
    with runtime.computing(work.factory.macs):
        return work.strategy.gather(server, state, payloads)


def score_of(work: Work, state: State) -> float:
    """Accuracy of the network on the test split, a fraction."""
    runtime = Runtime.of(work.device)
    with runtime.computing(work.factory.macs):
        network = network_of(work.factory, state, runtime.device)
        return Accuracy().score(network, TestSplit.of(work.real), runtime).accuracy
