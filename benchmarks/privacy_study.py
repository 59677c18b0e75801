"""What distilled sets tell of their members: a table over methods, with an over-fitted network as positive control.

    python benchmarks/privacy_study.py results/privacy-halves-fashion_mnist.json
    python benchmarks/privacy_study.py results/privacy-halves-cifar10.json --data cifar10
    python benchmarks/privacy_study.py results/privacy-halves-cifar10.json --data cifar10 --show   # in Markdown

The setting of the literature: two disjoint halves of 500 images per class, one of members, and 1 or 5 synthetic images
per class, so that r_ipc, synthetic images over members of a class, is .002 or .01. Few steps, a small network, a
protocol of 40 passes: some ten CPU minutes for each data set. Every network is trained on the set alone. The control
is trained on 200 members themselves, and must be found. A study that was stopped goes on with the row that is missing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from datastill import distill, load_real
from datastill.apps.privacy.audit import audit
from datastill.apps.privacy.cgan import Gan, cgan
from datastill.data.real import RealSet
from datastill.evaluation.protocols import Protocol, register_protocol
from datastill.store.files import write_json

NETWORK = "convnet:width=16,depth=2"
PROTOCOL = register_protocol(Protocol("over-fitted-v1", "40 passes in batches of 32.", passes=40, batch=32))
#: Members of each class, and synthetic images of each class.
MEMBERS, IPC = 500, (1, 5)
CONTROL = "control: the network is trained on 200 members"

DM = {"steps": 100, "real_batch": 32}
DSA = {"steps": 60, "outer": 6, "inner": 5, "real_batch": 32}
#: Labels stay those of the classes, so that the networks of all rows are trained alike.
KIP = {"steps": 100, "real_batch": 50, "target_labels": "fixed"}
STAGES = {"steps": 100, "width": 16, "expert_count": 2, "expert_updates": 200, "statistics_images": 100}
#: Of every row: its method and hyper-parameters.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "cgan": ("cgan", {"width": 16, "epochs": 6}),
    "random": ("random", {}),
    "dm from noise": ("dm", {**DM, "init": "noise"}),
    "dm from real images": ("dm", {**DM, "init": "real"}),
    "dsa from noise": ("dsa", {**DSA, "init": "noise"}),
    "dsa from real images": ("dsa", {**DSA, "init": "real"}),
    "kip from noise": ("kip", {**KIP, "init": "noise"}),
    "kip from real images": ("kip", {**KIP, "init": "real"}),
    # pixels have further to go than from tiles of real images: at the rate for those, noise stays noise
    "stages from noise": ("stages", {**STAGES, "init": "noise", "image_lr": 0.1}),
    "stages, its own start": ("stages", STAGES),
}


def sides(real: RealSet, size: int) -> tuple[RealSet, RealSet]:
    """Equally many members and others, each class alike."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(5))
    chosen = [order[real.labels[order] == c][: 2 * size // 10] for c in range(10)]
    halves = [torch.cat([part.chunk(2)[k] for part in chosen]) for k in (0, 1)]
    return real.subset(halves[0]), real.subset(halves[1])


def attacked(inside: RealSet, outside: RealSet, method: str, ipc: int, hyper: dict[str, Any]) -> dict[str, Any]:
    """A set from the members, and what an attack on it finds."""
    cpu = time.process_time()
    if method == "cgan":
        made = cgan(inside, ipc, Gan(**hyper), network=NETWORK)
    else:
        made = distill(method, inside, ipc=ipc, network=NETWORK, device="cpu", **hyper)
    found = audit(
        made, members=inside, others=outside, images=len(inside), networks=2, protocol=PROTOCOL.name, network=NETWORK,
        device="cpu",
    )  # fmt: skip
    told = found.to_dict()
    told["visual"] = [{k: one[k] for k in ("by", "ratio", "copies")} for one in told["visual"]]
    del told["networks"]
    return {"members": len(inside), "hyper": hyper, **told, "cpu_seconds": round(time.process_time() - cpu, 1)}


def cases() -> list[tuple[str, int, str, dict[str, Any]]]:
    """Name, images per class, method and hyper-parameters of every row."""
    found: list[tuple[str, int, str, dict[str, Any]]] = [(CONTROL, 20, "random", {})]
    return found + [(name, ipc, method, hyper) for ipc in IPC for name, (method, hyper) in ROWS.items()]


def study(data: str, out: Path) -> None:
    """Make the rows that the file lacks."""
    real = load_real(data)
    halves, few = sides(real, 10 * MEMBERS), sides(real, 200)
    command = f"python benchmarks/privacy_study.py {out}" + ("" if data == "fashion_mnist" else f" --data {data}")
    head = {"command": command, "data": data, "network": NETWORK, "passes": PROTOCOL.passes, "batch": PROTOCOL.batch}
    kept = json.loads(out.read_text()) if out.exists() else {}
    kept = kept if {k: v for k, v in kept.items() if k != "rows"} == head else {}
    rows = {(one["name"], one["ipc"]): one for one in kept.get("rows", [])}
    for name, ipc, method, hyper in cases():
        both, there = few if name == CONTROL else halves, rows.get((name, ipc))
        if there is not None and there.get("hyper") == hyper and there["members"] == len(both[0]):
            continue
        found = attacked(*both, method, ipc, hyper)
        rows[name, ipc] = {"name": name, "ratio": ipc / (20 if name == CONTROL else MEMBERS), **found}
        print(name, ipc, *cells(rows[name, ipc]), flush=True)
        write_json(out, {**head, "rows": list(rows.values())})


def cells(row: dict[str, Any]) -> list[str]:
    """Of a row in the docs: advantages, AUC, TPR, ratio of distances, copies, accuracy."""
    told = row["membership"]
    advantage, look = told["advantage_percent"], row["visual"][0]
    return [
        f"{advantage['calibration']:+.1f}", f"{advantage['oracle']:+.1f}", f"{told['auc']:.3f}",
        f"{100 * told['tpr_at_fpr']['0.01']:.1f}", f"{look['ratio']:.2f}", str(look["copies"]),
        f"{100 * row['accuracy']:.1f}",
    ]  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """The table in Markdown, a row for each method with a cell for each ratio."""
    by_name: dict[str, list[list[str]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(cells(row))
    for name, found in by_name.items():
        print("| " + " | ".join([name, *(" / ".join(values) for values in zip(*found, strict=True))]) + " |")
    errors = [f"{row['membership']['auc_error']:.3f}" for row in (rows[0], rows[-1])]
    print(f"\nAUC by chance: ± {errors[0]} of the control, ± {errors[1]} of the others")
    print(f"{sum(one['cpu_seconds'] for one in rows) / 60:.1f} CPU minutes")


def main() -> None:
    """Make and attack every set, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="fashion_mnist", help="ten classes of 1,000 images or more")
    parser.add_argument("--show", action="store_true", help="print the table of the file, and make nothing")
    given = parser.parse_args()
    if not given.show:
        study(given.data, given.out)
    show(json.loads(given.out.read_text())["rows"])


if __name__ == "__main__":
    main()
