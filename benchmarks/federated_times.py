"""What a federated round costs beside its parts, and a private step beside a plain one, in CPU seconds.

    python benchmarks/federated_times.py results/federated-times.json

One thread, FashionMNIST. A round of ten clients is taken apart into what clients do, the server's training, the score
on the test split, and what is left: reading and writing, checks, bookkeeping. A step of one client is timed without a
mechanism, and with each mechanism on as many real images in the mean, with one image update for each release, which is
the dearest; kinds of steps take turns, and the least of some rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from datastill import load_real
from datastill.apps.federated import runner
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.runner import deal, federated
from datastill.data.real import RealSet
from datastill.store.files import write_json

PARTS: Counter[str] = Counter()


def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its CPU seconds added to a part."""

    def call(*values: Any, **more: Any) -> Any:
        started = time.process_time()
        made = function(*values, **more)
        PARTS[part] += time.process_time() - started
        return made

    return call


class Timed(FedDM):
    """FedDM that tells how long clients and server took."""

    name: ClassVar[str] = "feddm"
    send = timed("clients", FedDM.send)
    gather = timed("server", FedDM.gather)


def a_round(real: RealSet) -> dict[str, float]:
    """CPU seconds of the second of two rounds: the first pays for what is made once."""
    strategy = Timed(ipc=5, steps=30, real_batch=32, server_passes=30)
    score, found = runner.score_of, []

    def told(part: str, done: int, total: int, numbers: Any) -> None:
        if part == "rounds":
            found.append((time.process_time(), dict(PARTS)))

    try:
        runner.score_of = timed("score", score)
        federated(strategy, real, clients=10, partition="dirichlet:0.5", rounds=2, network="convnet:width=16",
                  device="cpu", progress=told)  # fmt: skip
    finally:
        runner.score_of = score
    (before, first), (after, both) = found
    parts = {name: both[name] - first[name] for name in both}
    total = after - before
    return {**parts, "left": total - sum(parts.values()), "round": total,
            "round_over_parts": total / (parts["clients"] + parts["server"]),
            "without_score_over_parts": (total - parts["score"]) / (parts["clients"] + parts["server"])}  # fmt: skip


def steps(real: RealSet, ipc: int, width: int, times: int) -> dict[str, float]:
    """CPU seconds per image update of one client that holds everything, by mechanism."""
    plain = FedDM(ipc=ipc, real_batch=60)
    rate = 60 * real.classes / len(real)
    kinds = {name: replace(plain, mechanism=name, updates=1, sample_rate=rate) for name in ("embedding", "gradient")}
    kinds["embedding, 5 updates"] = replace(plain, mechanism="embedding", sample_rate=rate)
    least: dict[str, float] = {}
    for _ in range(times):
        for name, one in {"plain": plain, **kinds}.items():
            work = deal(replace(one, steps=5), real, 1, "iid", network=f"convnet:width={width}", device="cpu")
            spent = []
            for count in (5, 25):
                strategy = replace(one, steps=count)
                started = time.process_time()
                strategy.send(work.client(0, 0), runner.start_of(work))
                spent.append(time.process_time() - started)
            least[name] = min(least.get(name, float("inf")), (spent[1] - spent[0]) / 20)
    return least


def rounded(value: Any) -> Any:
    """Four digits after the point, of all numbers of a part."""
    return {name: round(one, 4) for name, one in value.items()} if isinstance(value, dict) else value


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    real = load_real("fashion_mnist")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    record: dict[str, Any] = {"command": f"python benchmarks/federated_times.py {given.out}", "threads": 1}
    record["round"] = a_round(real.subset(order[:10_000]))
    print(record["round"], flush=True)
    for ipc in (2, 10):
        record[f"step, ipc {ipc}"] = found = steps(real.subset(order[:6_000]), ipc, 32, 2)
        found |= {f"{name} over plain": found[name] / found["plain"] for name in list(found) if name != "plain"}
        print(ipc, found, flush=True)
    write_json(given.out, {name: rounded(value) for name, value in record.items()})


if __name__ == "__main__":
    main()
