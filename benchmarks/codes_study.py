"""What is worth storing of an image? Distribution matching at one image per class, in five kinds of codes.

    python benchmarks/codes_study.py --out results/codes-fashion_mnist.json --units runs/units
    python benchmarks/codes_study.py --show results/codes-fashion_mnist.json
    python benchmarks/codes_study.py --data enlarged --seconds 30 --passes 100 --out results/codes-enlarged.json
    python benchmarks/codes_study.py --data photographs --seconds 30 --passes 100 --out results/codes-photographs.json

Every arm gets the same CPU seconds of steps (steps are counted once and written down), and but for "glad f2" at most
the bytes of one stored image for each class; what its decoder takes and cost to train is told beside. "random" arms
are the same codes before any step. Scored on the network that made the sets and on two that did not, on the first
test images. The two sets of 128 pixels have pixels and frequencies alone, on a deeper network: "enlarged" is CIFAR-10
enlarged, "photographs" has crops of the two sample photographs of scikit-learn. Safe to stop and start again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clock import steps_for
from torch.nn.functional import interpolate

from datastill import distill, evaluate, load_real
from datastill.core.cost import environment
from datastill.data import RealSet
from datastill.evaluation.protocols import get_protocol
from datastill.store.files import write_json
from datastill.store.sizes import bytes_of_parts

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
#: The sets of 128 pixels: kinds of codes, and the network that makes sets and scores them.
SIDE, LARGE_ARMS, LARGE_NET = 128, {"pixels": ("method", 1), "dct": ("dct", 1)}, "convnet:width=16,depth=5"


def enlarged(per_class: int) -> RealSet:
    """CIFAR-10 at 128 pixels by bicubic interpolation, the first images of each class: high frequencies are empty."""
    small = load_real("cifar10")
    assert small.test is not None
    some = torch.cat([small.class_index(c)[:per_class] for c in range(small.classes)])
    pairs = [
        (part.pixels(index), part.labels[index]) for part, index in ((small, some), (small.test, torch.arange(1000)))
    ]
    sides = [(interpolate(x, size=SIDE, mode="bicubic").clamp(0, 1).numpy(), y.numpy()) for x, y in pairs]
    return load_real(tuple(sides), class_names=small.class_names)


def photographs(per_class: int) -> RealSet:
    """Crops of scikit-learn's china.jpg and flower.jpg: six classes, the upper, middle and lower third of each.

    Each is cut into four columns of 160 pixels. Training crops lie within the first and third, test crops within the
    second and fourth, so that no pixel is in both.
    """
    from sklearn.datasets import load_sample_images

    rng, columns = np.random.default_rng(0), {"train": (0, 320), "test": (160, 480)}
    sides: dict[str, tuple[list[Any], list[int]]] = {split: ([], []) for split in columns}
    for split, (images, labels) in sides.items():
        for label, (photo, third) in enumerate(itertools.product(load_sample_images().images, range(3))):
            for k in range(per_class if split == "train" else per_class // 2):
                top = third * 142 + int(rng.integers(142 - SIDE + 1))
                left = columns[split][k % 2] + int(rng.integers(160 - SIDE + 1))
                images.append(photo[top : top + SIDE, left : left + SIDE])
                labels.append(label)
    train, test = ((np.stack(images), np.array(labels)) for images, labels in (sides["train"], sides["test"]))
    return load_real((train, test))


LARGE = {"enlarged": enlarged, "photographs": photographs}


def step(args: argparse.Namespace) -> dict[str, Any]:
    """The step of all arms."""
    return {"network": scored_on(args.data)[0], "real_batch": 16}


def scored_on(data: str) -> tuple[str, ...]:
    """The network that makes sets, and those that have no part in it."""
    return (LARGE_NET,) if data in LARGE else (MADE_ON, *UNSEEN)


def one_arm(real: RealSet, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """An arm, and the same codes before any step."""
    (codes, ipc), networks = (LARGE_ARMS if args.data in LARGE else ARMS)[name], scored_on(args.data)
    how: Any = {"ipc": ipc, "codes": codes, "units": args.units, **step(args)}
    steps = steps_for(args.seconds, lambda n, watched: distill("dm", real, steps=n, callbacks=watched, **how))
    begun = time.process_time()
    made = distill("dm", real, steps=steps, **how)
    spent = time.process_time() - begun
    start = distill("random", real, ipc=ipc, codes=codes, units=args.units, network=networks[0])
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
        "bytes": bytes_of_parts(made),
        "accuracy": {network: scored(made, real, network, args) for network in networks},
        "before": {network: scored(start, real, network, args) for network in networks},
    }


def scored(made: Any, real: RealSet, network: str, args: argparse.Namespace) -> list[float]:
    """Accuracies of a few networks."""
    protocol = dataclasses.replace(get_protocol("dc-v1"), passes=args.passes)
    found = evaluate(made, real, network=network, networks=args.networks, protocol=protocol, random=False)
    return [round(100 * value, 2) for value in found.distilled.accuracies.flatten().tolist()]


def study(args: argparse.Namespace) -> None:
    """Fill in what is missing."""
    real = LARGE[args.data](args.per_class) if args.data in LARGE else load_real(args.data)
    assert real.test is not None
    real = dataclasses.replace(real, test=real.test.subset(torch.arange(min(args.test, len(real.test)))))
    asked = {name: getattr(args, name) for name in ("data", "seconds", "networks", "passes", "test", "per_class")}
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {"asked": asked, "arms": {}}
    for name in LARGE_ARMS if args.data in LARGE else ARMS:
        if name not in record["arms"]:
            record["arms"][name] = one_arm(real, name, args)
            write_json(args.out, {**record, **environment(torch.device("cpu"))})
            print(name, record["arms"][name], flush=True)


def show(path: Path) -> None:
    """The table of the docs page."""
    record = json.loads(path.read_text())
    networks = scored_on(record["asked"]["data"])
    heads = [network.partition(":")[0] for network in networks]
    print(f"| codes | numbers a class | images a class | steps | {' | '.join(heads)} | decoder |")
    print("|---" * (5 + len(heads)) + "|")
    for name, arm in record["arms"].items():
        cells = []
        for network in networks:
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
    parser.add_argument("--per-class", type=int, default=200, help="training images of the sets of 128 pixels")
    given = parser.parse_args()
    show(given.show) if given.show else study(given)
