"""Accuracy against the bytes of labels: hard, one soft label an image, stored logits of many kinds, the teacher itself.

    python benchmarks/label_bytes.py
    python benchmarks/label_bytes.py --plot results/label-bytes-fashion_mnist.json

FashionMNIST, ten images per class: random real images, and those of dwa, with one teacher. All are trained on under
soft-quick-v1 (100 passes). Safe to stop and start again: a point in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from squeezed import teacher_in

from datastill import distill, evaluate, load_real
from datastill.core.cost import environment
from datastill.data import RealSet
from datastill.evaluation.soft import relabel
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.files import write_json

NETWORK, PROTOCOL, IPC = "convnet:width=32,norm=batch", "soft-quick-v1", 10
SETS: dict[str, dict[str, Any]] = {"random": {}, "dwa": {"steps": 200}}
COLORS = {"random": "#8a8f99", "dwa": "#2f6fde"}
#: What is stored of the teacher's logits.
BANKS: dict[str, dict[str, Any]] = {
    "float16": {},
    "int8": {"dtype": "int8"},
    "top 3": {"top_k": 3},
    "top 1": {"top_k": 1},
    "50 passes": {"passes": 50},
    "20 passes": {"passes": 20},
    "5 passes": {"passes": 5},
    "1 pass": {"passes": 1},
}


def made(name: str, real: RealSet, teacher: Any, place: Path) -> DistilledSet:
    """A set, made once."""
    folder = place / name
    if not (folder / "manifest.json").is_file():
        own = {} if name == "random" else {"teacher": teacher}
        distill(name, real, ipc=IPC, network=NETWORK, **own, **SETS[name]).save(folder)
    return load_distilled(folder)


def point(one: DistilledSet, kind: str, real: RealSet, teacher: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Bytes of the labels, and accuracies of the networks."""
    shared = {"protocol": PROTOCOL, "networks": args.networks, "network": NETWORK, "random": False}
    images, classes = len(one.images), real.classes
    if kind in ("hard", "soft"):
        size = images if kind == "hard" else 2 * images * classes
        result = evaluate(one, real, labels=kind, teacher=teacher, **shared)
    elif kind == "teacher":
        size = teacher.nbytes
        result = evaluate(one, real, labels="teacher", teacher=teacher, **shared)
    else:
        assert one.folder is not None
        copy = one.folder.with_name(one.folder.name + "-labeled")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(one.folder, copy)
        size = relabel(load_distilled(copy), real, PROTOCOL, teacher=teacher, **BANKS[kind]).nbytes
        result = evaluate(load_distilled(copy), real, labels="teacher", **shared)
    return {"bytes": size, "accuracies": result.distilled.accuracies.flatten().tolist()}


def study(args: argparse.Namespace) -> None:
    """Every point that is missing."""
    torch.set_num_threads(1)
    real = load_real("fashion_mnist")
    teacher = teacher_in(args.work / "teacher", real, NETWORK, epochs=6)
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"points": {}}
    for name in SETS:
        one = made(name, real, teacher, args.work)
        for kind in ("hard", "soft", "teacher", *BANKS):
            if (key := f"{name}|{kind}") not in record["points"]:
                record["points"][key] = point(one, kind, real, teacher, args)
                record |= {"command": "python benchmarks/label_bytes.py", "network": NETWORK, "protocol": PROTOCOL}
                record |= {"ipc": IPC, "networks": args.networks, "environment": environment(torch.device("cpu"))}
                write_json(args.out, record)
                print(key, record["points"][key], flush=True)


def plot(path: Path, target: Path) -> None:
    """Accuracy against bytes: a line over stored passes, marks for what else is stored."""
    from matplotlib.figure import Figure

    drawing, points = Figure(figsize=(7.2, 4.2), layout="constrained"), json.loads(path.read_text())["points"]
    ax = drawing.subplots()
    for name, color in COLORS.items():
        of = {k.partition("|")[2]: (p["bytes"] / 1e3, 100 * sum(p["accuracies"]) / len(p["accuracies"]))
              for k, p in points.items() if k.startswith(name + "|")}  # fmt: skip
        line = [of[k] for k in ("1 pass", "5 passes", "20 passes", "50 passes", "float16") if k in of]
        ax.plot(*zip(*line, strict=True), "o-", color=color, label=f"{name}: logits of 1, 5, 20, 50, 100 passes")
        for kind, mark in (
            ("hard", "s"),
            ("soft", "D"),
            ("top 1", "v"),
            ("top 3", "^"),
            ("int8", "P"),
            ("teacher", "*"),
        ):
            if kind in of:
                ax.plot(*of[kind], mark, color=color, ms=9 if mark == "*" else 6, mfc="none")
                ax.annotate(kind, of[kind], (5, -11), textcoords="offset points", fontsize=7, color=color)
    ax.set_xscale("log")
    ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    ax.minorticks_off()
    ax.set_xlabel("kB of labels (images: 78 kB at 8 bits)")
    ax.set_ylabel("test accuracy, %")
    ax.grid(color="#e3e6ee")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    drawing.savefig(target, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/label-bytes-fashion_mnist.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/label-bytes"), help="teacher and sets")
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("docs/images/label_bytes.png"))
    given = parser.parse_args()
    if given.plot:
        plot(given.plot, given.figure)
    else:
        study(given)
