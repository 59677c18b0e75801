"""What a byte of a distilled set is worth: CIFAR-10 under encodings of 8, 4 and 2 bits a value.

    python benchmarks/bytes_study.py --out results/bytes-cifar10.json --work runs/bytes
    python benchmarks/bytes_study.py --show results/bytes-cifar10.json
    python benchmarks/bytes_study.py --plot results/bytes-cifar10.json --figure docs/images/bytes_cifar10.png

Random images, stage matching with tiles of factor 1, 2 and 3 and in frequency codes, and random mosaics and random
images in frequency codes beside them. All sets of stage matching share one bank of networks. Each set is exported, read
again from disk, and scored as it was decoded, on all test images; bytes are those of the artifact, with its images
apart. Safe to stop and start again. Sets of 128 pixels are in `codes_study.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from datastill import distill, evaluate, export, load_distilled, load_real
from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import environment
from datastill.data import RealSet
from datastill.store.artifact import DistilledSet
from datastill.store.files import write_json
from datastill.store.sizes import bytes_of_parts

#: Four images of a quarter of the frequencies, in the room of one.
DCT = "dct:kept=256,instances=4"
#: A modest bank, the same for all factors.
BANK: dict[str, Any] = {"method": "stages", "width": 32, "expert_count": 2, "steps": 200}
SETS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "factor 1": {**BANK, "factor": 1},
    "factor 2": {**BANK, "factor": 2},
    "factor 3": {**BANK, "factor": 3},
    "random mosaics": {"method": "mosaic", "factor": 2},
    "frequencies": {**BANK, "factor": 1, "init": "real", "codes": DCT},
    "random frequencies": {"method": "random", "codes": DCT},
}
COLORS = ("#9aa5c4", "#7ab8f5", "#4d49d8", "#1f1d6b", "#3b4a6b", "#d8653b", "#e5b08f")
#: Bits of a value; 32 is the set as it was made.
BITS = (8, 4, 2)


def points() -> list[tuple[str, int, int]]:
    """(set, images per class, bits), what matters most first."""
    asked = [("random", 10, 32)]
    asked += [(name, 10, bits) for name in ("random", "factor 2", "frequencies", "factor 1") for bits in BITS]
    asked += [("factor 2", 1, 8), ("factor 2", 3, 8)]  # the line at 8 bits that fewer bits are to beat
    asked += [("random frequencies", 10, 2), ("random", 3, 8), ("factor 3", 10, 2), ("factor 3", 10, 8)]
    asked += [("random frequencies", 10, 8), ("random", 1, 8), ("random mosaics", 10, 2), ("factor 2", 10, 1)]
    asked += [("frequencies", 10, 3), ("random mosaics", 10, 8)]
    return [*asked, *((name, 10, 4) for name in ("factor 3", "random frequencies", "random mosaics"))]


def made_set(real: RealSet, name: str, ipc: int, args: argparse.Namespace, record: dict[str, Any]) -> Path:
    """The folder of a set, made where it is not there; its seconds go to the record."""
    folder = args.work / f"{name}-{ipc}".replace(" ", "-")
    if not folder.is_dir():
        hyper = dict(SETS[name])
        how = {"precision": args.precision, "compile": args.compile} if hyper["method"] == "stages" else {}
        begun = time.process_time()
        made = distill(hyper.pop("method"), real, ipc=ipc, seed=args.seed, units=args.work / "units", **how, **hyper)
        spent = round(time.process_time() - begun, 1)
        record["sets"][f"{name}|{ipc}"] = {"cpu_seconds": spent, "images": len(made.images)}
        made.save(folder)
        write_json(args.out, record)
    return folder


def measured(real: RealSet, folder: Path, bits: int, args: argparse.Namespace) -> dict[str, Any]:
    """Bytes and accuracy of what is read back from disk."""
    if bits < 32:
        whole, folder = load_distilled(folder), folder.with_name(f"{folder.name}-{bits}bits")
        if not folder.is_dir():
            export(whole, folder, "encoded", bits=bits)
    read = load_distilled(folder)
    begun = time.process_time()
    scores = accuracies(read, real, args)
    on_disk = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".safetensors", ".json"))
    return {
        **bytes_of_parts(read),
        "folder": on_disk,
        "accuracies": scores,
        "score_seconds": round(time.process_time() - begun, 1),
    }


def accuracies(read: DistilledSet, real: RealSet, args: argparse.Namespace) -> list[float]:
    """Accuracies of fresh networks in percent."""
    score: Any = {name: getattr(args, name) for name in ("protocol", "network", "networks", "precision", "compile")}
    made = evaluate(read, real, seed=args.seed, random=False, **score)
    return [round(100 * value, 2) for value in made.distilled.accuracies.flatten().tolist()]


def study(args: argparse.Namespace) -> None:
    """Fill in what is missing."""
    keep_freed_memory()
    torch.set_num_threads(1)
    real = load_real("cifar10")
    asked = {name: getattr(args, name) for name in ("protocol", "network", "networks", "precision", "compile", "seed")}
    fresh: dict[str, Any] = {"data": "cifar10", **asked, "settings": SETS, "sets": {}, "points": {}}
    record = json.loads(args.out.read_text()) if args.out.is_file() else fresh
    for name, ipc, bits in points():
        key = f"{name}|{ipc}|{bits}"
        if key not in record["points"]:
            folder = made_set(real, name, ipc, args, record)
            record["points"][key] = measured(real, folder, bits, args)
            record["environment"] = environment(torch.device("cpu"))
            write_json(args.out, record)
            print(key, record["points"][key], flush=True)


def found(path: Path) -> dict[tuple[str, int, int], tuple[int, float, dict[str, Any]]]:
    """Bytes of images, mean accuracy and the whole record of each point that is there."""
    record: dict[str, Any] = json.loads(path.read_text())["points"]
    rows = {}
    for name, ipc, bits in points():
        one = record.get(f"{name}|{ipc}|{bits}")
        if one:
            rows[name, ipc, bits] = (one["images"], sum(one["accuracies"]) / len(one["accuracies"]), one)
    return rows


def show(path: Path) -> None:
    """The table of the docs page."""
    rows = found(path)
    print("| stored | images a class | bits | images, kB | whole folder, kB | accuracy, % |\n|---|---|---|---|---|---|")
    for name in SETS:
        for (of, ipc, bits), (size, accuracy, one) in sorted(rows.items(), key=lambda row: -row[1][0]):
            if of == name:
                print(f"| {name} | {ipc} | {bits} | {size / 1e3:,.1f} | {one['folder'] / 1e3:,.1f} | {accuracy:.1f} |")


def plot(path: Path, target: Path) -> None:
    """Accuracy against bytes: a line for each set as its bits fall, a dashed one as its images at 8 bits do."""
    from matplotlib.figure import Figure

    drawing, rows = Figure(figsize=(7.2, 4.6), layout="constrained"), found(path)
    ax = drawing.subplots()
    for name, color in zip(SETS, COLORS, strict=True):
        by_bits = sorted((size / 1e3, y, f"{bits}") for (of, n, bits), (size, y, _) in rows.items()
                         if (of, n) == (name, 10) and bits < 32)  # fmt: skip
        by_images = sorted((size / 1e3, y, f"{n}") for (of, n, bits), (size, y, _) in rows.items()
                           if (of, bits) == (name, 8))  # fmt: skip
        if by_bits:
            ax.plot(*zip(*((x, y) for x, y, _ in by_bits), strict=True), "o-", color=color, label=name)
        for x, y, bits in by_bits:
            ax.annotate(bits, (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=8, color=color)
        if len(by_images) > 1:
            label = f"{name}, 8 bits, fewer images"
            ax.plot(*zip(*((x, y) for x, y, _ in by_images), strict=True), "s--", ms=4, lw=1, color=color, label=label)
        for x, y, images in by_images[:-1]:
            ax.annotate(f"{images} a class", (x, y), (0, -12), textcoords="offset points", ha="center", fontsize=7,
                        color=color)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
    ax.minorticks_off()
    ax.set_xlabel("kB of images on disk (numbers: bits a value)")
    ax.set_ylabel("test accuracy, %")
    ax.grid(color="#e3e6ee")
    ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines[["top", "right"]].set_visible(False)
    drawing.savefig(target, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bytes-cifar10.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/bytes"), help="sets, encodings, networks")
    parser.add_argument("--protocol", default="idc-quick-v1")
    parser.add_argument("--network", default="convnet:width=64")
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", default="on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("docs/images/bytes_cifar10.png"))
    given = parser.parse_args()
    if given.show:
        show(given.show)
    elif given.plot:
        plot(given.plot, given.figure)
    else:
        study(given)
