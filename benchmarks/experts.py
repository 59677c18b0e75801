"""An epoch of an expert: the published loop beside ours, with the C library's allocator as it comes and tuned.

    python benchmarks/experts.py                  # a table last; writes results/benchmarks-experts.json
    python benchmarks/experts.py --rounds 5 --batches 20
    python benchmarks/experts.py --no-pool        # one process at a time alone
    python benchmarks/experts.py --bank --no-pool --batches 50 --out results/benchmarks-bank.json

ConvNet-3/128 on CIFAR-10 shapes, batches of 256, DSA with one operation per batch, plain SGD at 0.01, a snapshot of the
parameters in the end: a part of an epoch, 10 batches of the 196. With --bank, what stage matching trains: width 64,
batches of 64, momentum 0.9. Values do not matter to time, so images are noise.

Processes take turns, round by round, so that all see the same machine. The best round of each is reported, in CPU
seconds and wall seconds. Sides are one thread each, as experts are trained; the pool is two processes for two experts,
and beside it stands the published loop, which trains them one after the other with two threads.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDES = ("literal", "literal, tuned", "datastill", "datastill bf16", "datastill bf16, compiled")
IMAGE, CLASSES = (3, 32, 32), 10
ALL = "color_crop_cutout_flip_scale_rotate"
EXPERTS = 2  #: of the pool


@dataclass(frozen=True)
class Kind:
    """Experts of one kind."""

    width: int = 128
    batch: int = 256
    macs: float = 50.7e6  #: of one image
    momentum: float = 0.0
    policy: str = "sgd"


TRAJECTORIES = Kind()
BANK = Kind(64, 64, 13.7e6, 0.9, "momentum:schedule=constant,cutmix=0")


def images(kind: Kind, batches: int) -> tuple[Any, Any]:
    """Noise of the right shape, ten classes in turn."""
    import torch

    n = kind.batch * batches
    return torch.randn(n, *IMAGE, generator=torch.Generator().manual_seed(0)), torch.arange(n) % CLASSES


def literal(kind: Kind, batches: int, experts: int = 1) -> Callable[[], object]:
    """The published loop: a data loader, one optimizer step per batch, loss and accuracy read each time."""
    import naive

    x, y = images(kind, batches)
    networks = [naive.PlainConvNet(IMAGE[0], CLASSES, IMAGE[1], kind.width) for _ in range(experts)]

    def epoch() -> list[Any]:
        for network in networks:
            naive.train_passes(network, x, y, 1, augment=True, momentum=kind.momentum, batch=kind.batch)
        return [[p.detach().cpu().clone() for p in network.parameters()] for network in networks]

    return epoch


def real_set(kind: Kind, batches: int) -> Any:
    """The same images as the library holds them, in [0, 1]."""
    from datastill import load_real

    x, y = images(kind, batches)
    return load_real((x.sigmoid(), y), space="normalized", holdout=0)


def ours(kind: Kind, side: str, batches: int, folder: Path) -> Callable[[], object]:
    """An epoch of an expert as `train_experts` runs it, snapshot and state on the disk included."""
    from datastill.core.interrupt import StopRequest
    from datastill.models import resolve_network
    from datastill.surrogates.experts import train
    from datastill.surrogates.experts.job import begin, make_job

    network = f"convnet:width={kind.width}"
    factory = resolve_network(network, channels=IMAGE[0], classes=CLASSES, size=IMAGE[1:])
    how: Any = {"precision": "bf16" if "bf16" in side else "float32", "compiled": side.endswith("compiled")}
    real = real_set(kind, batches)
    job = make_job(real, factory, folder, augment=ALL, epochs=10_000, policy=kind.policy, **how)
    begin(job)
    training = train._Training(job, 0, StopRequest())
    data = train.training_set(job)
    return lambda: training._epoch(data)


def serve(kind: Kind, side: str, batches: int, threads: int, pipe: Any) -> None:
    """A process of one side: builds its work once, and does it once per request."""
    if side == "literal":
        os.environ["DATASTILL_MALLOC"] = "0"
    import torch

    from datastill.core.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        experts = EXPERTS if threads > 1 else 1
        work = (
            literal(kind, batches, experts) if side.startswith("literal") else ours(kind, side, batches, Path(folder))
        )
        work()
        while pipe.recv() is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            pipe.send({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": memory})


def measure(kind: Kind, sides: dict[str, tuple[str, int]], batches: int, rounds: int) -> dict[str, dict[str, float]]:
    """The best round of every side, by CPU seconds.

    Args:
        kind: of experts.
        sides: name -> (side, threads).
    """
    context, pipes, processes = mp.get_context("spawn"), {}, {}
    for name, (side, threads) in sides.items():
        pipes[name], theirs = context.Pipe()
        processes[name] = context.Process(target=serve, args=(kind, side, batches, threads, theirs), daemon=True)
        processes[name].start()
        theirs.close()
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, pipe in list(pipes.items()):
            try:
                pipe.send(True)
                got = pipe.recv()
            except (EOFError, BrokenPipeError):
                print(f"{name}: this side cannot be run here", flush=True)
                del pipes[name]
                continue
            if name not in best or got["cpu"] < best[name]["cpu"]:
                best[name] = got
    for name, pipe in pipes.items():
        pipe.send(None)
        processes[name].join()
    return best


def pool(batches: int) -> dict[str, float]:
    """Two experts over a pool of two: seconds of one epoch of both once the pool stands, and what starting it takes."""
    from datastill.models import resolve_network
    from datastill.surrogates.experts import train_experts

    factory = resolve_network("convnet", channels=IMAGE[0], classes=CLASSES, size=IMAGE[1:])
    real, taken = real_set(TRAJECTORIES, batches), {}
    for epochs in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), children()
            train_experts(real, factory, folder, experts=EXPERTS, workers=2, epochs=epochs, augment=ALL)
            taken[epochs] = (time.perf_counter() - wall, children() - cpu)
    wall, cpu = ((taken[3][k] - taken[1][k]) / 2 for k in (0, 1))
    return {"wall": wall, "cpu": cpu, "start": taken[1][0] - wall}


def children() -> float:
    """CPU seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(record: dict[str, Any]) -> str:
    """The table, as Markdown."""
    kind = BANK if record.get("bank") else TRAJECTORIES
    gflop = 2e-9 * kind.macs * 3 * kind.batch * record["batches"]
    lines = [
        f"{record['batches']} batches of {kind.batch}. Best of {record['rounds']} rounds.",
        "",
        "| side | CPU s | wall s | peak GiB | GFLOP/s | × as it comes | × tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    sides = record["sides"]
    for name, got in sides.items():
        ratios = [f"{sides[base]['cpu'] / got['cpu']:.2f}" for base in ("literal", "literal, tuned")]
        lines.append(
            f"| {name} | {got['cpu']:.2f} | {got['wall']:.2f} | {got['memory'] / 2**30:.2f} | "
            f"{gflop / got['cpu']:.0f} | {' | '.join(ratios)} |"
        )
    for name, got in record.get("pool", {}).items():
        lines.append(f"| two experts, {name} | {got['cpu']:.2f} | {got['wall']:.2f} | – | – | – | – |")
    return "\n".join(lines)


def main() -> None:
    """All sides, then the pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bank", action="store_true", help="the networks that stage matching trains")
    parser.add_argument("--pool", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks-experts.json"))
    given = parser.parse_args()

    from datastill.core.cost import environment, pick_device
    from datastill.store.files import write_json

    wanted = [side for side in SIDES if side in given.sides or side.startswith("literal")]
    record: dict[str, Any] = {"batches": given.batches, "rounds": given.rounds, **environment(pick_device("cpu"))}
    record["bank"] = given.bank
    kind = BANK if given.bank else TRAJECTORIES
    record["sides"] = measure(kind, {side: (side, 1) for side in wanted}, given.batches, given.rounds)
    if given.pool:
        two = {"one after the other, literal, 2 threads": ("literal", 2), "the same, tuned": ("literal, tuned", 2)}
        record["pool"] = measure(TRAJECTORIES, two, given.batches, given.rounds)
        tries = [pool(given.batches) for _ in range(given.rounds)]
        record["pool"]["pool of 2, datastill"] = min(tries, key=lambda one: one["wall"])
    with contextlib.suppress(OSError):
        record["load"] = os.getloadavg()[0]
    write_json(given.out, record)
    print(show(record))


if __name__ == "__main__":
    main()
