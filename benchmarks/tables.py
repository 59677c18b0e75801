"""Methods of one family beside each other, each set scored in several ways: the tables of docs/results.md.

    python benchmarks/tables.py kernels --data fashion_mnist --ipc 1
    python benchmarks/tables.py trajectories --data cifar10 --ipc 10
    python benchmarks/tables.py decoupled --data fashion_mnist --ipc 10
    python benchmarks/tables.py decoupled --data cifar10 --ipc 10 --teacher teachers/resnet20 \\
        --teacher-network benchmarks/resnet20.py:ResNet20 --rows Random SRe2L DWA RDED --out results/table.json
    python benchmarks/tables.py show results/table-kernels-fashion_mnist-ipc1.json

Every method has the same --budget of processor seconds on one thread, what it prepares apart (experts and teachers are
trained once for all rows) told beside. One set a seed, scored on test images by --networks networks. Safe to stop and
start again: a cell in the file is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from clock import steps_for
from squeezed import teacher_in

from datastill import distill, evaluate, load_real
from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import environment
from datastill.core.errors import DatastillError
from datastill.core.plan import Callback
from datastill.core.registry import Method, with_overrides
from datastill.data import RealSet
from datastill.distillation.budget import within
from datastill.distillation.job import prepare_job
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.surrogates.experts import train_experts
from datastill.surrogates.teachers import load_teacher

Settings = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows are methods with their settings, columns are arguments of `evaluate`."""

    rows: dict[str, tuple[str, Settings]]
    columns: dict[str, Settings]
    network: str = "convnet"
    shared: str = ""  #: what is trained once: "experts" or "teacher"
    unscored: set[tuple[str, str]] = field(default_factory=set)  #: rows and columns that do not go together
    same: Settings = field(default_factory=dict)  #: what all methods have that are not told otherwise


KERNELS = Table(
    rows={
        "Random": ("random", {}),
        "KIP": ("kip", {}),
        "FRePo": ("frepo", {}),
        "DD": ("dd", {}),
        "DM": ("dm", {}),
        "dm-fast": ("dm-fast", {}),
    },
    columns={
        "kernel": {"protocol": "krr-v1"},
        "squared error": {"protocol": "frepo-quick-v1", "network": "convnet:norm=none"},
        "cross-entropy": {"protocol": "dsa-quick-v1"},
        "its own steps": {"protocol": "dd-v1"},
    },
    unscored={(row, "its own steps") for row in ("Random", "KIP", "FRePo", "DM", "dm-fast")}
    | {(row, "cross-entropy") for row in ("KIP", "FRePo")},
)
TRAJECTORIES = Table(
    rows={
        "Random": ("random", {}),
        "MTT": ("mtt", {}),
        "MTT, 10 steps of 32": ("mtt", {"student_steps": 10, "batch_syn": 32}),
        "TESLA, exact": ("tesla", {"expert_policy": "sgd"}),
        "TESLA, frozen path": ("tesla", {"engine": "frozen_path"}),
        "FTD": ("ftd", {"expert_policy": "sgd"}),
        "AST": ("ast", {"expert_policy": "sgd"}),
        "DATM": ("datm", {"expert_policy": "sgd"}),
    },
    columns={"mtt-quick-v1": {"protocol": "mtt-quick-v1"}},
    network="convnet:width=32",
    shared="experts",
    same={"student_steps": 15, "batch_syn": 0},
)
DECOUPLED = Table(
    rows={
        "Random": ("random", {}),
        "SRe2L": ("sre2l", {}),
        "CDA": ("cda", {}),
        "DWA": ("dwa", {}),
        "SRe2L++": ("sre2l-plus", {}),
        "G-VBSM": ("g-vbsm", {}),
        "EDC": ("edc", {}),
        "EDC, no crops": ("edc", {"crop": False}),
        "CIM": ("cim", {}),
        "RDED": ("rded", {}),
        "stage matching": ("stages", {"width": 32, "expert_count": 2, "expert_updates": 400}),
    },
    columns={labels: {"protocol": "soft-quick-v1", "labels": labels} for labels in ("hard", "soft", "teacher")},
    network="convnet:width=32,norm=batch",
    shared="teacher",
)
TABLES = {"kernels": KERNELS, "trajectories": TRAJECTORIES, "decoupled": DECOUPLED}


def experts_of(real: RealSet, args: argparse.Namespace, network: str) -> Settings:
    """Ten epochs of three networks by plain SGD, trained once."""
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    folder = args.runs / f"{args.table}-{args.data}" / "experts"
    train_experts(real, factory, folder, experts=args.experts, epochs=args.epochs, policy="sgd:lr=0.01")
    return {"experts": str(folder), "max_start": args.epochs - 2}


def teacher_of(real: RealSet, args: argparse.Namespace, network: str) -> Any:
    """A network of some passes over the real set, trained once; or the one that is given."""
    if args.teacher is not None:
        return load_teacher(args.teacher, args.teacher_network)
    return teacher_in(args.runs / f"{args.table}-{args.data}" / "teacher", real, network, args.epochs)


def paid_for(method: str, real: RealSet, budget: float, ipc: int, settings: Settings, settle: bool) -> Method:
    """The method, as a budget of seconds settles it or as it is, with as many steps as take these processor seconds.

    A budget is met by the clock, on a machine that does nothing else; here the steps that are timed are run.
    """
    job = prepare_job(method, real, ipc=ipc, **{"folder" if k == "units" else k: v for k, v in settings.items()})
    settled = with_overrides(within(job, budget, None, False).method if settle else job.method, job.given)

    def run(steps: int, callbacks: list[Callback]) -> object:
        return distill(replace(settled, steps=steps), real, ipc=ipc, callbacks=callbacks, **common(settings))

    return replace(settled, steps=steps_for(budget, run))


def common(settings: Settings) -> Settings:
    """What `distill` takes beside a method that holds its own hyper-parameters."""
    return {name: settings[name] for name in ("network", "seed", "units", "teacher") if name in settings}


def made(row: str, seed: int, real: RealSet, args: argparse.Namespace, table: Table) -> tuple[Any, float]:
    """A set and its CPU seconds."""
    method, own = table.rows[row]
    same = {} if method == "random" else table.same
    settings = {"network": table.network, "seed": seed, "units": args.runs / "units", **same, **own}
    if table.shared == "experts" and method != "random":
        settings |= experts_of(real, args, table.network)
    if table.shared == "teacher" and method not in ("random", "stages"):
        settings["teacher"] = teacher_of(real, args, table.network)
    if method in ("g-vbsm", "edc"):
        settings |= {"squeeze_passes": args.epochs, "backbones": "auto"}
    started = time.process_time()
    if method in ("random", "rded"):
        return distill(method, real, ipc=args.ipc, **settings), time.process_time() - started
    method_of = paid_for(method, real, args.budget, args.ipc, settings, settle=table.shared != "teacher")
    started = time.process_time()
    return distill(method_of, real, ipc=args.ipc, **common(settings)), time.process_time() - started


def scores(row: str, one: Any, real: RealSet, args: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Accuracies by every column that goes with the row."""
    found: dict[str, Any] = {}
    for column, asked in table.columns.items():
        settings = {"network": table.network, "networks": args.networks, "random": False, **asked}
        if settings.get("labels") in ("soft", "teacher"):
            settings["teacher"] = teacher_of(real, args, table.network)
        if (row, column) not in table.unscored:
            result = evaluate(one, real, **settings)
            found[column] = result.distilled.accuracies.flatten().tolist()
    return found


def study(args: argparse.Namespace) -> None:
    """Fill in what is missing."""
    table, real = TABLES[args.table], load_real(args.data)
    out = args.out or Path(f"results/table-{args.table}-{args.data}-ipc{args.ipc}.json")
    record: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"cells": {}}
    left = ("out", "runs", "rows", "path", "teacher")
    record["settings"] = {k: v for k, v in vars(args).items() if k not in left}
    for seed in range(args.seeds):
        for row in args.rows or table.rows:
            if (key := f"{row}|{seed}") in record["cells"]:
                continue
            one, seconds = made(row, seed, real, args, table)
            cost = one.manifest["cost"]
            cell = {"process_seconds": round(seconds, 1), "steps": cost["steps"], "method": one.manifest["method"]}
            cell |= {"prepare_seconds": cost["prepare_seconds"], "scores": scores(row, one, real, args, table)}
            record["cells"][key], record["environment"] = cell, environment(torch.device("cpu"))
            write_json(out, record)
            print(key, cell, flush=True)


def show(path: Path) -> None:
    """As Markdown: accuracies in percent, means over sets and networks."""
    record = json.loads(path.read_text())
    columns = list(TABLES[record["settings"]["table"]].columns)
    print(f"| method | steps | CPU s | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}")
    rows: dict[str, list[Any]] = {}
    for key, cell in record["cells"].items():
        rows.setdefault(key.partition("|")[0], []).append(cell)
    for row, cells in rows.items():
        seconds = sum(c["process_seconds"] for c in cells) / len(cells)
        means = []
        for column in columns:
            values = [v for c in cells for v in c["scores"].get(column, [])]
            means.append(f"{100 * sum(values) / len(values):.1f}" if values else "–")
        print(f"| {row} | {cells[0]['steps']:,} | {seconds:.0f} | {' | '.join(means)} |")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=(*TABLES, "show"))
    parser.add_argument("path", nargs="?", type=Path, help="with show: the file of a table")
    parser.add_argument("--data", default="fashion_mnist")
    for name, value in {"ipc": 1, "seeds": 1, "networks": 1, "experts": 3, "epochs": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of every method")
    parser.add_argument("--rows", nargs="*", default=None, help="names of rows")
    parser.add_argument("--teacher", type=Path, help="folder of a teacher, in the place of one that is trained")
    parser.add_argument("--teacher-network", help="what builds it, where its network is not built in")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    if args.table == "show":
        show(args.path)
        return
    try:
        study(args)
    except DatastillError as error:
        raise SystemExit(f"{error}") from None


if __name__ == "__main__":
    main()
