"""Peak memory and time of one trajectory-matching iteration against the number of student steps.

    python benchmarks/hypergradient.py                          # everything; results/hypergradient.json and .png
    python benchmarks/hypergradient.py --ipc 1 --steps 5 10     # a part; what is in the file is kept
    python benchmarks/hypergradient.py --figure docs/images/hypergradient.png

CIFAR-10 shapes, ConvNet-3/128, one operation of DSA per step. Every point is a process of its own, with the C
library's allocator as it comes or with raised thresholds ("tuned", which the library does itself). "literal" is the
published loop: parameters as views of one flat vector, all thetas in a list, one backward over all of it. An
iteration takes the hyper-gradient only. A point whose memory would exceed the limit, by the line through the smaller
points, is left out and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENGINES = ("literal", "full_unroll", "adjoint", "frozen_path", "truncated")
ALLOCATORS = ("as it comes", "tuned")
STEPS = (5, 10, 20, 30, 50)
SHAPE, CLASSES, LAST = (3, 32, 32), 10, 8
_ENVIRONMENT = """
import json, torch
from datastill.core.cost import environment
print(json.dumps(environment(torch.device("cpu"))))
"""
ALL = "color_crop_cutout_flip_scale_rotate"


def literal(x: Any, y: Any, steps: int) -> Callable[[], None]:
    """MTT's published inner loop."""
    import naive
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    network = naive.PlainConvNet(SHAPE[0], CLASSES, SHAPE[1])
    places = [(m, n) for m in network.modules() for n in list(m._parameters) if m._parameters[n] is not None]
    shapes = [m._parameters[n].shape for m, n in places]
    numels = [s.numel() for s in shapes]
    start = torch.cat([m._parameters[n].detach().flatten() for m, n in places])
    target = start + 0.01 * torch.randn_like(start)
    for m, n in places:
        del m._parameters[n]

    def forward(images: Any, flat: Any) -> Any:
        for (m, n), part, shape in zip(places, flat.split(numels), shapes, strict=True):
            setattr(m, n, part.view(shape))
        return network(images)

    def iteration() -> None:
        images = x.clone().requires_grad_()
        lr = torch.tensor(0.01, requires_grad=True)
        params = [start.clone().requires_grad_()]
        g = torch.Generator().manual_seed(0)
        for _ in range(steps):
            chunk = torch.randperm(len(images), generator=g)
            batch = naive.independent_batch(images[chunk], g)
            loss = F.cross_entropy(forward(batch, params[-1]), y[chunk])
            grad = torch.autograd.grad(loss, params[-1], create_graph=True)[0]
            params.append(params[-1] - lr * grad)
        distance = F.mse_loss(params[-1], target, reduction="sum") / len(start)
        (distance / (F.mse_loss(start, target, reduction="sum") / len(start))).backward()

    return iteration


def ours(engine: str, x: Any, y: Any, steps: int) -> Callable[[], None]:
    """The library's engine, in chunks as the objective takes them."""
    import torch

    from datastill.augment.dsa import Dsa
    from datastill.core.plan import chunk_for
    from datastill.core.rng import Rng
    from datastill.engines import hypergradient
    from datastill.engines.flat import FlatModel
    from datastill.models import resolve_network

    factory = resolve_network(None, channels=SHAPE[0], classes=CLASSES, size=SHAPE[1:])
    model = FlatModel(factory(0))
    start = model.flatten()
    target = start + 0.01 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    terms = [hypergradient.MatchTerm(steps, target)]
    dsa = Dsa(ALL)
    plan = hypergradient.draw_plan(len(x), steps, None, dsa, SHAPE, Rng(0))
    extra = {"last": min(LAST, steps)} if engine == "truncated" else {}
    run = getattr(hypergradient, engine)
    chunk = chunk_for(factory.macs, x.device)

    def iteration() -> None:
        run(model, start, x, y, torch.tensor(0.01), plan, terms, augment=dsa, chunk=chunk, **extra)

    return iteration


def measure(point: dict[str, Any]) -> dict[str, float]:
    """One point, in a fresh process: the best of some iterations; the peak of the process, and before any."""
    import torch

    from datastill.core.allocator import keep_freed_memory
    from datastill.core.cost import peak_memory_bytes

    torch.set_num_threads(point["threads"])
    if point["allocator"] == "tuned":
        keep_freed_memory()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(CLASSES * point["ipc"], *SHAPE, generator=g)
    y = torch.arange(CLASSES).repeat_interleave(point["ipc"])

    def build(steps: int) -> Callable[[], None]:
        return literal(x, y, steps) if point["engine"] == "literal" else ours(point["engine"], x, y, steps)

    idle = peak_memory_bytes(torch.device("cpu"))
    build(1)()  # warms the kernels without the memory of the whole
    iteration, best = build(point["steps"]), {"wall": float("inf"), "cpu": float("inf")}
    for _ in range(point["rounds"]):
        wall, cpu = time.perf_counter(), time.process_time()
        iteration()
        best["wall"] = min(best["wall"], time.perf_counter() - wall)
        best["cpu"] = min(best["cpu"], time.process_time() - cpu)
    return {**best, "memory": peak_memory_bytes(torch.device("cpu")), "idle": idle}


def in_own_process(point: dict[str, Any]) -> dict[str, Any]:
    """`measure` in a new interpreter; a point that fails there (out of memory) is said to have failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(point["threads"])}
    environment["DATASTILL_MALLOC"] = "1" if point["allocator"] == "tuned" else "0"
    command = [sys.executable, __file__, "--one", json.dumps(point)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"the process ended with {done.returncode}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def predicted(found: dict[int, dict[str, Any]], steps: int) -> float:
    """Bytes for so many steps, by the line through the two largest points measured; 0 when it cannot be said."""
    known = sorted(n for n in found if "memory" in found[n])[-2:]
    if len(known) < 2:
        return 0.0
    a, b = known
    slope = (found[b]["memory"] - found[a]["memory"]) / (b - a)
    return float(found[b]["memory"] + max(0.0, slope) * (steps - b))


def key(point: dict[str, Any]) -> str:
    """The name of a point in the file."""
    return f"ipc {point['ipc']}|{point['engine']}|{point['allocator']}|{point['steps']}"


def study(given: argparse.Namespace, record: dict[str, Any], write: Callable[[], None]) -> None:
    """Measure what is missing, smaller numbers of steps first."""
    points = record["points"]
    for ipc in given.ipc:
        for engine in given.engines:
            for allocator in given.allocators:
                found: dict[int, dict[str, Any]] = {}
                for steps in sorted(given.steps):
                    point = {
                        "ipc": ipc,
                        "engine": engine,
                        "allocator": allocator,
                        "steps": steps,
                        "rounds": given.rounds,
                        "threads": given.threads,
                    }
                    if key(point) not in points or given.again:
                        need = predicted(found, steps)
                        if need > given.limit_gib * 2**30:
                            points[key(point)] = {"skipped": f"would need {need / 2**30:.0f} GiB"}
                        else:
                            points[key(point)] = in_own_process(point)
                        write()
                        print(key(point), points[key(point)], flush=True)
                    found[steps] = points[key(point)]


def table(points: dict[str, Any]) -> str:
    """The table, as Markdown."""
    lines = ["| set | engine | allocator | steps | wall s | CPU s | peak GiB |", "|---|---|---|---|---|---|---|"]
    for name, got in points.items():
        if "memory" in got:
            cells = f"{got['wall']:.2f} | {got['cpu']:.2f} | {got['memory'] / 2**30:.2f}"
        else:
            cells = f"– | – | {got.get('skipped') or 'failed: ' + got['failed']}"
        lines.append("| " + name.replace("|", " | ") + f" | {cells} |")
    return "\n".join(lines)


def figure(record: dict[str, Any], target: Path) -> None:
    """Memory above, time below, a column per set size; a color per engine, dashes for the allocator as it comes."""
    from matplotlib.figure import Figure

    points = {tuple(name.split("|")): got for name, got in record["points"].items() if "memory" in got}
    sizes = sorted({name[0] for name in points}, key=lambda s: int(s.split()[1]))
    colors = dict(zip(ENGINES, ("#8a8f9c", "#c2542d", "#4d49d8", "#2d8f6f", "#c9a227"), strict=True))
    drawing = Figure(figsize=(4.6 * max(1, len(sizes)), 6.4), layout="constrained")
    axes = drawing.subplots(2, max(1, len(sizes)), squeeze=False)
    rows = (("memory", 2**30, "peak memory, GiB"), ("wall", 1, "seconds per iteration"))
    for column, size in enumerate(sizes):
        for row, (what, unit, label) in enumerate(rows):
            ax = axes[row][column]
            for engine in ENGINES:
                for allocator, style in zip(ALLOCATORS, ("--", "-"), strict=True):
                    line = sorted(
                        (int(n), got[what] / unit)
                        for (s, e, a, n), got in points.items()
                        if (s, e, a) == (size, engine, allocator)
                    )
                    if line:
                        name = engine if allocator == "tuned" else None
                        ax.plot(*zip(*line), style, marker="o", ms=3, color=colors[engine], label=name)
            ax.set_ylim(bottom=0)
            ax.set_xlabel("student steps N")
            ax.set_ylabel(label)
            ax.grid(color="#e3e6ee")
            ax.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(size.replace("ipc ", "images per class: "), loc="left", fontsize=10)
    if sizes:
        axes[0][0].legend(fontsize=8, title="dashed: allocator as it comes", title_fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(target, dpi=130)


def available_gib() -> float:
    """Free memory of this machine."""
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2**30


def in_python(code: str) -> str:
    """What code prints in a process of its own: this one stays small, since its children report its size as theirs."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", nargs="*", type=int, default=[1, 10])
    parser.add_argument("--steps", nargs="*", type=int, default=list(STEPS))
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--allocators", nargs="*", default=list(ALLOCATORS), choices=ALLOCATORS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--limit-gib", type=float, default=0.8 * available_gib(), help="skip points that would need more"
    )
    parser.add_argument("--again", action="store_true", help="measure points that the file has already")
    parser.add_argument("--out", type=Path, default=Path("results/hypergradient.json"))
    parser.add_argument("--figure", type=Path, help="draw this file from --out, and measure nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(json.loads(given.one))))
        return
    record: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {"points": {}}
    if given.figure:
        figure(record, given.figure)
        return

    def write() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n")

    study(given, record, write)
    record["environment"] = json.loads(in_python(_ENVIRONMENT))
    record["threads"] = given.threads
    write()
    figure(record, given.out.with_suffix(".png"))
    print(table(record["points"]))


if __name__ == "__main__":
    main()
