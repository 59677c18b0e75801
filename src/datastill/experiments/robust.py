"""LRS and ARS in a comparison: each cell measures its own set, and rows are put together as Random's pair with them.

Scores are those of `evaluation.robustness`; Random is trained once for all methods of its seed, and so is the network
on the whole real set, for all sizes and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.runtime import Runtime
from datastill.evaluation.ceiling import whole_set
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.robustness import Apart, Robustness, measure_apart, robustness_of
from datastill.evaluation.scores import Evaluation
from datastill.experiments.records import WholeRecord
from datastill.store.files import read_sealed, write_sealed

if TYPE_CHECKING:
    from datastill.experiments.cells import Cell, Work
    from datastill.store.artifact import DistilledSet

FOLDER = "whole"


def measure_whole(work: Work, cell: Cell, target: Path) -> None:
    """Score a network on the whole real set of a cell's data, from the first seed, and write it down."""
    settings = work.settings
    network = work.reals.network(cell.data, settings.network)
    runtime = Runtime.of(settings.device, settings.precision, settings.compile)
    arm = whole_set(work.reals.get(cell.data), network, settings.seeds[0], runtime)
    record = {"data": cell.data, "seed": settings.seeds[0], "accuracy": round(arm.mean, 6), "seconds": arm.seconds}
    write_sealed(target, record)


def scored_apart(
    work: Work, cell: Cell, made: DistilledSet, result: Evaluation, protocol: Protocol, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What a cell's record says of its set without the help of labels and augmentation; nothing where nobody asked.

    Args:
        work, cell: which.
        made: its set.
        result: the set's evaluation.
        protocol, asked: what that was under, and its further arguments.
    """
    if work.settings.scores == "none":
        return {}
    found, _ = measure_apart(result, [made], work.reals.get(cell.data), protocol, asked)
    whole = read_sealed(work.whole(cell), WholeRecord)["accuracy"]
    numbers = {name: _plain(value) for name, value in vars(found).items() if name != "usual"}
    return {"apart": {"arithmetic": work.settings.scores, "whole_set": whole, **numbers}}


def seconds_of_whole(work: Work, cell: Cell) -> dict[str, float]:
    """For a cell's cost: what the network on the whole real set took, now or when it was trained."""
    return {"whole_set_seconds": round(read_sealed(work.whole(cell), WholeRecord)["seconds"], 3)}


def _plain(values: Tensor | None) -> list[float] | None:
    return None if values is None else [round(v, 6) for v in values[0].tolist()]


def robustness(cells: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]) -> Robustness | None:
    """Scores of a method's cells beside those of Random from the same seeds; None where they were not measured."""
    if not cells or not all(cell.get("apart") for cell in (*cells, *baseline)):
        return None
    told = cells[0]["apart"]
    return robustness_of(_apart(cells), _apart(baseline), told["whole_set"], arithmetic=told["arithmetic"])


def _apart(cells: Sequence[Mapping[str, Any]]) -> Apart:
    def stacked(name: str) -> Tensor | None:
        rows = [cell["apart"][name] for cell in cells]
        return None if None in rows else torch.tensor(rows, dtype=torch.double)

    usual = torch.tensor([cell["accuracies"] for cell in cells], dtype=torch.double)
    return Apart(usual, stacked("hard"), stacked("augmented"), stacked("bare"))
