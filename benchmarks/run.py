"""The engine beside the published loop, in one run, with the C library's allocator as it comes and tuned.

    python benchmarks/run.py                      # every case, a table last; writes results/benchmarks.json
    python benchmarks/run.py --cases dm eval      # some of them; the others stay in the file as they were
    python benchmarks/run.py --rounds 3 --device cuda

Three processes take turns, case by case and round by round, so that all see the same machine: the literal loop with
the allocator as it comes, the literal loop with raised thresholds, and the library (which raises them itself). A case
reports the best round of each, in CPU seconds and wall seconds, and the peak memory of its process.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("literal", "literal, tuned", "datastill", "datastill bf16")
KINDS = ["dm", "eval", "augment", "dc", "dsa", "inner", "idc", "recover", "stages", "frepo", "kip"]


def serve(side: str, device: str, threads: int, pipe: Any) -> None:
    """A process of one side: builds a case when asked, runs it once per request."""
    if side == "literal":
        os.environ["DATASTILL_MALLOC"] = "0"
    import torch

    from datastill.core.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    import cases

    made: tuple[str, Callable[[], None]] | None = None
    while True:
        name = pipe.recv()
        if name is None:
            return
        if made is None or made[0] != name:
            made = None
            made = (name, cases.build(name, side, device))
            made[1]()
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        made[1]()
        if device == "cuda":
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_allocated()
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "memory": memory})


def measure(name: str, device: str, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """The best round of every side for one case; fresh processes, so that peak memory is the case's own."""
    context = mp.get_context("spawn")
    pipes, processes = {}, {}
    import cases

    for side in SIDES:
        if side not in cases.sides(name):
            continue
        ours, theirs = context.Pipe()
        processes[side] = context.Process(target=serve, args=(side, device, threads, theirs), daemon=True)
        processes[side].start()
        pipes[side] = ours
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send(name)
            got = pipe.recv()
            if side not in best or got["cpu"] < best[side]["cpu"]:
                best[side] = got
    for side, pipe in pipes.items():
        pipe.send(None)
        processes[side].join()
    return best


def show(records: list[dict[str, Any]], ceiling: dict[str, float]) -> str:
    """The table, as Markdown."""
    lines = [
        f"Best convolution of this machine: {ceiling['float32']:.0f} GFLOP/s float32, {ceiling['bf16']:.0f} bfloat16.",
        "",
        "| case | side | CPU s | wall s | peak GiB | GFLOP/s | × as it comes | × tuned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        sides = record["sides"]
        for side, got in sides.items():
            base, tuned = sides["literal"]["wall"], sides.get("literal, tuned", sides["literal"])["wall"]
            rate = f"{record['gflop'] / got['wall']:.0f}" if record["gflop"] else "–"
            lines.append(
                f"| {record['case']} | {side} | {got['cpu']:.2f} | {got['wall']:.2f} | {got['memory'] / 2**30:.2f} | "
                f"{rate} | {base / got['wall']:.2f} | {tuned / got['wall']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Every case, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks.json"))
    given = parser.parse_args()
    import cases

    from datastill.core.cost import environment, pick_device
    from datastill.store.files import read_json, write_json

    wanted = cases.names(given.cases)
    ceiling = cases.ceiling(given.device, given.threads)
    print(f"ceiling: {ceiling}", flush=True)
    found = read_json(given.out) if given.out.exists() else {"cases": []}
    records = [r for r in found["cases"] if r["case"] not in wanted]
    for name in wanted:
        sides = measure(name, given.device, given.threads, given.rounds)
        records.append({"case": name, "gflop": cases.gflop(name), "sides": sides, "ceiling_gflops": ceiling})
        print(name, {s: round(v["wall"], 3) for s, v in sides.items()}, flush=True)
        write_json(given.out, {"environment": environment(pick_device(given.device)), "cases": records})
    print(show([r for r in records if r["case"] in wanted], ceiling))


if __name__ == "__main__":
    main()
