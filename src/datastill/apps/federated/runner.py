"""`federated`: rounds of clients and server on one machine, in order, each a file that a later call goes on from."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch

from datastill.apps.federated.clients import Work, play, read_payload, read_state
from datastill.apps.federated.page import write_page
from datastill.apps.federated.partitions import partition as partitioned
from datastill.apps.federated.result import Federation, Round, RoundRecord
from datastill.apps.federated.strategy import Payload, Server, State, Strategy, bytes_of, network_of, state_of
from datastill.core.errors import DatastillError, InputError
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Amount, Count, Few, Processes, Seed, Share, checked
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.places import places_of
from datastill.evaluation.inputs import with_test
from datastill.evaluation.metrics import Accuracy, TestSplit
from datastill.experiments.sources import RealSets
from datastill.launch import Done, Unit, UnitsFailed, Workers, check_workers, cluster, run_units
from datastill.store.checkpoint import refuse_other
from datastill.store.files import read_sealed, write_json, write_sealed, write_tensors
from datastill.store.folders import held
from datastill.store.outputs import Kind, refuse_out

#: What lies in the folder of a federated run.
FEDERATED = Kind("federated run", "federation.json", ("strategy", "partition"), ("rounds", "start.safetensors"))
CONFIG, RESULT = "federation.json", "federated.json"


@checked
def federated(
    strategy: Strategy | str,
    real: Any,
    *,
    clients: Few = 10,
    partition: str = "dirichlet:0.5",
    rounds: Count = 5,
    min_size: Amount = 1,
    active: Share = 1.0,
    network: Any = None,
    seed: Seed = 0,
    out: str | Path | None = None,
    workers: Processes = 1,
    device: str = "auto",
    progress: Progress = silent,
) -> Federation:
    """Train one network on data that stay with several clients, and count what travels.

    Clients run one after the other, or over processes, with the same payloads: a client's draws follow from the seed,
    the round and its number. One that fails, or sends what cannot be used, is left out of the round and told.

    Args:
        strategy: such as `FedDM(ipc=10)`, or its name: "feddm", "fedavg", "fedprox".
        real: the training set that is dealt out, anything that `load_real` takes; its test split scores.
        clients: how many.
        partition: who holds what: "iid", "dirichlet:ALPHA" or "classes:K".
        rounds: of clients and server.
        min_size: images that every client must have.
        active: share of the clients that take part in a round, drawn anew each round.
        network: an architecture; None takes the ConvNet that fits.
        seed: of every draw.
        out: a folder that keeps every round; the same call goes on in it. None keeps nothing.
        workers: processes for clients; "ray" or "ray:4": those of a Ray cluster.
        device: "auto", "cpu", "cuda", "mps".
        progress: told after every client and round.

    Raises:
        InputError: something given cannot be used.
        DatastillError: no client of a round sent anything that can be used.
    """
    from datastill.apps.federated.strategies import get_strategy
    from datastill.data import RealSet, load_real

    check_workers(workers)
    asked = get_strategy(strategy)() if isinstance(strategy, str) else strategy
    data = with_test(real if isinstance(real, RealSet) else load_real(real))
    places = places_of(data)
    if out is not None:
        refuse_out(out, places, FEDERATED)
    reals = RealSets({data.name or "data": data})
    if Workers.of(workers).several:
        reals.check_references()
    parts = partitioned(data.labels, clients, partition, seed=Rng(seed).derive("partition"), min_size=min_size)
    work = Work(reals, asked, network, tuple(parts), seed, device)
    asked.check(work.factory, data)
    config = {
        "data": data.describe(), "clients": clients, "partition": partition, "min_size": min_size, "active": active,
        "network": work.factory.describe(), "seed": seed, "device": Runtime.of(device).device.type,
    }  # fmt: skip
    with _folder(out) as folder, cluster(workers):
        run = Run(work, folder, active, workers, progress, rounds)
        _agree(folder, {"strategy": asked.name, "options": options_of(asked), **config})
        found = [run.round(r) for r in range(rounds)]
        made = _result(asked, config, found, work, rounds)
        write_json(folder / RESULT, made.to_dict())
        if out is not None:
            write_page(folder, made, work)
    return made


def options_of(strategy: Strategy) -> dict[str, Any]:
    """A strategy's hyper-parameters."""
    return asdict(strategy) if is_dataclass(strategy) and not isinstance(strategy, type) else {}


@contextlib.contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    with held(Path(out)):
        yield Path(out)


def _agree(folder: Path, config: Mapping[str, Any]) -> None:
    """Keep what a run depends on, or compare it with what is kept."""
    path = folder / CONFIG
    if path.is_file():
        refuse_other(config, read_sealed(path), folder)
    else:
        write_sealed(path, config)


def _result(strategy: Strategy, config: Mapping[str, Any], found: list[Round], work: Work, rounds: int) -> Federation:
    """The table, with what each round had cost in privacy by then: of the client that took part most often."""
    took = dict.fromkeys(range(len(work.held)), 0)
    privacy = []
    for one in found:
        for k in (*one.clients, *map(int, one.dropped)):  # what was dropped was sent
            took[k] += 1
        cost = strategy.spent(max(took.values()))
        privacy += [cost.to_dict()] if cost is not None else []
    dropped = sum(len(one.dropped) for one in found)
    notes = [f"{dropped} times a client was left out of a round."] if dropped else []
    sizes = [len(index) for index in work.held]
    return Federation(strategy.name, options_of(strategy), config, found, sizes, privacy, notes)


@dataclass(frozen=True)
class Run:
    """A federated run at work in its folder."""

    work: Work
    folder: Path
    active: float
    workers: int | str
    progress: Progress
    rounds: int

    def place(self, r: int) -> Path:
        """The folder of a round."""
        return self.folder / "rounds" / f"{r:04d}"

    def network(self, r: int) -> Path:
        """The network that round r begins with."""
        return self.place(r - 1) / "network.safetensors" if r else self.folder / "start.safetensors"

    def round(self, r: int) -> Round:
        """One round, from its record where it is done."""
        record = self.place(r) / "round.json"
        if record.is_file() and self.network(r + 1).is_file():
            told = read_sealed(record, RoundRecord)
            return Round(**told)
        started = time.perf_counter()
        if not self.network(r).is_file():
            fresh = self.work.factory(Rng(self.work.seed).derive("network"))
            write_tensors(self.network(r), state_of(fresh))
        state = read_state(self.network(r))
        asked, dropped = self._asked(r)
        payloads = self._payloads(r, asked, state, dropped)
        made = self._gathered(r, state, payloads, dropped)
        write_tensors(self.network(r + 1), made)
        done = Round(
            round=r,
            accuracy=self._score(made),
            up_bytes=sum(bytes_of(payload) for payload in payloads.values()),
            down_bytes=bytes_of(state) * len(asked),
            clients=sorted(payloads),
            dropped={str(k): why for k, why in sorted(dropped.items())},
            seconds=round(time.perf_counter() - started, 3),
        )
        write_sealed(record, vars(done))
        self.progress("rounds", r + 1, self.rounds, {"accuracy": done.accuracy})
        return done

    def _asked(self, r: int) -> tuple[list[int], dict[int, str]]:
        """Clients of a round, and those of them that cannot take part."""
        count = len(self.work.held)
        order = torch.randperm(count, generator=Rng(self.work.seed).generator("active", r)).tolist()
        chosen = sorted(order[: max(1, round(self.active * count))])
        empty = {k: "it has no images" for k in chosen if not len(self.work.held[k])}
        return [k for k in chosen if k not in empty], empty

    def _payloads(self, r: int, asked: list[int], state: State, dropped: dict[int, str]) -> dict[int, Payload]:
        """What can be used of what was sent; why the rest cannot is added to `dropped`."""
        units = [
            Unit(
                f"round {r + 1}, client {k}", (self.work, r, k, self.network(r)),
                self.place(r) / f"client-{k:04d}.safetensors", "client",
            )
            for k in asked
        ]  # fmt: skip
        try:
            run_units(play, units, workers=self.workers, on_done=self._teller(units, asked, dropped))
        except UnitsFailed as failed:
            if any(one.lost for one in failed.failures):  # nothing that a client did: the round is not over
                raise
        found = {}
        shape, classes = self.work.real.shape, self.work.real.classes
        for k, unit in zip(asked, units, strict=True):
            if k in dropped:
                continue
            payload, why = _read(unit.target)
            why = why or self.work.strategy.flaw(payload, state, shape, classes)
            if why:
                dropped[k] = why
            else:
                found[k] = payload
        return found

    def _teller(self, units: list[Unit], asked: list[int], dropped: dict[int, str]) -> Callable[[Done], None]:
        numbers = dict(zip((unit.name for unit in units), asked, strict=True))

        def told(done: Done) -> None:
            if done.failure is not None:
                dropped[numbers[done.unit.name]] = done.failure.sentence
            self.progress(f"clients of {done.unit.name.split(',')[0]}", done.done, done.total, {})

        return told

    def _gathered(self, r: int, state: State, payloads: Mapping[int, Payload], dropped: Mapping[int, str]) -> State:
        if not payloads:
            reasons = "; ".join(f"client {k}: {why.rstrip('.')}" for k, why in sorted(dropped.items())[:3])
            raise DatastillError(f"No client of round {r + 1} sent anything that can be used ({reasons}).")
        work = self.work
        runtime = Runtime.of(work.device)
        rng = Rng(work.seed).child("server", r)
        server = Server(work.factory, work.real.shape, work.real.name, rng, runtime)
        with runtime.computing(work.factory.macs):
            return work.strategy.gather(server, state, payloads)

    def _score(self, state: State) -> float:
        runtime = Runtime.of(self.work.device)
        with runtime.computing(self.work.factory.macs):
            network = network_of(self.work.factory, state, runtime.device)
            return Accuracy().score(network, TestSplit.of(self.work.real), runtime).accuracy


def _read(path: Path) -> tuple[Payload, str]:
    try:
        return read_payload(path), ""
    except InputError as error:
        return {}, str(error)
