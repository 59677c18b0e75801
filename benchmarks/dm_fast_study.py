"""Which narrow, cheap DM step pays most per CPU second? One factor at a time, chosen on a validation split.

    python benchmarks/dm_fast_study.py --data fashion_mnist --out results/dm-fast-study-fashion_mnist.json
    python benchmarks/dm_fast_study.py --figure docs/images/dm_fast_study.png

Every setting gets the same CPU seconds of distillation on one thread (the steps are counted once and written
down); its set is scored with ConvNet-3/128 under dc-v1 on a tenth of the training images that it never saw. The
test split is read once, for the winner and for DM's published setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from datastill import distill, evaluate, load_real
from datastill.core.loop import synthesize
from datastill.data import RealSet
from datastill.distillation.job import prepare_job
from datastill.store.files import write_json

BASE: dict[str, Any] = {"width": 32, "real_batch": 8, "image_lr": 1.0, "decay": "none"}
SETTINGS: dict[str, dict[str, Any]] = {
    "base (32 wide, 8 real)": {},
    "width 16": {"width": 16},
    "width 64": {"width": 64},
    "width 128": {"width": 0},
    "4 real": {"real_batch": 4},
    "16 real": {"real_batch": 16},
    "32 real": {"real_batch": 32},
    "lr 0.3": {"image_lr": 0.3},
    "lr 3": {"image_lr": 3.0},
    "lr 10": {"image_lr": 10.0},
    "cosine decay": {"decay": "cosine"},
    "lr 3, cosine decay": {"image_lr": 3.0, "decay": "cosine"},
}
PUBLISHED = {"method": "dm", "real_batch": 256, "image_lr": 1.0, "augment": "none"}


def steps_within(method: str, real: RealSet, ipc: int, seconds: float, **hyper: Any) -> int:
    """How many steps fit into so many CPU seconds on one thread."""
    job = prepare_job(method, real, ipc=ipc, steps=10_000, **hyper)
    plan = job.method.build(job.task)
    synthesize(plan, job.task, stop_after=1)
    started, count = time.process_time(), 0
    while time.process_time() - started < min(2.0, seconds):
        count += 2
        synthesize(plan, job.task, stop_after=2)
    return max(1, int(seconds * count / (time.process_time() - started)))


def cell(real: RealSet, ipc: int, seed: int, seconds: float, networks: int, **hyper: Any) -> dict[str, Any]:
    """One set within the budget, and its accuracy on `real.test`."""
    method = hyper.pop("method", "dm-fast")
    steps = steps_within(method, real, ipc, seconds, **hyper)
    started = time.process_time()
    made = distill(method, real, ipc=ipc, seed=seed, steps=steps, **hyper)
    spent = time.process_time() - started
    result = evaluate(made, real, protocol="dc-v1", networks=networks, seed=seed, random=False)
    return {
        "steps": steps,
        "cpu_seconds": round(spent, 2),
        "accuracies": result.distilled.accuracies.flatten().tolist(),
    }


def study(data: str, out: Path, budgets: dict[int, float], seeds: int) -> None:
    """Fill in what is missing; safe to stop and start again."""
    whole = load_real(data)
    train, validation = whole.split(0.1)
    validating = dataclasses.replace(train, test=dataclasses.replace(validation, test=None))
    record: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"data": data, "cells": {}}
    cells = record["cells"]

    def fill(key: str, real: RealSet, ipc: int, seed: int, **hyper: Any) -> None:
        if key not in cells:
            cells[key] = cell(real, ipc, seed, budgets[ipc], 2, **hyper)
            write_json(out, record)
            print(data, key, cells[key], flush=True)

    for name, change in SETTINGS.items():
        for seed in range(seeds):
            fill(f"validation|1|{name}|{seed}", validating, 1, seed, **{**BASE, **change})
    best = sorted(SETTINGS, key=lambda n: -mean(cells, f"validation|1|{n}|"))[:3]
    for name in best:
        fill(f"validation|10|{name}|0", validating, 10, 0, **{**BASE, **SETTINGS[name]})
    winner = best[0]
    record["best_at_ipc_1"], record["winner"] = best, winner
    for ipc in budgets:
        for seed in range(seeds if ipc == 1 else 1):
            fill(f"test|{ipc}|{winner}|{seed}", whole, ipc, seed, **{**BASE, **SETTINGS[winner]})
            fill(f"test|{ipc}|published|{seed}", whole, ipc, seed, **PUBLISHED)
    write_json(out, record)


def mean(cells: dict[str, Any], prefix: str) -> float:
    """Mean accuracy over all cells whose key starts with `prefix`."""
    values = [a for key, c in cells.items() if key.startswith(prefix) for a in c["accuracies"]]
    return sum(values) / len(values)


def figure(paths: list[Path], target: Path) -> None:
    """Validation accuracy of every setting at one image per class, a panel per data set."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5 * len(paths), 4.2), layout="constrained")
    axes = drawing.subplots(1, len(paths), squeeze=False)[0]
    for ax, path in zip(axes, paths, strict=True):
        record = json.loads(path.read_text())
        names = [n for n in SETTINGS if any(k.startswith(f"validation|1|{n}|") for k in record["cells"])]
        for y, name in enumerate(reversed(names)):
            values = [
                100 * sum(c["accuracies"]) / len(c["accuracies"])
                for k, c in record["cells"].items()
                if k.startswith(f"validation|1|{name}|")
            ]
            middle = sum(values) / len(values)
            ax.plot([min(values), max(values)], [y, y], color="#9aa5c4", lw=4, solid_capstyle="round")
            ax.plot([middle], [y], "o", color="#4d49d8" if name == record.get("winner") else "#3b4a6b")
        ax.set_yticks(range(len(names)), list(reversed(names)))
        ax.set_title(f"{record['data']}, 1 image per class", loc="left", fontsize=10)
        ax.set_xlabel("validation accuracy, % (mean and range of seeds)")
        ax.grid(axis="x", color="#e3e6ee")
        ax.spines[["top", "right"]].set_visible(False)
    drawing.savefig(target, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.figure:
        figure(sorted(Path("results").glob("dm-fast-study-*.json")), given.figure)
    else:
        torch.set_num_threads(1)
        study(given.data, given.out, {1: 6.0, 10: 40.0}, given.seeds)
