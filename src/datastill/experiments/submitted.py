"""Results that people write by hand or send from other code, and remarks on results: their schema, template and check.

A result is never edited. What turns out wrong gets a remark beside it, and what is measured again a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from datastill.core.errors import InputError, nearest
from datastill.experiments.records import Accuracies
from datastill.report.words import without_paths
from datastill.store.schema import Count, Fraction, Name, Number, Positive, Record, Seconds, Text, Whole

FORMAT, REMARK = "datastill-result", "datastill-remark"


class Measured(Record):
    """Test accuracies as fractions, a list for each set, one number for each network."""

    accuracies: Annotated[list[Accuracies], Field(min_length=1, max_length=1_000)]

    @model_validator(mode="after")
    def _rows_alike(self) -> Measured:
        if len({len(row) for row in self.accuracies}) > 1:
            raise ValueError("every set has as many networks as the others")
        return self


class Reported(Record):
    """What was published of the same method, data and size, as a fraction."""

    accuracy: Fraction
    std: Fraction | None = None
    protocol: Text = ""
    source: Name


class Cost(Record):
    """What making one set took."""

    seconds: Seconds
    steps: Count = 0
    hardware: Name
    peak_memory_bytes: Number | None = None


class ResultRecord(Record):
    """A result that was measured by whatever code."""

    format: Literal["datastill-result"]
    version: Literal[1]
    data: Name
    ipc: Positive
    method: Name
    protocol: Name
    network: Name
    seeds: Annotated[list[Whole], Field(min_length=1)]
    measured: Measured
    random: Measured | None
    reported: Reported | None
    cost: Cost
    bytes: Count
    commit: Name
    command: Name
    unreliable: Text = ""
    hyper: dict[str, Any] = Field(default_factory=dict)
    by: Text = ""
    code: Text = ""

    @model_validator(mode="after")
    def _sides_alike(self) -> ResultRecord:
        rows = self.measured.accuracies
        if len(self.seeds) != len(rows) or len(set(self.seeds)) < len(rows):
            raise ValueError("seeds are one for each set of measured.accuracies, each another")
        if self.random is not None and [len(r) for r in self.random.accuracies] != [len(r) for r in rows]:
            raise ValueError("random.accuracies are as many sets and networks as measured.accuracies")
        return self


class RemarkRecord(Record):
    """That results are unreliable, and why; `about` are names or patterns of files in the remark's own folder."""

    format: Literal["datastill-remark"]
    version: Literal[1]
    about: Annotated[list[Name], Field(min_length=1, max_length=1_000)]
    unreliable: Name
    by: Text = ""

    def concerns(self, remark: Path, path: Path) -> bool:
        """Whether the remark, which lies at `remark`, is about a file."""
        if not path.is_relative_to(remark.parent):
            return False
        return any(fnmatchcase(path.relative_to(remark.parent).as_posix(), pattern) for pattern in self.about)


#: A result to fill in.
TEMPLATE: dict[str, Any] = {
    "format": FORMAT,
    "version": 1,
    "data": "cifar10",
    "ipc": 10,
    "method": "dm",
    "protocol": "dc-v1-dsa",
    "network": "convnet:width=128,depth=3",
    "seeds": [0, 1, 2],
    "measured": {"accuracies": [[0.487, 0.491], [0.489, 0.485], [0.49, 0.488]]},
    "random": {"accuracies": [[0.262, 0.259], [0.268, 0.266], [0.255, 0.258]]},
    "reported": {
        "accuracy": 0.489,
        "std": 0.006,
        "protocol": "dc-v1-dsa",
        "source": "Zhao and Bilen, WACV 2023, table 1 (arXiv:2110.04181)",
    },
    "cost": {"seconds": 5400.0, "steps": 20000, "hardware": "NVIDIA RTX A5000", "peak_memory_bytes": 2.1e9},
    "bytes": 1228800,
    "commit": "the commit of the code that made it",
    "command": "the command that makes it again",
    "unreliable": "",
    "hyper": {"steps": 20000},
    "by": "your name, or nothing",
    "code": "where the code lies, if it is not datastill's",
}


def cells_of(record: ResultRecord, method: str, side: Measured) -> Iterator[dict[str, Any]]:
    """One side of a result, a cell for each set."""
    cost = record.cost
    for seed, accuracies in zip(record.seeds, side.accuracies, strict=True):
        mine = method == record.method
        yield {
            "method": method,
            "data": record.data,
            "real": {"name": record.data, "fingerprint": record.data},
            "ipc": record.ipc,
            "seed": seed,
            "protocol": record.protocol,
            "network": {"name": record.network, "options": {}},
            "accuracies": accuracies,
            "per_class": [sum(accuracies) / len(accuracies)],
            "hyper": record.hyper if mine else {},
            "cost": {
                "steps": cost.steps if mine else 0,
                "distillation_seconds": cost.seconds if mine else 0.0,
                "prepare_seconds": 0.0,
                "evaluation_seconds": 0.0,
            },
            "hardware": cost.hardware,
            "bytes": {"in all": record.bytes},
            "commit": record.commit,
            "unreliable": record.unreliable,
            "reported": record.reported.plain() if mine and record.reported is not None else None,
            "command": record.command,
            "beside": not mine,
        }


def refuse_unknown(stored: Mapping[str, Any], path: Path) -> None:
    """Refuse keys that a result does not have, which are mistyped ones; and paths of a machine, which nobody needs.

    Raises:
        InputError: the first is named, with the nearest that there is.
    """
    _refuse_keys(stored, ResultRecord, path, "")
    for name, model in (("measured", Measured), ("random", Measured), ("reported", Reported), ("cost", Cost)):
        if isinstance(stored.get(name), Mapping):
            _refuse_keys(stored[name], model, path, f"{name}.")
    for name, value in stored.items():
        if without_paths(value) != value:
            raise InputError(f"{path}: {name} names a folder of your machine; leave it out, or write path/to/it.")
    if stored.get("commit") == TEMPLATE["commit"] or stored.get("command") == TEMPLATE["command"]:
        raise InputError(f"{path}: commit and command still say what the template says; fill them in.")


def _refuse_keys(stored: Mapping[str, Any], model: type[BaseModel], path: Path, inside: str) -> None:
    unknown = sorted(set(stored) - set(model.model_fields))
    if unknown:
        raise InputError(f"{path}: a result has no {inside}{unknown[0]}. {nearest(unknown[0], model.model_fields)}")
