"""What a comparison found: one row per data set, size and method, with its interval and its difference to Random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.evaluation.scores import Arm, Evaluation
from datastill.experiments.cells import CELLS, RESULTS
from datastill.experiments.grid import FORMAT as PLAN_FORMAT
from datastill.experiments.grid import PLAN
from datastill.experiments.records import ComparedCell, PlanRecord
from datastill.experiments.robust import robustness
from datastill.experiments.settings import BASELINE
from datastill.store.files import member, read_sealed, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datastill.evaluation.robustness import Robustness

FORMAT = "datastill-comparison"


@dataclass(frozen=True)
class Row:
    """A method on one data set at one size. Accuracies are fractions.

    Attributes:
        cells: the records of its cells, by seed.
        baseline: those of Random, by seed.
    """

    data: str
    ipc: int
    method: str
    cells: Mapping[int, Mapping[str, Any]]
    baseline: Mapping[int, Mapping[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """Seeds whose cells are finished, ascending."""
        return sorted(self.cells)

    @cached_property
    def arm(self) -> Arm:
        """Accuracies over (seeds, networks), and per class."""
        return _arm(self.method, [self.cells[seed] for seed in self.seeds])

    @cached_property
    def paired(self) -> Evaluation | None:
        """The method beside Random, over the seeds that both have; None for Random itself and where none is."""
        return None if self.method == BASELINE else self.beside(BASELINE)

    def beside(self, name: str) -> Evaluation | None:
        """The method beside its baseline of that name, over the seeds that both have."""
        both = [seed for seed in self.seeds if seed in self.baseline]
        if not both:
            return None
        mine, other = (_arm(n, [c[s] for s in both]) for n, c in ((self.method, self.cells), (name, self.baseline)))
        first = self.cells[both[0]]
        return Evaluation(mine, other, None, first["protocol"], first["network"], first["real"], {})

    @cached_property
    def robustness(self) -> Robustness | None:
        """LRS and ARS with their parts, over the seeds that Random has too; None where nobody asked for them."""
        both = [seed for seed in self.seeds if seed in self.baseline]
        return robustness([self.cells[seed] for seed in both], [self.baseline[seed] for seed in both])

    @property
    def mean(self) -> float:
        """Over seeds and networks."""
        return self.arm.mean

    @property
    def interval(self) -> float:
        """Half-width of the 95 % t-interval of the mean: over sets (seeds) where there are three, else networks."""
        return self.arm.interval

    @property
    def interval_over(self) -> str:
        """ "sets", one from each seed, or "networks"."""
        return self.arm.interval_over

    @property
    def difference(self) -> float:
        """Mean paired difference to Random; NaN for Random."""
        return self.paired.difference if self.paired else math.nan

    @property
    def difference_interval(self) -> float:
        """Half-width of its 95 % interval."""
        return self.paired.difference_interval if self.paired else math.nan

    @property
    def verdict(self) -> str | None:
        """One sentence: does it beat Random?"""
        return f"{self.data}, ipc {self.ipc}, {self.method}: {self.paired.verdict}" if self.paired else None

    def cost(self, name: str) -> float:
        """A cost, averaged over seeds; 0 where there was none."""
        return sum(cell["cost"].get(name, 0.0) for cell in self.cells.values()) / len(self.cells)

    @property
    def distillation_seconds(self) -> float:
        """To make one set, the preparation that it shares with other methods included."""
        return self.cost("distillation_seconds") + self.cost("prepare_seconds")

    @property
    def evaluation_seconds(self) -> float:
        """To train and score the networks of one set, those that its LRS and ARS need included."""
        return self.cost("evaluation_seconds") + self.cost("scores_seconds")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, NaN as None."""
        numbers = {
            "mean": self.mean,
            "interval_95": self.interval,
            "std_networks": self.arm.std_networks,
            "std_sets": self.arm.std_sets,
            "difference": self.difference,
            "difference_interval_95": self.difference_interval,
            "distillation_seconds": self.distillation_seconds,
            "evaluation_seconds": self.evaluation_seconds,
        }
        return {
            "data": self.data,
            "ipc": self.ipc,
            "method": self.method,
            "seeds": self.seeds,
            "interval_over": self.interval_over,
            **{name: None if math.isnan(value) else round(value, 6) for name, value in numbers.items()},
            "accuracies": self.arm.to_dict()["accuracies"],
            "per_class": self.arm.to_dict()["per_class"],
            "steps": int(self.cost("steps")),
            **({} if self.robustness is None else {"robustness": self.robustness.to_dict()}),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        config: what was asked for.
        rows: by data set, then size, then method in the order asked for.
        missing: cells without a result, as "data, method, ipc, seed".
        folder: where it lies.
        command: that makes it again; None where a command line cannot say it.
        settled: hyper-parameters and notes of each method on each data set and size.
    """

    config: Mapping[str, Any]
    rows: Sequence[Row]
    missing: Sequence[str] = ()
    folder: Path | None = None
    command: str | None = None
    settled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return str(self.config["protocol"]["name"])

    @property
    def whole_set_seconds(self) -> dict[str, float]:
        """By data set, what the network on the whole real set took; nothing where no scores were asked for."""
        took = [(row.data, row.cost("whole_set_seconds")) for row in self.rows]
        return {data: seconds for data, seconds in took if seconds}

    @property
    def seconds(self) -> float:
        """To distill and score everything, on one thread; what cells share is counted once."""
        costs = [cell["cost"] for row in self.rows for cell in row.cells.values()]
        own = ("distillation_seconds", "evaluation_seconds", "scores_seconds")
        shared = {name: seconds for cost in costs for name, seconds in cost.get("prepared", {}).items()}
        total = sum(cost.get(name, 0.0) for cost in costs for name in own)
        return total + sum(shared.values()) + sum(self.whole_set_seconds.values())

    @property
    def verdicts(self) -> list[str]:
        """One sentence for every row but Random's."""
        return [row.verdict for row in self.rows if row.verdict]

    def row(self, method: str, data: str | None = None, ipc: int | None = None) -> Row:
        """The row of a method, and of a data set and size where there are several."""
        found = [r for r in self.rows if r.method == method and data in (None, r.data) and ipc in (None, r.ipc)]
        if len(found) != 1:
            raise InputError(f"{len(found)} rows fit method={method!r}, data={data!r}, ipc={ipc!r}; name one.")
        return found[0]

    def groups(self) -> dict[tuple[str, int], list[Row]]:
        """Rows that compare: of one data set and size."""
        found: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.data, row.ipc), []).append(row)
        return found

    def table(self) -> str:
        """The table in Markdown, accuracies in percent."""
        from datastill.experiments.tables import markdown

        return markdown(self)

    def plot(self) -> Figure:
        """Accuracies of every row as a matplotlib figure."""
        from datastill.report.notebook import dots

        several = len(self.groups()) > 1
        names = [f"{r.method}, {r.data}, ipc {r.ipc}" if several else r.method for r in self.rows]
        rows = [(name, 100 * r.arm.accuracies.flatten().numpy()) for name, r in zip(names, self.rows, strict=True)]
        return dots(rows, f"test accuracy (%), {self.protocol}")

    def _repr_html_(self) -> str:
        from datastill.experiments.tables import html

        return html(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "format": FORMAT,
            "version": 1,
            "config": dict(self.config),
            "command": self.command,
            "rows": [row.to_dict() for row in self.rows],
            "verdicts": self.verdicts,
            "seconds": round(self.seconds, 3),
            **({"whole_set_seconds": whole} if (whole := self.whole_set_seconds) else {}),
            "missing": list(self.missing),
            "settled": dict(self.settled),
            "cells": [cell["cell"] for row in self.rows for cell in row.cells.values()],
        }

    def save(self) -> None:
        """Write comparison.json and table.md into its folder."""
        if self.folder is not None:
            write_json(self.folder / "comparison.json", self.to_dict())
            write_text(self.folder / "table.md", self.table())

    def cell_folder(self, row: Row, seed: int) -> Path | None:
        """The run folder of a cell, where the comparison lies in a folder."""
        return None if self.folder is None else member(self.folder / CELLS, row.cells[seed]["cell"])


def load_comparison(folder: str | Path) -> Comparison:
    """A comparison from its folder, with the cells that are finished.

    Raises:
        InputError: the folder holds none.
    """
    folder = Path(folder)
    if not (folder / PLAN).is_file():
        raise InputError(f"{folder} holds no comparison (no {PLAN}); give the folder that `datastill compare` made.")
    plan = read_sealed(folder / PLAN)
    if not isinstance(plan, dict) or plan.get("format") != PLAN_FORMAT:
        raise InputError(f"{folder / PLAN} is not the plan of a comparison.")
    PlanRecord.of(plan, folder / PLAN)
    cells: dict[tuple[str, int, str], dict[int, Any]] = {}
    missing = []
    for cell in plan["cells"]:
        path = member(folder / RESULTS, f"{cell['name']}.json")
        key = cell["data"], cell["ipc"], cell["method"]
        if path.is_file():
            cells.setdefault(key, {})[cell["seed"]] = read_sealed(path, ComparedCell)
        else:
            missing.append(f"{cell['data']}, {cell['method']}, ipc {cell['ipc']}, seed {cell['seed']}")
    return Comparison(plan["config"], rows_of(cells), missing, folder, plan["command"], plan["settled"])


def rows_of(cells: Mapping[tuple[str, int, str], Mapping[int, Any]]) -> list[Row]:
    """Rows out of records by (data, ipc, method) and seed, in that order."""
    return [
        Row(data, ipc, method, found, cells.get((data, ipc, BASELINE), {}))
        for (data, ipc, method), found in cells.items()
    ]


def _arm(name: str, records: Sequence[Mapping[str, Any]]) -> Arm:
    if len({(len(record["accuracies"]), len(record["per_class"])) for record in records}) > 1:
        raise InputError(f"The results of {name} are of different numbers of networks or classes; one is damaged.")
    accuracies = torch.tensor([record["accuracies"] for record in records], dtype=torch.double)
    return Arm(name, accuracies, _per_class(records))


def _per_class(records: Sequence[Mapping[str, Any]]) -> Tensor:
    each = [[math.nan if v is None else v for v in record["per_class"]] for record in records]
    return torch.tensor(each, dtype=torch.double).mean(0)
