"""FedDM beside FedAvg and FedProx by round and megabyte, with privacy at several noise levels, and FedMK on MNIST.

    python benchmarks/federated_study.py rounds results/federated-fashion_mnist.json
    python benchmarks/federated_study.py privacy results/federated-privacy-fashion_mnist.json
    python benchmarks/federated_study.py condensed results/federated-mnist.json

All take a few CPU minutes: a small network, few images and few rounds. They compare, and reproduce no paper.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from datastill import load_real
from datastill.apps.federated.averaging import FedAvg, FedProx
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.fedmk import FedMK
from datastill.apps.federated.runner import federated

NETWORKS = {"rounds": "convnet:width=16", "privacy": "convnet:width=32", "condensed": "convnet:width=16"}
IMAGES = {"rounds": 10_000, "privacy": 60_000, "condensed": 3_000}
COMMON = {"clients": 10, "partition": "dirichlet:0.5", "seed": 0, "device": "cpu"}


def by_round() -> list[tuple[str, object, dict]]:
    """The three strategies, from one partition and one start."""
    feddm = FedDM(ipc=5, steps=30, real_batch=32, server_passes=30)
    return [("feddm", feddm, {"rounds": 3}), ("fedavg", FedAvg(), {"rounds": 5}), ("fedprox", FedProx(), {"rounds": 5})]


def by_noise() -> list[tuple[str, object, dict]]:
    """FedDM without a mechanism, and at four noise multipliers."""
    plain = FedDM(ipc=2, steps=30, server_passes=30, real_batch=60)
    found: list[tuple[str, object, dict]] = [("no mechanism", plain, {"rounds": 2})]
    for sigma in (0.0, 1.0, 2.0, 5.0):
        private = replace(
            plain, mechanism="embedding", sigma=sigma, clip=5.0, sample_rate=0.1, updates=3, count_sigma=10.0
        )
        found.append((f"sigma {sigma:g}", private, {"rounds": 2}))
    return found


def by_sharing() -> list[tuple[str, object, dict]]:
    """FedMK, without what clients pass around and without the generator, beside FedAvg, ten rounds of five clients."""
    fedmk = FedMK(ipc=5, steps=30, real_batch=32, server_passes=30)
    options = {"rounds": 10}
    runs = [
        ("fedmk", fedmk),
        ("no sharing", replace(fedmk, share=False)),
        ("no generator", replace(fedmk, generator_steps=0)),
    ]
    return [(name, one, options) for name, one in [*runs, ("fedavg", FedAvg())]]


STUDIES = {"rounds": by_round, "privacy": by_noise, "condensed": by_sharing}


def main() -> None:
    """Run one study and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, help="training images, instead of the study's own number")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    given = parser.parse_args()
    real = load_real("mnist" if given.study == "condensed" else "fashion_mnist")
    count = given.images or IMAGES[given.study]
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    real = real.subset(order[:count])
    common = {**COMMON, "network": NETWORKS[given.study], **({"clients": 5} if given.study == "condensed" else {})}
    runs = []
    for name, strategy, options in STUDIES[given.study]():
        started, cpu = time.perf_counter(), time.process_time()
        keep = given.keep / name.replace(" ", "-") if given.keep else None
        made = federated(strategy, real, **common, **options, out=keep)  # type: ignore[arg-type]
        told = made.to_dict()
        told = {n: told[n] for n in ("strategy", "options", "rounds", "privacy", "clients_images", "notes")}
        runs.append({"name": name, **told, "seconds": round(time.perf_counter() - started, 1),
                     "cpu_seconds": round(time.process_time() - cpu, 1)})  # fmt: skip
        print(name, made.table(), runs[-1]["cpu_seconds"], flush=True)
        record = {"command": f"python benchmarks/federated_study.py {given.study} {given.out}", "data": real.name,
                  "train_images": count, **common, "runs": runs}  # fmt: skip
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
