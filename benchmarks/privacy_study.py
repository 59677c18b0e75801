"""What distilled sets tell of their members: a table over methods, with an over-fitted network as positive control.

    python benchmarks/privacy_study.py results/privacy-fashion_mnist.json

A few CPU minutes: 1,000 members and 1,000 others of FashionMNIST, a small network, a protocol of 40 passes. Every
network is trained on the set alone. The control is trained on 200 members themselves, and must be found.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from datastill import distill, load_real
from datastill.apps.privacy.audit import audit
from datastill.apps.privacy.cgan import Gan, cgan
from datastill.data.real import RealSet
from datastill.evaluation.protocols import Protocol, register_protocol

NETWORK = "convnet:width=16,depth=2"
PROTOCOL = register_protocol(Protocol("over-fitted-v1", "40 passes in batches of 32.", passes=40, batch=32))


def sides(real: RealSet, size: int) -> tuple[RealSet, RealSet]:
    """Equally many members and others, each class alike."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(5))
    chosen = [order[real.labels[order] == c][: 2 * size // 10] for c in range(10)]
    halves = [torch.cat([part.chunk(2)[k] for part in chosen]) for k in (0, 1)]
    return real.subset(halves[0]), real.subset(halves[1])


def main() -> None:
    """Make and attack every set, and write the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    real = load_real("fashion_mnist")
    members, others = sides(real, 1000)
    few, few_others = sides(real, 200)
    dm = {"steps": 100, "real_batch": 32}
    cases = [
        ("control: the network is trained on 200 members", "random", few, few_others, 20, {}),
        ("cgan", "cgan", members, others, 5, {}),
        ("random", "random", members, others, 5, {}),
        ("dm from noise", "dm", members, others, 5, {**dm, "init": "noise"}),
        ("dm from real images", "dm", members, others, 5, {**dm, "init": "real"}),
        ("auto (the default)", "auto", members, others, 5, {"budget": 25.0}),
    ]
    rows = []
    for name, method, inside, outside, ipc, hyper in cases:
        cpu = time.process_time()
        if method == "cgan":
            made = cgan(inside, ipc, Gan(width=16), network=NETWORK)
        else:
            made = distill(method, inside, ipc=ipc, network=NETWORK, device="cpu", **hyper)
        found = audit(
            made, members=inside, others=outside, networks=2, protocol=PROTOCOL.name, network=NETWORK, device="cpu"
        )
        told = found.to_dict()
        told["visual"] = [{k: one[k] for k in ("by", "ratio", "copies")} for one in told["visual"]]
        rows.append({"name": name, "members": len(inside), **told, "cpu_seconds": round(time.process_time() - cpu, 1)})
        print(name, found.rows(), found.visual[0].ratio, found.visual[0].copies, found.accuracy, flush=True)
        record = {"command": f"python benchmarks/privacy_study.py {given.out}", "data": "fashion_mnist",
                  "network": NETWORK, "passes": PROTOCOL.passes, "batch": PROTOCOL.batch, "rows": rows}  # fmt: skip
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
