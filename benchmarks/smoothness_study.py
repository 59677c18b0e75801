"""AST's table in small: does momentum ruin what is distilled, and do the penalty and the ramp mend it?

    python benchmarks/smoothness_study.py --data fashion_mnist --out runs/smoothness
    python benchmarks/smoothness_study.py --data cifar10 --width 32 --images 500 --out runs/smoothness-cifar10
    python benchmarks/smoothness_study.py --figure smoothness.png --rows results/smoothness-fashion_mnist.json

Four buffers of experts (plain SGD, momentum, momentum and penalty, all), and a set by `mtt` from each, at the published
rates of experts for batches of 64. Of every buffer: squared steps, accuracy of the experts in training, accuracy of the
distilled set on a tenth of the training images that it never saw. Stop it at any time; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from datastill import distill, evaluate, load_real
from datastill.core.allocator import keep_freed_memory
from datastill.data import RealSet
from datastill.evaluation.rates import validation_of
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.surrogates.experts import train_experts

POLICIES = {
    "plain": ("sgd:lr=0.01", {}),
    "momentum": ("smooth:penalty=0,ramp=0", {"student_lr": 0.02}),
    "momentum and penalty": ("smooth:ramp=0", {"student_lr": 0.02}),
    "all": ("smooth", {"student_lr": 0.02}),
    "all, norm of samples": ("smooth:norm=sample", {"student_lr": 0.02}),
}


def row(name: str, real: RealSet, given: argparse.Namespace) -> dict[str, Any]:
    """One buffer, one set, one evaluation; what is there already is taken up."""
    policy, own = POLICIES[name]
    policy += f"{',' if ':' in policy else ':'}batch=64"
    folder = given.out / name.replace(", ", "-").replace(" ", "-")
    network = resolve_network(
        f"convnet:width={given.width}", channels=real.shape[0], classes=real.classes, size=real.shape[1:]
    )
    buffer = train_experts(real, network, folder / "experts", experts=given.experts, epochs=given.epochs, policy=policy)
    settings: dict[str, Any] = {
        "max_start": given.epochs - 1,
        "steps": given.steps,
        "student_steps": 15,
        "student_lr": 0.01,
        **own,
    }
    spec, run = f"convnet:width={given.width}", folder / "run"
    settings |= {"out": run, "resume": run.exists()}
    one = distill("mtt", real, ipc=given.ipc, network=spec, experts=str(buffer.path), **settings)
    result = evaluate(one, real, protocol="mtt-quick-v1", networks=3)
    return {**buffer.describe()["smoothness"], "distilled": result.mean, "over_random": result.difference}


def figure(rows: dict[str, Any], path: Path) -> None:
    """Accuracy of distilled sets and of experts against the mean squared step of the experts."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawn.subplots()
    steps = [one["mean_squared_step"] for one in rows.values()]
    for label, key, mark in (("distilled set, held-out images", "distilled", "o"),
                             ("experts, in training", "train_accuracy", "x")):  # fmt: skip
        axes.scatter(steps, [100 * one[key] for one in rows.values()], marker=mark, label=label)
    for name, one in rows.items():
        axes.annotate(name, (one["mean_squared_step"], 100 * one["distilled"]), fontsize=8, xytext=(4, 6),
                      textcoords="offset points")  # fmt: skip
    axes.set_xlabel("mean squared step of the experts (rougher to the right)")
    axes.set_ylabel("accuracy, %")
    axes.margins(x=0.55)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)


def main() -> None:
    """All rows that are missing, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--out", type=Path, default=Path("runs/smoothness"))
    parser.add_argument("--figure", type=Path, help="draw --rows into this file, and train nothing")
    parser.add_argument("--rows", type=Path, help="a rows.json of this study")
    for name, value in {"width": 32, "images": 300, "experts": 3, "epochs": 10, "steps": 200, "ipc": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if given.figure:
        figure(json.loads(given.rows.read_text()), given.figure)
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    given.out.mkdir(parents=True, exist_ok=True)
    whole = load_real(given.data)
    real = whole.subset(torch.cat([whole.class_index(c)[: given.images] for c in range(whole.classes)]))
    real = validation_of(real, without=torch.zeros(0, dtype=torch.int64))
    path = given.out / "rows.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in POLICIES:
        if name not in rows:
            rows[name] = row(name, real, given)
            write_json(path, rows)
    print("| experts | mean squared step | max | accuracy in training % | distilled % | over Random |")
    print("|---|---|---|---|---|---|")
    for name, one in rows.items():
        steps = f"{one['mean_squared_step']:.3g} | {one['max_squared_step']:.3g} | {100 * one['train_accuracy']:.1f}"
        print(f"| {name} | {steps} | {100 * one['distilled']:.1f} | {100 * one['over_random']:+.1f} |")


if __name__ == "__main__":
    main()
