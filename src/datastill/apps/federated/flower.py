"""The same rounds over Flower (`flwr`): its message interface carries what the local runner passes on.

A client app answers "query" with its number and "train" with its payload; the server app keeps the state. Draws follow
from the seed, the round and the client alone, so payloads are those of the local runner.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datastill.apps.federated.clients import Work
from datastill.apps.federated.result import Federation, Round
from datastill.apps.federated.rounds import asked_of, flaw_of, gathered, score_of, start_of
from datastill.apps.federated.runner import result_of
from datastill.apps.federated.strategy import Payload, State, bytes_of
from datastill.core.errors import InputError, MissingExtra
from datastill.core.ranges import Count, Seconds, Share, checked

try:
    from flwr.app import (
        DEFAULT_TTL,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        Metadata,
        MetricRecord,
        RecordDict,
    )  # fmt: skip
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Strategy as FlowerStrategy
except ImportError as error:
    raise MissingExtra(
        "Flower needs the package flwr, which is not installed: pip install 'datastill[flower]', in an environment of "
        "its own, since it pins about thirty packages; `federated` runs the same rounds without it."
    ) from error

#: Of a node's settings: its number, as Flower's simulation gives it.
PARTITION = "partition-id"
_FAILED = 1


def client_app(work: Work) -> ClientApp:
    """What runs at a client: its images are those of its partition."""
    app = ClientApp()

    @app.query()
    def who(message: Message, context: Context) -> Message:
        number = MetricRecord({"client": int(context.node_config[PARTITION])})
        return Message(content=RecordDict({"who": number}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = work.client(int(context.node_config[PARTITION]), int(message.content["round"]["round"]))
        with torch.enable_grad():
            payload = work.strategy.send(client, _tensors(message.content["given"]))
        return Message(content=RecordDict({"payload": _arrays(payload)}), reply_to=message)

    return app


@dataclass
class Rounds(FlowerStrategy):
    """The server's side of every round, for `ServerApp`.

    Attributes:
        work: of all.
        active: share of the clients that take part in a round.
        state: what the server keeps.
        found: the rounds so far.
    """

    work: Work
    active: float = 1.0
    state: State = field(default_factory=dict)
    found: list[Round] = field(default_factory=list)
    nodes: dict[int, int] = field(default_factory=dict)  #: node of each client

    def know(self, grid: Grid) -> None:
        """Ask every node which client it is.

        Raises:
            InputError: some client is at no node.
        """
        asked = [grid.create_message(RecordDict(), "query", node, "") for node in grid.get_node_ids()]
        for reply in grid.send_and_receive(asked):
            if not reply.has_error():
                self.nodes[int(reply.content["who"]["client"])] = reply.metadata.src_node_id
        if missing := sorted(set(range(len(self.work.held))) - set(self.nodes)):
            raise InputError(f"There is no node for client {missing[0]}; start as many nodes as there are clients.")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The network for every client that is asked."""
        r = server_round - 1
        asked, self._dropped = asked_of(self.work, self.active, r)
        given = {k: self.work.given(self.state, k, r) for k in asked}
        self._down = sum(bytes_of(one) for one in given.values())
        self._waited = set(asked)
        return [
            grid.create_message(
                RecordDict({"given": _arrays(one), "round": ConfigRecord({"round": r})}),
                "train",
                self.nodes[k],
                str(server_round),
            )
            for k, one in given.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The server's step; who failed, did not answer, or sent what cannot be used is left out and told."""
        r, dropped, payloads = server_round - 1, self._dropped, {}
        clients = {node: k for k, node in self.nodes.items()}
        for reply in replies:
            k = clients[reply.metadata.src_node_id]
            self._waited.discard(k)
            payload, why = ({}, reply.error.reason or "it failed") if reply.has_error() else _payload(reply)
            why = why or flaw_of(self.work, payload, self.state)
            if why:
                dropped[k] = why
            else:
                payloads[k] = payload
        dropped |= dict.fromkeys(self._waited, "it did not answer in time")
        payloads = dict(sorted(payloads.items()))
        self.state = gathered(self.work, r, self.state, payloads, dropped)
        accuracy = score_of(self.work, self.state)
        up = sum(bytes_of(payload) for payload in payloads.values())
        told = {str(k): why for k, why in sorted(dropped.items())}
        self.found.append(Round(r, accuracy, up, self._down, sorted(payloads), told, 0.0))
        return _arrays(self.state), MetricRecord({"accuracy": accuracy})

    def configure_evaluate(self, *_: Any) -> Iterable[Message]:
        """Clients score nothing: the server has a test split."""
        return []

    def aggregate_evaluate(self, *_: Any) -> MetricRecord | None:
        """See `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Nothing beside what Flower logs."""


def server_app(rounds: Rounds, count: int, timeout: float = 3600.0) -> ServerApp:
    """What runs at the server.

    Args:
        rounds: keeps the state, and has the rounds afterwards.
        count: of them.
        timeout: seconds after which a client's answer is late.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        rounds.state = start_of(rounds.work)
        rounds.know(grid)
        rounds.start(grid, _arrays(rounds.state), num_rounds=count, timeout=timeout)

    return app


class InMemoryGrid(Grid):
    """A grid that calls the client app itself, in order: no server, no processes, always the same.

    Args:
        app: what runs at clients.
        clients: how many nodes.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        self.app, self.clients, self._sent, self._replies = app, clients, 0, dict[str, Message]()

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        """There is one run."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node, with the name that a network would give it."""
        self._sent += 1
        names = {"message_id": f"message-{self._sent}", "reply_to_message_id": "", "group_id": group_id}
        about = Metadata(
            run_id=0, src_node_id=0, dst_node_id=dst_node_id, created_at=time.time(), ttl=ttl or DEFAULT_TTL,
            message_type=message_type, **names,
        )  # fmt: skip
        return Message(content=content, metadata=about)

    def get_node_ids(self) -> Iterable[int]:
        """1 to the number of clients; node k + 1 is client k."""
        return list(range(1, self.clients + 1))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run them; the names of the replies."""
        names = []
        for message in messages:
            names.append(str(len(self._replies)))
            self._replies[names[-1]] = self._answer(message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies."""
        return [self._replies[name] for name in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run them, one after the other."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(0, node, {PARTITION: node - 1}, RecordDict(), {})
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = Message(Error(_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)
        return reply


@checked
def federated_with_flower(
    work: Work, *, rounds: Count = 5, active: Share = 1.0, timeout: Seconds = 3600.0, backend: str = "memory"
) -> Federation:
    """The rounds of `federated`, over Flower's messages; accuracy, bytes and payloads are the same.

    Args:
        work: who holds what, as `runner.deal` makes it.
        rounds: of clients and server.
        active: share of the clients that take part in a round.
        timeout: seconds after which a client's answer is late.
        backend: "memory" calls clients one after the other; "ray" is Flower's own simulation (`flwr[simulation]`).

    Raises:
        InputError: an unknown backend.
        DatastillError: no client of a round sent anything that can be used.
    """
    server = Rounds(work, active)
    apps = server_app(server, rounds, timeout), client_app(work)
    if backend == "memory":
        apps[0](InMemoryGrid(apps[1], len(work.held)), Context(0, 0, {}, RecordDict(), {}))
    elif backend == "ray":
        from flwr.simulation import run_simulation

        run_simulation(*apps, num_supernodes=len(work.held))
    else:
        raise InputError(f"There is no backend {backend!r} of Flower; take memory or ray.")
    return result_of(work, {"runner": f"flower:{backend}", "active": active, "seed": work.seed}, server.found)


def _arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord(torch_state_dict=dict(tensors))


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    return dict(record.to_torch_state_dict())


def _payload(reply: Message) -> tuple[Payload, str]:
    if "payload" not in reply.content:
        return {}, "it sent no payload"
    return _tensors(reply.content["payload"]), ""
