"""What is worth storing of an image? Distribution matching at one image per class, in five kinds of codes.

    python benchmarks/codes_study.py --out results/codes-fashion_mnist.json --units runs/units
    python benchmarks/codes_study.py --show results/codes-fashion_mnist.json

Every arm gets the same CPU seconds of steps (steps are counted once and written down), and but for "glad f2" at most
the bytes of one stored image for each class; what its decoder takes and cost to train is told beside. "random" arms
are the same codes before any step. Scored on the network that made the sets and on two that did not, on the first
test images. Safe to stop and start again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from clock import steps_for

from datastill import distill, evaluate, load_real
from datastill.core.cost import environment
from datastill.data import RealSet
from datastill.evaluation.protocols import get_protocol
from datastill.store.files import write_json

MADE_ON = "convnet:width=32,depth=3"
UNSEEN = ("lenet", "mlp")
#: Codes, and images per class that take the bytes of one stored image or fewer.
ARMS = {
    "pixels": ("method", 1),
    "glad w": ("glad:layer=w", 2),
    "glad f2": ("glad:layer=f2", 1),
    "ld3m": ("ld3m:steps=5,train=450", 3),
    "dct": ("dct:kept=49,instances=16", 1),
}
STEP: dict[str, Any] = {"network": MADE_ON, "real_batch": 16}


def one_arm(real: RealSet, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """An arm, and the same codes before any step."""
    codes, ipc = ARMS[name]
    how: Any = {"ipc": ipc, "codes": codes, "units": args.units, **STEP}
    steps = steps_for(args.seconds, lambda n, watched: distill("dm", real, steps=n, callbacks=watched, **how))
    begun = time.process_time()
    made = distill("dm", real, steps=steps, **how)
    spent = time.process_time() - begun
    start = distill("random", real, ipc=ipc, codes=codes, units=args.units, network=MADE_ON)
    images = {key: leaf.shape[1:].numel() for key, leaf in made.codes.items()}
    return {
        "codes": codes,
        "ipc": ipc,
        "steps": steps,
        "cpu_seconds": round(spent, 1),
        "prepare_seconds": made.manifest["cost"]["prepare_seconds"],
        "numbers_per_class": ipc * sum(images.values()),
        "images_per_class": len(made.images) // real.classes,
        "decoder_bytes": sum(t.numel() * t.element_size() for t in made.decoder_weights.values()),
        "accuracy": {network: scored(made, real, network, args) for network in (MADE_ON, *UNSEEN)},
        "before": {network: scored(start, real, network, args) for network in (MADE_ON, *UNSEEN)},
    }


def scored(made: Any, real: RealSet, network: str, args: argparse.Namespace) -> list[float]:
    """Accuracies of a few networks."""
    protocol = dataclasses.replace(get_protocol("dc-v1"), passes=args.passes)
    found = evaluate(made, real, network=network, networks=args.networks, protocol=protocol, random=False)
    return [round(100 * value, 2) for value in found.distilled.accuracies.flatten().tolist()]


def study(args: argparse.Namespace) -> None:
    """Fill in what is missing."""
    real = load_real(args.data)
    assert real.test is not None
    real = dataclasses.replace(real, test=real.test.subset(torch.arange(args.test)))
    asked = {name: getattr(args, name) for name in ("data", "seconds", "networks", "passes", "test")}
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"asked": asked, "arms": {}}
    for name in ARMS:
        if name not in record["arms"]:
            record["arms"][name] = one_arm(real, name, args)
            write_json(args.out, {**record, **environment(torch.device("cpu"))})
            print(name, record["arms"][name], flush=True)


def show(path: Path) -> None:
    """The table of the docs page."""
    record = json.loads(path.read_text())
    heads = [MADE_ON.partition(":")[0], *UNSEEN]
    print(f"| codes | numbers a class | images a class | steps | {' | '.join(heads)} | decoder |")
    print("|---" * (5 + len(heads)) + "|")
    for name, arm in record["arms"].items():
        cells = []
        for network in (MADE_ON, *UNSEEN):
            after, before = (sum(arm[key][network]) / len(arm[key][network]) for key in ("accuracy", "before"))
            cells.append(f"{after:.1f} ({before:.1f})")
        sizes = f"{arm['numbers_per_class']:,} | {arm['images_per_class']} | {arm['steps']}"
        print(f"| {name} | {sizes} | {' | '.join(cells)} | {arm['decoder_bytes'] / 1e3:,.0f} kB |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--out", type=Path, default=Path("results/codes-fashion_mnist.json"))
    parser.add_argument("--units", type=Path, default=Path("runs/units"))
    parser.add_argument("--show", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--passes", type=int, default=150)
    parser.add_argument("--test", type=int, default=1000)
    given = parser.parse_args()
    show(given.show) if given.show else study(given)
