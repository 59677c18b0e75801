"""What brings what in stage matching: one factor at a time around a base, and a table of its four switches.

    python benchmarks/stage_study.py table --data fashion_mnist --ipc 1 --out results/stages-table-fashion_mnist.json
    python benchmarks/stage_study.py factors --data cifar10 --ipc 10 --out results/stages-factors-cifar10.json
    python benchmarks/stage_study.py show results/stages-table-fashion_mnist.json

Every setting is scored with --network (ConvNet-3/128) under idc-quick-v1 on a tenth of the training images that it
never saw. The test split is read once, for the settings named by --test. CPU seconds are those of one thread; networks
and statistics are kept in --units, trained once, and their seconds are told apart from those of the steps. Safe to stop
and start again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from clock import steps_for

from datastill import distill, evaluate, load_real
from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import environment
from datastill.data import RealSet
from datastill.store.files import write_json

#: Of the base: tiles to a side of an image, and networks, which the defaults are no more.
BASE: dict[str, Any] = {"factor": 2, "expert_count": 4}
#: The mosaic start stands beside all of them.
START: dict[str, Any] = {"method": "mosaic"}
RANDOM_START = {"init": "mix"}
#: Snapshots after about 100, 400, 1,300 and 4,800 updates.
LONG = {"expert_updates": 4800, "expert_epochs": 48}
FACTORS: dict[str, dict[str, Any]] = {
    "start": START,
    "herded start": {"steps": 1, "image_lr": 1e-9},
    **{f"start, factor {n}": {**START, "factor": n} for n in (3, 4, 5)},
    **{f"herded start, factor {n}": {"steps": 1, "image_lr": 1e-9, "factor": n} for n in (3, 4, 5)},
    "base": {},
    **{f"random start, alpha {a:g}": {"alpha": a, **RANDOM_START} for a in (0.0, 0.003, 0.03, 0.1)},
    "alpha 0": {"alpha": 0.0},
    "alpha .1": {"alpha": 0.1},
    "means and spreads": {"moment": "spreads"},
    "characteristic functions": {"moment": "cf"},
    "no augmentation": {"augment": "none"},
    "150 steps": {"steps": 150},
    "lr .03": {"image_lr": 0.03},
    "200 real images a class": {"statistics_images": 200},
    "two networks": {"expert_count": 2},
    "eight networks": {"expert_count": 8},
    "two snapshots": {"snapshots": 2},
    "eight snapshots": {"snapshots": 8},
    "width 32": {"width": 32},
    "width 128": {"width": 128},
    "600 updates": {"expert_updates": 600},
    "whole images": {"factor": 1},
    "factor 3": {"factor": 3},
    "factor 3, 150 steps": {"factor": 3, "steps": 150},
    "factor 3, eight networks": {"factor": 3, "expert_count": 8},
    "factor 3, two networks": {"factor": 3, "expert_count": 2},
    "factor 3, two networks, 1000 steps": {"factor": 3, "expert_count": 2, "steps": 1000},
    "factor 4, two networks of width 128, 150 steps": {"factor": 4, "expert_count": 2, "width": 128, "steps": 150},
    "factor 4, one network, 150 steps": {"factor": 4, "expert_count": 1, "steps": 150},
    "factor 4, two networks": {"factor": 4, "expert_count": 2},
    "factor 3, two networks, 100 steps": {"factor": 3, "expert_count": 2, "steps": 100},
    "two networks, 100 steps": {"expert_count": 2, "steps": 100},
    **{f"factor {n}": {"factor": n} for n in (4, 5, 6, 8)},
    "factor 4, two networks, 150 steps": {"factor": 4, "expert_count": 2, "steps": 150},
    "two networks of width 128, 1000 steps": {"expert_count": 2, "width": 128, "steps": 1000},
    "4800 updates, 1000 steps": {**LONG, "steps": 1000},
    "two networks, 2400 updates": {"expert_count": 2, "expert_updates": 2400, "expert_epochs": 24},
    "4800 updates": LONG,
    "4800 updates, fresh statistics, 1000 steps": {**LONG, "statistics": "fresh", "real_batch": 64, "steps": 1000},
    "4800 updates, alpha .1": {**LONG, "alpha": 0.1},
    "4800 updates, alpha .3": {**LONG, "alpha": 0.3},
    "width 32, sixteen networks": {"width": 32, "expert_count": 16},
}


def table(common: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Law of stages x moment x cross-entropy x where the real side comes from; weights between are always fresh."""
    found = {"start": START, "random": {"method": "random"}}
    laws, moments, alphas, reals = ("snapshots", "interpolated"), ("means", "cf"), (0.0, 0.1), ("amortized", "fresh")
    for law, moment, alpha, real in itertools.product(laws, moments, alphas, reals):
        if (law, real) != ("interpolated", "amortized"):
            found[f"{law}, {moment}, alpha {alpha:g}, {real}"] = {
                **common,
                "law": law,
                "moment": moment,
                "alpha": alpha,
                "statistics": real,
                "init": "mix",
            }
    return found


def cell(real: RealSet, seed: int, args: argparse.Namespace, **hyper: Any) -> dict[str, Any]:
    """One set, its seconds, and its accuracy on `real.test`."""
    method = hyper.pop("method", "stages")
    how: Any = {"precision": args.precision, "compile": args.compile}
    if method == "stages":
        hyper = {**BASE, **hyper}
    same: Any = {"ipc": args.ipc, "seed": seed, "units": args.units, "recipe": "paper", **how, **hyper}
    if args.seconds and method == "stages":
        same["steps"] = steps_for(
            args.seconds, lambda n, watched: distill(method, real, callbacks=watched, **{**same, "steps": n})
        )
    started = time.process_time()
    made = distill(method, real, **same)
    spent = time.process_time() - started
    score: Any = {"networks": args.networks, "network": args.network, "seed": seed, "random": False} | how
    result = evaluate(made, real, protocol=args.protocol, **score)
    cost = made.manifest["cost"]
    return {
        "process_seconds": round(spent, 2),
        "prepare_seconds": cost["prepare_seconds"],
        "steps_seconds": cost["seconds"],
        "steps": cost["steps"],
        "accuracies": result.distilled.accuracies.flatten().tolist(),
    }


def study(
    settings: dict[str, dict[str, Any]], tested: list[str], args: argparse.Namespace, usual: dict[str, Any]
) -> None:
    """Fill in what is missing; `usual` has the defaults of what all cells of a file share."""
    whole = load_real(args.data)
    train, validation = whole.split(0.1)
    validating = dataclasses.replace(train, test=dataclasses.replace(validation, test=None))
    about = {name: getattr(args, name) for name in usual}
    fresh = {**about, "settings": settings, "cells": {}}
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else fresh
    made = {**usual, **record}  # a file of before names no option that there was not
    other = [name for name in usual if made[name] != about[name]]
    if other:
        was = ", ".join(f"{name} {made[name]}" for name in other)
        raise SystemExit(f"{args.out} was made with {was}; give another --out, or the same settings.")
    record["settings"] |= settings
    jobs = [("validation", validating, name) for name in settings] + [("test", whole, name) for name in tested]
    for (split, real, name), seed in itertools.product(jobs, range(args.seeds)):
        key = f"{split}|{name}|{seed}"
        if key not in record["cells"]:
            record["cells"][key] = cell(real, seed, args, **settings[name])
            record["environment"] = environment(torch.device("cpu"))
            write_json(args.out, record)
            print(key, record["cells"][key], flush=True)


def show(path: Path) -> None:
    """Mean, range over seeds and seconds of every setting, as Markdown."""
    record = json.loads(path.read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    for key, one in record["cells"].items():
        found.setdefault(key.rpartition("|")[0], []).append(one)
    print("| split, setting | accuracy % | over sets | seconds of steps |\n|---|---|---|---|")
    for key, cells in found.items():
        means = [100 * sum(c["accuracies"]) / len(c["accuracies"]) for c in cells]
        steps = sum(c["steps_seconds"] for c in cells) / len(cells)
        print(f"| {key.replace('|', ', ')} | {sum(means) / len(means):.1f} | {min(means):.1f} to {max(means):.1f} "
              f"| {steps:.0f} |")  # fmt: skip


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("factors", "table", "show"))
    parser.add_argument("path", nargs="?", type=Path, help="with show: the file of a study")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--network", default="convnet", help="that scores; a narrow one is cheap")
    parser.add_argument("--protocol", default="idc-quick-v1")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--seconds", type=float, help="processor seconds of the steps of every set")
    parser.add_argument("--width", type=int, help="of the networks that are matched on, in the table")
    parser.add_argument("--units", type=Path, default=Path("runs/stage-units"))
    parser.add_argument("--only", nargs="*", default=None, help="names of settings")
    parser.add_argument("--test", nargs="*", default=[], help="names of settings that are scored on test images too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    if args.what == "show":
        show(args.path)
        return
    settings = FACTORS if args.what == "factors" else table({} if args.width is None else {"width": args.width})
    shared = ("data", "ipc", "network", "protocol", "precision", "compile", "seconds")
    usual = {name: parser.get_default(name) for name in shared}
    study({n: s for n, s in settings.items() if args.only is None or n in args.only}, args.test, args, usual)


if __name__ == "__main__":
    main()
