"""The picture of docs/debias_measured.md: what kernel variance, temperature and power do to accuracy and weights.

    python benchmarks/debias_ablations.py results/debias-ablations.json docs/images/debias_ablations.png

Reads the `study.json` of a `datastill study debias` whose `--debias` varies one option of `kde` at a time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

#: Option, its default, how the axis is called, and whether it is logarithmic.
PANELS = (
    ("variance", 0.03, "kernel variance $s^2$", True),
    ("tau", 0.1, "temperature of the contrastive loss", True),
    ("power", 1.5, "power $p$ of the weights (1 / temperature)", False),
)
ACCURACY, MASS, SHARE = "#4f46e5", "#e0a030", "#6b7280"


def options_of(way: str) -> dict[str, float]:
    """{"variance": 0.1} from "kde:draw=true,variance=0.1"."""
    parts = dict(part.split("=") for part in way.partition(":")[2].split(",") if part)
    return {name: float(value) for name, value in parts.items() if name != "draw"}


def along(rows: list[dict[str, Any]], option: str, default: float) -> list[tuple[float, dict[str, Any]]]:
    """The rows in which that option alone is not the default, and the default's, in the order of its value."""
    found = [(options_of(row["debias"]).get(option, default), row) for row in rows if row["debias"].startswith("kde")]
    return sorted((pair for pair in found if set(options_of(pair[1]["debias"])) <= {option}), key=lambda pair: pair[0])


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """One panel for each option."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.3), layout="constrained")
    for axis, (option, default, label, log) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS):
        values, found = zip(*along(rows, option, default), strict=True)
        axis.errorbar(values, [r["accuracy"] for r in found], [r["interval"] or 0 for r in found], color=ACCURACY,
                      marker="o", ms=4, capsize=3, label="test accuracy (%)")  # fmt: skip
        axis.plot(values, [100 * r["conflict_mass"] for r in found], color=MASS, marker="s", ms=4, ls="--",
                  label="weight on conflicting images (%)")  # fmt: skip
        axis.plot(values, [100 * r["effective_share"] for r in found], color=SHARE, marker="^", ms=4, ls=":",
                  label="images in effect (% of the class)")  # fmt: skip
        axis.axvline(default, color="#d1d5db", lw=6, zorder=0)
        axis.set_xscale("log" if log else "linear")
        axis.set_xticks(values, [f"{v:g}" for v in values])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.set_ylim(0, 100)
        axis.grid(True, axis="y", color="#e5e7eb")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(target, dpi=120)


def main() -> None:
    """Read the study, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    draw(json.loads(given.study.read_text())["rows"], given.target)


if __name__ == "__main__":
    main()
