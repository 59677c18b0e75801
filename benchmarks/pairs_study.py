r"""Pairs of images and sentences: methods at about equal CPU time, beside random pairs and chance.

    python benchmarks/pairs_study.py --data shapecaps --out results/pairs-shapecaps.json
    python benchmarks/pairs_study.py --data fashion-attributes --moments-steps 300 \
        --out results/pairs-fashion-attributes.json

Each method is run from one seed with the steps that are given, and scored under vl-v1; random pairs are drawn from
three seeds. CPU seconds are those of the process, experts included. FashionMNIST is needed by name for the second.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import datastill
from datastill.core.registry import get_method, with_overrides

NETWORK = "convnet:width=32,norm=group"
MTT = {"max_start": 4, "expert_count": 3, "expert_epochs": 4, "expert_lr": 0.03, "student_lr": 0.03}
#: Pairs in an epoch of an expert.
EPOCH = 2000


def measured(
    name: str, real: datastill.data.RealSet, pairs: int, networks: int, seed: int, **hyper: Any
) -> dict[str, Any]:
    """One set, its CPU time and its scores."""
    start = time.process_time()
    method = with_overrides(get_method(name).cls(), hyper)
    made = datastill.distill(method, real, ipc=pairs, network=NETWORK, seed=seed)
    cpu = time.process_time() - start
    scored = datastill.evaluate(made, real, networks=networks, random=False)
    return {
        "method": name,
        "hyper": hyper,
        "seed": seed,
        "cpu_seconds": round(cpu, 1),
        "recalls": {key: round(value, 4) for key, value in scored.distilled.recalls.items()},
        "mean_recall": round(scored.mean, 4),
        "lr": scored.distilled.rates,
        "chance": {key: round(value, 4) for key, value in scored.chance.items()},
    }


def main() -> None:
    """Run, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="shapecaps")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--moments-steps", type=int, default=500)
    parser.add_argument("--mtt-steps", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    real = datastill.load_pairs(asked.data)
    found = [measured("random", real, asked.pairs, asked.networks, seed) for seed in range(3)]
    for name, hyper in (
        ("vl-moments", {"steps": asked.moments_steps}),
        ("vl-mtt", {"steps": asked.mtt_steps, **MTT, "expert_part": min(1.0, EPOCH / len(real))}),
    ):
        if hyper["steps"]:
            found.append(measured(name, real, asked.pairs, asked.networks, 0, **hyper))
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "data": real.describe(), "network": NETWORK, "pairs": asked.pairs, "protocol": "vl-v1", "runs": found,
        }  # fmt: skip
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
