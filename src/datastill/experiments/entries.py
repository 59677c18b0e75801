"""Rows of the ledger: what was measured, beside what is reported of the same method, data and size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datastill.core.overrides import overrides
from datastill.core.recipes import Recipe, find_recipe
from datastill.experiments.result import Row
from datastill.experiments.settings import BASELINE
from datastill.experiments.submitted import Reported
from datastill.report.words import describe_network

#: Settings of the networks that the published numbers of the recipes were measured with.
_USUAL_WIDTH = 128


@dataclass(frozen=True)
class Entry:
    """A row of the ledger.

    Attributes:
        label: the method, with the settings that tell it from others of the same method.
        published: what is reported of the same method, data and size, by the result itself or a recipe.
        remark: what differs between ours and the published one.
        unreliable: why the numbers are not to be trusted, "" where nothing is known against them.
    """

    row: Row
    label: str
    protocol: str
    published: Reported | None
    remark: str
    unreliable: str = ""

    @property
    def cells(self) -> list[Mapping[str, Any]]:
        """The records, by seed."""
        return [self.row.cells[seed] for seed in self.row.seeds]

    @property
    def files(self) -> list[str]:
        """Where the records lie, below the folder that was read."""
        return list(dict.fromkeys(cell["file"] for cell in self.cells))

    @property
    def bytes(self) -> int | None:
        """Mean over sets of what is stored; of older records of whole images, their codes; None where unknown."""
        found = [stored_bytes(cell) for cell in self.cells]
        return None if None in found else round(sum(v for v in found if v is not None) / len(found))

    @property
    def commit(self) -> str:
        """The commit, or the version where no commit is known."""
        told = [cell.get("commit") or _version(cell.get("versions", {})) for cell in self.cells]
        return ", ".join(dict.fromkeys(one for one in told if one))

    @property
    def hardware(self) -> str:
        """What the sets were made on."""
        return ", ".join(dict.fromkeys(cell["hardware"] for cell in self.cells if cell.get("hardware")))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what it is, and under `measured`, `reported`, `cost` the numbers."""
        measured = self.row.to_dict()
        what = {name: measured.pop(name) for name in ("data", "ipc", "method", "seeds")}
        seconds = {name: measured.pop(name) for name in ("distillation_seconds", "evaluation_seconds")}
        return {
            **what,
            "label": self.label,
            "protocol": self.protocol,
            "network": _network(self.cells[0]),
            "measured": measured,
            "reported": None if self.published is None else self.published.plain(),
            "cost": {**seconds, "steps": measured.pop("steps"), "hardware": self.hardware},
            "bytes": self.bytes,
            "commit": self.commit,
            "unreliable": self.unreliable,
            "remark": self.remark,
            "files": self.files,
        }


def stored_bytes(cell: Mapping[str, Any]) -> int | None:
    """What one set weighs; of records before it was written down, float32 codes of whole images."""
    if cell.get("bytes"):
        return int(sum(cell["bytes"].values()))
    shape, classes = cell["real"].get("shape"), cell["real"].get("classes")
    if not shape or not classes or "codes" in cell["hyper"]:
        return None
    return 4 * math.prod(shape) * int(classes) * int(cell["ipc"])


def _version(versions: Mapping[str, Any]) -> str:
    return str(versions.get("commit") or f"version {versions['datastill']}" if versions.get("datastill") else "")


def _network(cell: Mapping[str, Any]) -> str:
    network = cell["network"]
    return describe_network(network) if network.get("options") else str(network["name"])


def order_of(row: Row) -> tuple[str, str, int, bool, str]:
    """What rows of a table are sorted by."""
    one = first_of(row.cells)
    return row.data, one["protocol"], row.ipc, row.method != BASELINE, row.method


def first_of(cells: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The record of the lowest seed."""
    return cells[min(cells)]


def entry_of(row: Row, rows: list[Row], unreliable: str) -> Entry:
    """A row beside what is reported.

    Args:
        row: which.
        rows: all of the table, from which its label tells it.
        unreliable: why its numbers are not to be trusted, or "".
    """
    one, label = first_of(row.cells), _label(row, rows)
    if one.get("reported"):
        reported = Reported.of(one["reported"], one["file"])
        other = f"other protocol: {reported.protocol}" if reported.protocol not in ("", one["protocol"]) else ""
        return Entry(row, label, one["protocol"], reported, other, unreliable)
    known = find_recipe(row.method, row.data, row.ipc)
    if known is None or known.accuracy is None:
        return Entry(row, label, one["protocol"], None, "", unreliable)
    reported = Reported(accuracy=known.accuracy, std=known.std, protocol=known.protocol, source=known.source or "–")
    return Entry(row, label, one["protocol"], reported, _remark(one, known), unreliable)


def _label(row: Row, rows: list[Row]) -> str:
    """The method; where rows differ in their settings alone, with those that differ."""
    one = first_of(row.cells)
    alike = [
        first_of(other.cells)
        for other in rows
        if (other.method, other.data, other.ipc, first_of(other.cells)["protocol"])
        == (row.method, row.data, row.ipc, one["protocol"])
    ]
    names = [n for n in one["hyper"] if any(other["hyper"].get(n) != one["hyper"][n] for other in alike)]
    told = [f"{name} {one['hyper'][name]}" for name in names]
    if any(other["network"] != one["network"] for other in alike):
        options = one["network"].get("options", {})
        told.append(f"{one['network']['name']}" + (f" width {options['width']}" if "width" in options else ""))
    if any(_chosen_rate(other) != _chosen_rate(one) for other in alike):
        told.append(f"learning rate {one['lr']:g}" if "lr" in one else "the protocol's learning rate")
    return f"{row.method} ({', '.join(told)})" if told else row.method


def _chosen_rate(record: Mapping[str, Any]) -> float | None:
    """The rate that a comparison chose for a set that comes without one; older ones chose none."""
    return float(record["lr"]) if "lr_tried" in record else None


def _remark(record: Mapping[str, Any], known: Recipe) -> str:
    """Why ours need not equal the published number; "same protocol" where nothing that we know of differs."""
    remarks = [] if record["protocol"] == known.protocol else [f"other protocol: {known.protocol or 'unknown'}"]
    network = record["network"]
    usual = f"convnet:width={_USUAL_WIDTH}" in network["name"]  # as a sent result spells it
    if not usual and (network["name"] != "convnet" or network.get("options", {}).get("width") != _USUAL_WIDTH):
        remarks.append("other network")
    if any(record["hyper"].get(name) != value for name, value in known.hyper.items()):
        remarks.append("other settings")
    remarks += [f"{name}: {record['hyper'][name]}" for name in (*overrides(), "training") if name in record["hyper"]]
    return ", ".join(remarks) or "same protocol"
