"""The tables and the figure of docs/debias_measured.md: each method with and without weights, beside what is published.

    python benchmarks/debias_tables.py results/debias/table-*.json --figure docs/images/debias_tables.png

Reads the `study.json` of `datastill study debias`, one for each biased set, share of odd images and size, and prints a
table in markdown for each biased set. Published numbers are those of `results/debias/published.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RATIOS, SIZES = ("0.01", "0.02", "0.05"), (1, 10, 50)
METHODS = {
    "random": "Random",
    "mtt": "MTT",
    "idm": "IDM",
    "dream": "DREAM",
    "dm": "DM",
    "dsa": "DSA",
    "stages": "stages (ours)",
}
WAYS = {
    "none": ("without weights", "#9ca3af"),
    "kde": ("KDE weights", "#e0a030"),
    "oracle": ("oracle weights", "#059669"),
}
SETS = {"cmnist": "colored MNIST", "bg-fmnist": "FashionMNIST on backgrounds", "ccifar10": "corrupted CIFAR-10"}
Key = tuple[str, str, str, str, int]


def read(paths: list[Path]) -> dict[Key, dict[str, Any]]:
    """Rows by biased set, ratio, method, way and images per class."""
    found: dict[Key, dict[str, Any]] = {}
    for path in paths:
        try:
            study = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SystemExit(f"{path} is no study.json of `datastill study debias`: {error}") from None
        name, _, options = study["data"]["source"].partition(":")
        given = dict(part.split("=") for part in options.split(",") if part)
        if set(given) != {"ratio"} or name not in SETS:
            raise SystemExit(f"{path} is of {study['data']['source']}; the tables are of whole sets at their defaults.")
        for row in study["rows"]:
            way, _, how = row["debias"].partition(":")
            start = row["init"] == "real" or row["method"] == "random"
            usual = start and (row["surrogates"], row["training"]) == ("method", "plain")
            if not usual or how not in ("", "draw=true"):
                raise SystemExit(f"{path} has a row of other choices ({row['method']}, {row['debias']}); leave it out.")
            key = name, f"{float(given['ratio']):g}", row["method"], way, row["ipc"]
            if key[1] not in RATIOS or row["method"] not in METHODS or way not in WAYS or row["ipc"] not in SIZES:
                raise SystemExit(
                    f"{path} has {' '.join(map(str, key))}, for which the tables have no place; leave it out."
                )
            if key in found:
                raise SystemExit(f"{path} has {' '.join(map(str, key))} once more; give each study once.")
            found[key] = row
    return found


def table(rows: dict[Key, dict[str, Any]], published: dict[str, Any], name: str) -> str:
    """A line for each method and way, a column for each ratio and size, in brackets what is published."""
    heads = [f"{100 * float(r):g} %, ipc {n}" for r in RATIOS for n in SIZES]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method, title in METHODS.items():
        for way in WAYS:
            cells = [cell(rows.get((name, r, method, way, n)), published.get(f"{method} {way}", {}).get(f"{r} {n}"))
                     for r in RATIOS for n in SIZES]  # fmt: skip
            if any(c != "–" for c in cells):
                label = title if way == "none" else f"{title} + {'KDE' if way == 'kde' else way}"
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any] | None, published: list[float] | None) -> str:
    """ "87.0 (86.5)"."""
    ours = "–" if row is None else f"{row['accuracy']:.1f}"
    return ours if published is None else f"{ours} ({published[0]:.1f})"


def draw(rows: dict[Key, dict[str, Any]], target: Path) -> None:
    """A panel for each biased set and size: for each method three lines, of 1, 2 and 5 %, from without to with."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = [name for name in SETS if any(key[0] == name for key in rows)]
    figure = Figure(figsize=(11.5, 0.7 + 3 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(SIZES), sharex="row", sharey=True, squeeze=False)
    for down, name in enumerate(names):
        for across, size in enumerate(SIZES):
            panel(axes[down][across], rows, name, size)
            axes[down][across].set_title(f"{SETS[name]}, {size} per class", fontsize=9)
        axes[down][1].set_xlabel("test accuracy (%)", fontsize=9)
    axes[0][0].invert_yaxis()
    marks = [Line2D([], [], **mark(way), label=label) for way, (label, _) in WAYS.items()]
    told = "within each method, from the top: 1, 2 and 5 % of the images against the bias"
    figure.legend(handles=marks, loc="outside lower center", ncols=len(WAYS), frameon=False, title=told)
    figure.savefig(target, dpi=110)


def mark(way: str) -> dict[str, Any]:
    """How a way is drawn."""
    return {"marker": "|" if way == "oracle" else "o", "color": WAYS[way][1], "ms": 6, "mew": 2, "ls": "none"}


def panel(axis: Any, rows: dict[Key, dict[str, Any]], name: str, size: int) -> None:
    """Methods from top to bottom; within each, the share of odd images rises downwards."""
    for k, method in enumerate(METHODS):
        for j, ratio in enumerate(RATIOS):
            place = k + 0.25 * (j - 1)
            found = {way: rows.get((name, ratio, method, way, size)) for way in WAYS}
            values = {way: row["accuracy"] for way, row in found.items() if row is not None}
            if {"none", "kde"} <= set(values):
                axis.plot([values["none"], values["kde"]], [place, place], color="#e5e7eb", lw=2, zorder=0)
            for way, value in values.items():
                axis.plot(value, place, **mark(way))
    axis.set_yticks(range(len(METHODS)), list(METHODS.values()), fontsize=8)
    axis.grid(True, axis="x", color="#f3f4f6")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def main() -> None:
    """Read the studies, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    rows = read(given.studies)
    published = json.loads((Path(__file__).parents[1] / "results/debias/published.json").read_text())["data"]
    for name, title in SETS.items():
        print(f"{title}\n\n{table(rows, published[name], name)}\n")
    if given.figure is not None:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
