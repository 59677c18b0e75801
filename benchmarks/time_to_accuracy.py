"""Test accuracy against CPU seconds of distillation, one thread: what a user waits for.

    python benchmarks/time_to_accuracy.py --out results/time-to-accuracy-fashion_mnist.json
    python benchmarks/time_to_accuracy.py --figure docs/images/time_to_accuracy.png

One image per class of FashionMNIST, scored with ConvNet-3/128 under dc-v1 (mean over seeds and two networks each).
The seconds are those of the process in `distill`, data already loaded; steps are what fits into the asked seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from dm_fast_study import PUBLISHED, cell

from datastill import load_real
from datastill.core.cost import environment
from datastill.store.files import write_json

CURVES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "dm-fast": ({}, [1.0, 2.0, 3.0, 6.0]),
    "dm, published step": (PUBLISHED, [6.0, 60.0]),
}


def measure(data: str, out: Path, seeds: int, networks: int) -> None:
    """Fill in what is missing; safe to stop and start again."""
    real = load_real(data)
    record: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"data": data, "points": {}}
    for name, (hyper, budgets) in CURVES.items():
        for seconds in budgets:
            for seed in range(seeds):
                key = f"{name}|{seconds:g}|{seed}"
                if key not in record["points"]:
                    record["points"][key] = cell(real, 1, seed, seconds, networks, **hyper)
                    record["environment"] = environment(torch.device("cpu"))
                    write_json(out, record)
                    print(key, record["points"][key], flush=True)
    for name, seconds, accuracy in summary(record):
        print(f"{name:20} {seconds:6.1f} CPU s  {100 * accuracy:.1f} %")


def summary(record: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(curve, mean CPU seconds, mean accuracy) for every budget, in order."""
    rows = []
    for name, (_, budgets) in CURVES.items():
        for seconds in budgets:
            found = [p for key, p in record["points"].items() if key.startswith(f"{name}|{seconds:g}|")]
            values = [a for p in found for a in p["accuracies"]]
            if found:
                rows.append((name, sum(p["cpu_seconds"] for p in found) / len(found), sum(values) / len(values)))
    return rows


def figure(path: Path, target: Path) -> None:
    """Accuracy against seconds, a line per way of spending them."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 4), layout="constrained")
    ax = drawing.subplots()
    rows = summary(json.loads(path.read_text()))
    for name, color in zip(CURVES, ("#4d49d8", "#3b4a6b"), strict=True):
        points = [(seconds, 100 * accuracy) for n, seconds, accuracy in rows if n == name]
        if points:
            ax.plot(*zip(*points, strict=True), "o-", color=color, label=name)
    ax.axhline(70, color="#9aa5c4", lw=1, ls="--")
    ax.set_xscale("log")
    ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlim(0.5, max(s for _, s, _ in rows) * 1.5)
    ax.set_xlabel("CPU seconds of distillation, one thread")
    ax.set_ylabel("test accuracy, % (dc-v1)")
    ax.grid(color="#e3e6ee")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    drawing.savefig(target, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--out", type=Path, default=Path("results/time-to-accuracy-fashion_mnist.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.figure:
        figure(given.out, given.figure)
    else:
        torch.set_num_threads(1)
        measure(given.data, given.out, given.seeds, given.networks)
