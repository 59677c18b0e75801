"""Do the defaults beat Random on networks other than the ConvNet? One image per class.

    python benchmarks/other_networks.py --out results/other-networks-3.json
    python benchmarks/other_networks.py --show results/other-networks-3.json

DM, DSA and the method that is taken where none is named, on a ResNet18 with batch norm and on torchvision's, each with
the published defaults but fewer steps and real images, so that a CPU is enough. Scored on the network itself and on a
ConvNet (digits under dc-v1, else dsa-quick-v1), on the first 1,000 test images. Safe to stop and start again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from datastill import distill, evaluate, load_real
from datastill.core.cost import environment
from datastill.data import RealSet
from datastill.store.files import write_json

NETWORKS = ("torchvision/resnet18", "resnet18:norm=batch")
#: How networks are trained on the sets: fewer passes where images are larger.
PROTOCOLS = {"digits": "dc-v1", "fashion_mnist": "dsa-quick-v1"}
SETTINGS: dict[str, dict[str, Any]] = {
    "random": {},
    "dm": {"steps": 200, "real_batch": 32},
    "dsa": {"steps": 100, "real_batch": 32},
    "auto": {"budget": 30.0},
}


def first(real: RealSet, count: int) -> RealSet:
    """With the first `count` test images."""
    test = real.test
    assert test is not None
    return dataclasses.replace(real, test=test.subset(torch.arange(min(count, len(test)))))


def scored(made: Any, real: RealSet, network: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Accuracies on the network itself and on a ConvNet."""
    score: Any = {"networks": args.networks, "protocol": PROTOCOLS.get(real.name, "dc-v1"), "random": False}
    found = {on: evaluate(made, real, network=on, **score) for on in (network, "convnet")}
    return {on: one.distilled.accuracies.flatten().tolist() for on, one in found.items()}


def study(args: argparse.Namespace) -> None:
    """Fill in what is missing."""
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"cells": {}}
    for data, network, method in itertools.product(args.data, args.on, args.methods):
        key = f"{data}|{network}|{method}"
        if key not in record["cells"]:
            real = first(load_real(data), 1000)
            made = distill(method, real, ipc=1, network=network, seed=0, units=args.units, **args.settings[method])
            one = {"method": made.manifest["method"], "cost": made.manifest["cost"]}
            record["cells"][key] = one | {"accuracies": scored(made, real, network, args)}
            record["environment"], record["settings"] = environment(torch.device("cpu")), args.settings
            write_json(args.out, record)
            print(key, record["cells"][key], flush=True)


def show(path: Path) -> None:
    """As Markdown: accuracy on the network itself, and on a ConvNet."""
    print("| data | network | method | on it | on ConvNet |\n|---|---|---|---|---|")
    for key, one in json.loads(path.read_text())["cells"].items():
        means = " | ".join(f"{100 * sum(n) / len(n):.1f}" for n in one["accuracies"].values())
        print(f"| {key.replace('|', ' | ')} ({one['method']}) | {means} |")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=["digits", "fashion_mnist"])
    parser.add_argument("--on", nargs="*", default=NETWORKS, help="the networks")
    parser.add_argument("--methods", nargs="*", default=[*SETTINGS])
    parser.add_argument("--steps", nargs="*", default=[], help="other steps of a method: dm=50")
    parser.add_argument("--networks", type=int, default=3, help="how many are trained on each set")
    parser.add_argument("--units", type=Path, default=Path("runs/other-units"))
    parser.add_argument("--out", type=Path, default=Path("results/other-networks-3.json"))
    parser.add_argument("--show", type=Path, help="the file of a study")
    args = parser.parse_args()
    given = {name: {"steps": int(steps)} for name, steps in (one.split("=") for one in args.steps)}
    args.settings = {name: {**own, **given.get(name, {})} for name, own in SETTINGS.items()}
    torch.set_num_threads(1)
    if args.show:
        show(args.show)
    else:
        study(args)


if __name__ == "__main__":
    main()
