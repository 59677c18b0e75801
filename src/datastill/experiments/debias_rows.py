"""The rows of a de-biasing study: the cells of all seeds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from datastill.evaluation.scores import t_interval

#: The choices that make a row.
NAMES = ("ipc", "method", "init", "surrogates", "debias", "training")
#: What each is where it is nothing special.
USUAL = {"init": "real", "surrogates": "method", "debias": "none", "training": "plain"}


def rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each cell but for its seed: means over sets, percent."""
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in records:
        grouped.setdefault(tuple(one[name] for name in NAMES), []).append(one)
    found = []
    for key, cells in grouped.items():
        sets = torch.tensor([sum(c["accuracies"]) / len(c["accuracies"]) for c in cells], dtype=torch.double)
        networks = torch.tensor([a for c in cells for a in c["accuracies"]], dtype=torch.double)
        over = sets if len(sets) >= 3 else networks
        found.append(
            {
                **dict(zip(NAMES, key, strict=True)),
                "sets": len(cells),
                "accuracy": 100 * float(sets.mean()),
                "interval": 100 * t_interval(over),
                "interval_over": "sets" if over is sets else "networks",
                "std": 100 * float(over.std()) if len(over) > 1 else None,
                "aligned": 100 * _mean(c["aligned"] for c in cells),
                "conflicting": 100 * _mean(c["conflicting"] for c in cells),
                "conflict_mass": _mean(c["weights"].get("conflict_mass") for c in cells),
                "effective_share": _mean(c["weights"].get("effective_share") for c in cells),
                "conflicting_images": _mean(c["conflicting_images"] for c in cells),
                "seconds": _mean(c["seconds"] for c in cells),
            }
        )
    return found


def described(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """A row or cell in a few words: the method, and what is special about it.

    Args:
        others: rows that it stands among; where they differ in images per class, these are told.
    """
    start = {"noise": "from noise", "weighted": "weighted start"}.get(row["init"], "")
    start = "" if row["method"] == "random" else start
    way = "" if row["debias"] == "none" else str(row["debias"])
    surrogates = "" if row["surrogates"] == USUAL["surrogates"] else f"{row['surrogates']} surrogates"
    training = "" if row["training"] == USUAL["training"] else f"trained by {row['training']}"
    size = f"ipc {row['ipc']}" if len({one["ipc"] for one in others}) > 1 else ""
    return ", ".join(part for part in (row["method"], way, start, surrogates, training, size) if part)


def _mean(values: Any) -> float:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else float("nan")
