"""Settle a way to weigh on held-out *biased* images, as someone must who has no others.

    python benchmarks/debias_settle.py --data bg-fmnist:ratio=0.05 --out results/debias/settle-bg-fmnist.json

A fifth of the biased training images is held out. From the rest DM distills ten images per class with every way to
weigh, networks are trained on the sets and scored on the held-out images: on all of them, and on the twentieth of each
class that is oddest, once by density, once by loss, both by networks of another seed than those that the sets were
weighed by. Bias labels and the test split are read for comparison alone. A second call goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

WAYS = ("none", "kde:draw=true", *(f"loss:draw=true,power={p}" for p in (0.5, 0.7, 1.0, 1.5, 2.0)))
JUDGES = ("kde", "loss")
NETWORK, PROTOCOL = "convnet:width=32", "dsa-quick-v1"


def scores(made: Any, held: Any, odd: dict[str, torch.Tensor], seed: int, networks: int) -> dict[str, float]:
    """Accuracies in percent, means over networks that are trained on the set."""
    from datastill.core.rng import Rng
    from datastill.evaluation.protocols import get_protocol
    from datastill.models import resolve_network
    from datastill.training.hard import predict, train

    schedule = get_protocol(PROTOCOL).schedule(held.name, held.shape)
    factory = resolve_network(NETWORK, **held.network_shape)
    parts = {"held": torch.ones(len(held), dtype=torch.bool), **odd, "conflicting": held.bias != held.labels}
    found: dict[str, list[float]] = {name: [] for name in parts}
    for k in range(networks):
        rng = Rng(seed).child("settle", k)
        network = factory(rng.derive("network"))
        train(network, made.images, made.hard_labels, schedule, rng, device=torch.device("cpu"))
        right = predict(network, lambda index: held.batch(index).x, len(held)).argmax(1).cpu() == held.labels
        for name, part in parts.items():
            found[name].append(100 * float(right[part].double().mean()))
    return {name: round(sum(values) / len(values), 2) for name, values in found.items()}


def main() -> None:
    """Distill and score what is missing, print each row."""
    import datastill
    from datastill.debias.reweight import weighted_set
    from datastill.debias.trial import HELD, heaviest
    from datastill.store.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bg-fmnist:ratio=0.05")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    asked = {"data": given.data, "networks": given.networks}
    done = json.loads(given.out.read_text()) if given.out.is_file() else {**asked, "rows": []}
    made = {"networks": parser.get_default("networks"), **done}  # a file of before does not name them
    if any(made[name] != value for name, value in asked.items()):
        raise SystemExit(f"{given.out} is of other data or of another number of networks; give another --out.")
    real = datastill.load_real(given.data)
    if real.bias is None:
        raise SystemExit(f"{given.data} does not know its bias, which test accuracy is told beside; take cmnist, ...")
    for seed in range(given.seeds):
        kept, held = real.split(HELD, seed)
        odd = {f"odd by {judge}": heaviest(weighted_set(held, judge, seed + 100)[0]) for judge in JUDGES}
        for way in given.ways:
            if any(row["way"] == way and row["seed"] == seed for row in done["rows"]):
                continue
            made = datastill.distill(
                "dm", kept, ipc=10, seed=seed, network=NETWORK, debias=way, steps=300, augment="none", real_batch=64,
                image_lr=10,
            )  # fmt: skip
            row = {"way": way, "seed": seed, **scores(made, held, odd, seed, given.networks)}
            row["test"] = round(100 * datastill.evaluate(
                made, real, networks=given.networks, network=NETWORK, protocol=PROTOCOL, random=False
            ).mean, 2)  # fmt: skip
            done["rows"].append(row)
            write_json(given.out, done)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
