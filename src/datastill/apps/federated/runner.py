"""`federated`: rounds of clients and server on one machine, in order, each a file that a later call goes on from."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from datastill.apps.federated.clients import Work, play, read_payload, read_state
from datastill.apps.federated.page import write_page
from datastill.apps.federated.partitions import partition as partitioned
from datastill.apps.federated.result import Federation, Round, RoundRecord
from datastill.apps.federated.rounds import asked_of, flaw_of, gathered, score_of, start_of
from datastill.apps.federated.strategy import Payload, State, Strategy, bytes_of
from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Amount, Count, Few, Processes, SecondsOrNone, Seed, Share, checked
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data import RealSet, load_real
from datastill.data.places import places_of
from datastill.experiments.sources import RealSets
from datastill.launch import Done, Unit, UnitsFailed, Workers, check_workers, cluster, run_units
from datastill.report.words import plural
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
    deadline: SecondsOrNone = 0.0,
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
        strategy: such as `FedDM(ipc=10)`, or its name: "feddm", "fedmk", "fedavg", "fedprox".
        real: the training set that is dealt out, anything that `load_real` takes; its test split scores.
        clients: how many.
        partition: who holds what: "iid", "dirichlet:ALPHA" or "classes:K".
        rounds: of clients and server.
        min_size: images that every client must have.
        active: share of the clients that take part in a round, drawn anew each round.
        deadline: seconds after which a client's answer is late, and left out of its round; 0 waits for all.
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
    check_workers(workers)
    data = as_real(real)
    if out is not None:
        refuse_out(out, places_of(data), FEDERATED)
    work = deal(strategy, data, clients, partition, min_size=min_size, network=network, seed=seed, device=device)
    if Workers.of(workers).several:
        work.reals.check_references()
    config = {
        "data": data.describe(), "clients": clients, "partition": partition, "min_size": min_size, "active": active,
        "deadline": deadline, "network": work.factory.describe(), "seed": seed,
        "device": Runtime.of(device).device.type,
    }  # fmt: skip
    with _folder(out) as folder, cluster(workers):
        run = Run(work, folder, active, deadline, workers, progress, rounds)
        _agree(folder, {"strategy": work.strategy.name, "options": options_of(work.strategy), **config})
        found = [run.round(r) for r in range(rounds)]
        made = result_of(work, config, found)
        write_json(folder / RESULT, made.to_dict())
        if out is not None:
            write_page(folder, made, work)
    return made


def as_real(real: Any) -> RealSet:
    """Anything that `load_real` takes, with a test split."""
    found = real if isinstance(real, RealSet) else load_real(real)
    _ = found.known_test
    return found


def deal(
    strategy: Strategy | str,
    data: RealSet,
    clients: int,
    partition: str,
    *,
    min_size: int = 1,
    network: Any = None,
    seed: int = 0,
    device: str = "auto",
) -> Work:
    """What all clients share, their images dealt out; arguments as of `federated`.

    Raises:
        InputError: something given cannot be used.
    """
    from datastill.apps.federated.strategies import get_strategy

    asked = get_strategy(strategy)() if isinstance(strategy, str) else strategy
    parts = partitioned(data.labels, clients, partition, seed=Rng(seed).derive("partition"), min_size=min_size)
    work = Work(RealSets({data.name or "data": data}), asked, network, tuple(parts), seed, device)
    asked.check(work.factory, data)
    return work


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


def result_of(work: Work, config: Mapping[str, Any], found: list[Round]) -> Federation:
    """The table, with what each round had cost in privacy by then: of the client that took part most often."""
    strategy, took = work.strategy, dict.fromkeys(range(len(work.held)), 0)
    privacy = []
    for one in found:
        for k in (*one.clients, *map(int, one.dropped)):  # what was dropped was sent
            took[k] += 1
        cost = strategy.spent(max(took.values()))
        privacy += [cost.to_dict()] if cost is not None else []
    dropped = sum(len(one.dropped) for one in found)
    notes = [f"Clients were left out of a round {plural(dropped, 'time')}."] if dropped else []
    sizes = [len(index) for index in work.held]
    if privacy and (delta := privacy[-1]["delta"]) * max(sizes) >= 1:
        notes.append(
            f"delta {delta:g} is not below one over the images of the largest client ({max(sizes):,}): to tell one of "
            "them in full would be allowed, so this bounds little; take a smaller delta."
        )
    return Federation(strategy.name, options_of(strategy), config, found, sizes, privacy, notes)


@dataclass(frozen=True)
class Run:
    """A federated run at work in its folder."""

    work: Work
    folder: Path
    active: float
    deadline: float
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
            write_tensors(self.network(r), start_of(self.work))
        state = read_state(self.network(r))
        asked, dropped = asked_of(self.work, self.active, r)
        payloads = self._payloads(r, asked, state, dropped)
        made = gathered(self.work, r, state, payloads, dropped)
        write_tensors(self.network(r + 1), made)
        done = Round(
            round=r,
            accuracy=score_of(self.work, made),
            up_bytes=sum(bytes_of(payload) for payload in payloads.values()),
            down_bytes=sum(bytes_of(self.work.given(state, k, r)) for k in asked),
            clients=sorted(payloads),
            dropped={str(k): why for k, why in sorted(dropped.items())},
            seconds=round(time.perf_counter() - started, 3),
        )
        write_sealed(record, vars(done))
        self.progress("rounds", r + 1, self.rounds, {"accuracy": done.accuracy})
        return done

    def _payloads(self, r: int, asked: list[int], state: State, dropped: dict[int, str]) -> dict[int, Payload]:
        """What can be used of what was sent; why the rest cannot is added to `dropped`."""
        units = [
            Unit(
                f"round {r + 1}, client {k}", (self.work, r, k, self.network(r)),
                self.place(r) / f"client-{k:04d}.safetensors", "client",
            )
            for k in asked
        ]  # fmt: skip
        for unit in units:
            _remove_damaged(unit.target)
        try:
            run_units(play, units, workers=self.workers, on_done=self._teller(units, asked, dropped))
        except UnitsFailed as failed:
            if any(one.lost for one in failed.failures):  # nothing that a client did: the round is not over
                raise
        found = {}
        for k, unit in zip(asked, units, strict=True):
            if k in dropped:
                continue
            payload = read_payload(unit.target)
            if why := flaw_of(self.work, payload, state):
                dropped[k] = why
            else:
                found[k] = payload
        return found

    def _teller(self, units: list[Unit], asked: list[int], dropped: dict[int, str]) -> Callable[[Done], None]:
        numbers = dict(zip((unit.name for unit in units), asked, strict=True))

        def told(done: Done) -> None:
            if done.failure is not None:
                dropped[numbers[done.unit.name]] = done.failure.sentence
            elif 0 < self.deadline < done.seconds:
                dropped[numbers[done.unit.name]] = f"it answered after {done.seconds:.1f} s of {self.deadline:g}"
                done.unit.target.unlink()  # a run that goes on must not take it for one in time
            self.progress(f"clients of {done.unit.name.split(',')[0]}", done.done, done.total, {})

        return told


def _remove_damaged(path: Path) -> None:
    """Remove a file of an earlier call that is not what was written: no fault of its client, who is asked again.

    Raises:
        InputError: what is there is no file of ours, and stays.
    """
    if not path.is_file():
        return
    try:
        read_payload(path)
    except InputError:
        if path.is_symlink():
            raise
        path.unlink()
