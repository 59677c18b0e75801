"""FedDM beside FedAvg and FedProx by round and megabyte, with privacy at several noise levels, and FedMK on MNIST.

    python benchmarks/federated_study.py rounds results/federated-rounds-fashion_mnist.json
    python benchmarks/federated_study.py rounds results/federated-rounds-cifar10.json --data cifar10
    python benchmarks/federated_study.py privacy results/federated-privacy-fashion_mnist.json
    python benchmarks/federated_study.py privacy results/federated-privacy-cifar10.json --data cifar10
    python benchmarks/federated_study.py condensed results/federated-mnist.json
    python benchmarks/federated_study.py figure docs/images/federated_rounds.png \\
      --rows results/federated-rounds-fashion_mnist.json results/federated-rounds-cifar10.json
    python benchmarks/federated_study.py show results/federated-mnist.json     # the table of a file, in Markdown

All take a few CPU minutes: a small network, few images and few rounds. They compare, and reproduce no paper. A study
that was stopped goes on with the run that is missing; with `--keep` it goes on within that run, whose CPU seconds are
then those of the last call.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datastill import load_real
from datastill.apps.federated.averaging import FedAvg, FedProx
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.fedmk import FedMK
from datastill.apps.federated.result import epsilon_text
from datastill.apps.federated.runner import federated, options_of
from datastill.data.real import RealSet
from datastill.store.files import write_json

NETWORKS = {"rounds": "convnet:width=16", "privacy": "convnet:width=32", "condensed": "convnet:width=16"}
IMAGES = {"rounds": 10_000, "privacy": 60_000, "condensed": 3_000}
#: Rounds in a table, beside the last one.
SHOWN = (1, 2, 3, 5)
COMMON = {"clients": 10, "partition": "dirichlet:0.5", "seed": 0, "device": "cpu"}


def by_round() -> list[tuple[str, Any, dict]]:
    """The three strategies, from one partition and one start, and FedDM with more steps of clients and server."""
    feddm = FedDM(ipc=5, steps=30, real_batch=32, server_passes=30)
    return [
        ("feddm", feddm, {"rounds": 6}),
        ("fedavg", FedAvg(), {"rounds": 10}),
        ("fedprox", FedProx(), {"rounds": 10}),
        ("feddm, 100 steps", replace(feddm, steps=100, server_passes=100), {"rounds": 6}),
    ]


def by_noise() -> list[tuple[str, Any, dict]]:
    """FedDM without a mechanism, and at four noise multipliers."""
    plain = FedDM(ipc=2, steps=30, server_passes=30, real_batch=60)
    found: list[tuple[str, Any, dict]] = [("no mechanism", plain, {"rounds": 2})]
    for sigma in (0.0, 1.0, 2.0, 5.0):
        private = replace(
            plain, mechanism="embedding", sigma=sigma, clip=5.0, sample_rate=0.1, updates=3, count_sigma=10.0
        )
        found.append((f"sigma {sigma:g}", private, {"rounds": 2}))
    return found


def by_sharing() -> list[tuple[str, Any, dict]]:
    """FedMK and three forms of it beside FedAvg, ten rounds of five clients."""
    fedmk = FedMK(ipc=5, steps=30, real_batch=32, server_passes=30)
    plain = replace(fedmk, generator_steps=0)
    runs: list[tuple[str, Any]] = [
        ("fedmk", fedmk),
        ("fedavg", FedAvg()),
        ("fedavg, 5 local passes", FedAvg(local_passes=5)),
        ("fedmk, no generator", plain),
        ("fedmk, neither generator nor sharing", replace(plain, share=False)),
        ("fedmk, no generator, 3 inner steps", replace(plain, inner_steps=3, server_lr=0.03)),
    ]
    return [(name, one, {"rounds": 10}) for name, one in runs]


STUDIES = {"rounds": by_round, "privacy": by_noise, "condensed": by_sharing}


def played(name: str, strategy: Any, real: RealSet, options: dict[str, Any], keep: Path | None) -> dict[str, Any]:
    """One run of a study, as it is kept."""
    started, cpu = time.perf_counter(), time.process_time()
    made = federated(strategy, real, **options, out=keep and keep / name.replace(" ", "-"))
    print(name, made.table(), flush=True)
    told = made.to_dict()
    kept = {n: told[n] for n in ("strategy", "options", "rounds", "privacy", "clients_images", "notes")}
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    return {"name": name, **kept, **{n: round(value, 1) for n, value in seconds.items()}}


def study(given: argparse.Namespace) -> None:
    """Make the runs that the file lacks."""
    name = given.data or ("mnist" if given.study == "condensed" else "fashion_mnist")
    count = given.images or IMAGES[given.study]
    real = load_real(name)
    real = real.subset(torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:count])
    common = {**COMMON, "network": NETWORKS[given.study], **({"clients": 5} if given.study == "condensed" else {})}
    command = f"python benchmarks/federated_study.py {given.study} {given.out}"
    head = {"command": command + (f" --data {given.data}" if given.data else ""), "data": real.name,
            "train_images": len(real), **common}  # fmt: skip
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    if {n: value for n, value in kept.items() if n != "runs"} != head:
        kept = {}  # of another study, or of none
    runs = {one["name"]: one for one in kept.get("runs", [])}
    for label, strategy, options in STUDIES[given.study]():
        if given.only and label not in given.only:
            continue
        there = runs.get(label)
        as_asked = json.loads(json.dumps(options_of(strategy)))
        if there is None or there["options"] != as_asked or len(there["rounds"]) != options["rounds"]:
            runs[label] = played(label, strategy, real, {**common, **options}, given.keep)
            write_json(given.out, {**head, "runs": list(runs.values())})


def figure(given: argparse.Namespace) -> None:
    """Test accuracy by round and by megabyte, a row of panels for each file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    drawn = Figure(figsize=(7.2, 2.8 * len(given.rows)), layout="constrained")
    for panels, path in zip(drawn.subplots(len(given.rows), 2, squeeze=False, sharey="row"), given.rows, strict=True):
        told = json.loads(path.read_text())
        for one, line in zip(told["runs"], ("o-", "s-", "x--", "^-"), strict=False):
            accuracy = [100 * r["accuracy"] for r in one["rounds"]]
            for axes, x in zip(panels, ([r["round"] + 1 for r in one["rounds"]],
                                        [r["megabytes"] for r in one["rounds"]]), strict=True):  # fmt: skip
                axes.plot(x, accuracy, line, label=one["name"], markersize=4)
        panels[0].set(xlabel="round", ylabel="test accuracy, %", title=told["data"])
        panels[1].set(xlabel="MB sent, both ways", xscale="log", title=f"{told['network']}, {told['clients']} clients")
        panels[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[1].xaxis.set_major_formatter("{x:g}")
        panels[1].xaxis.set_minor_formatter(NullFormatter())
        panels[0].legend(frameon=False)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(given.out, dpi=120)


def show(given: argparse.Namespace) -> None:
    """Tables in Markdown: some rounds of each run, or the last one with its epsilon."""
    told = json.loads(given.out.read_text())
    private = any(one["privacy"] for one in told["runs"])
    for one in told["runs"]:
        for r in one["rounds"]:
            last = r["round"] + 1 == len(one["rounds"])
            cells = [one["name"], str(r["round"] + 1), f"{100 * r['accuracy']:.1f}", f"{r['megabytes']:.2f}"]
            if private:
                cells += [epsilon_text(one["privacy"][r["round"]]["epsilon"]) if one["privacy"] else "–"]
            if last or (not private and r["round"] + 1 in SHOWN):
                print("| " + " | ".join([*cells, f"{one['cpu_seconds']:.0f}" if last else ""]) + " |")
    print(f"\n{sum(one['cpu_seconds'] for one in told['runs']) / 60:.1f} CPU minutes")


def main() -> None:
    """Run one study, or show what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "figure", "show"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="another data set than the study's own")
    parser.add_argument("--images", type=int, help="training images, instead of the study's own number")
    parser.add_argument("--only", nargs="+", help="runs of the study to make, by their names")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    parser.add_argument("--rows", type=Path, nargs="+", help="files of `rounds` that the figure shows")
    given = parser.parse_args()
    {"figure": figure, "show": show}.get(given.study, study)(given)


if __name__ == "__main__":
    main()
