"""Results that lie in a folder, as rows, and the published numbers that stand beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.core.overrides import overrides
from datastill.core.recipes import Recipe, find_recipe
from datastill.evaluation.kinds import other_ways
from datastill.experiments.cells import FORMAT as CELL
from datastill.experiments.rates import FOLDER as RATES
from datastill.experiments.records import CellRecord, EvaluationRecord, Made
from datastill.experiments.result import Row
from datastill.experiments.settings import BASELINE
from datastill.report.words import training
from datastill.store.files import digest, read_json
from datastill.store.manifest import Changed

#: Settings of the networks that the published numbers of the recipes were measured with.
_USUAL_WIDTH = 128


@dataclass(frozen=True)
class Entry:
    """A row of the ledger.

    Attributes:
        label: the method, with the settings that tell it from others of the same method.
        published: the recipe of the same method, data and size, where it has a verified accuracy.
        remark: what differs between ours and the published one.
    """

    row: Row
    label: str
    protocol: str
    published: Recipe | None
    remark: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        known = self.published
        return {
            **self.row.to_dict(),
            "label": self.label,
            "protocol": self.protocol,
            "published": None
            if known is None
            else {"accuracy": known.accuracy, "std": known.std, "protocol": known.protocol, "source": known.source},
            "remark": self.remark,
        }


def read_ledger(folder: str | Path) -> tuple[list[Entry], list[Path]]:
    """The rows of all results below a folder, and the JSON files that hold none.

    Cells that differ in nothing but their seed make one row, wherever they lie. An evaluation that
    `datastill evaluate` wrote makes a row of its own, and one for the Random beside it.

    Raises:
        InputError: there is no folder, or no result in it, or a result is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give one that holds results, such as runs/compare.")
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    others: list[Path] = []
    for path in sorted(folder.rglob("*.json")):
        found = list(_records(path))
        if not found and not _known(path):
            others.append(path)
        for key, record in found:
            groups.setdefault(key, {}).setdefault(record["seed"], record)
    if not groups:
        raise InputError(f"There is no result in {folder}; `datastill compare` and `datastill evaluate` write them.")
    baselines = {_scene(key, _first(cells)): cells for key, cells in groups.items() if _is_random(cells)}
    rows = [
        Row(one["real"]["name"], one["ipc"], one["method"], cells, baselines.get(_scene(key, one), {}))
        for key, cells in groups.items()
        for one in (_first(cells),)
    ]
    return [_entry(row, rows) for row in sorted(rows, key=_order)], others


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is alike over seeds, record) of a cell or of every set of an evaluation; nothing for other files."""
    try:
        stored = read_json(path)
    except InputError:
        return
    if not isinstance(stored, dict):
        return
    if stored.get("format") == CELL:
        changed = _texts(CellRecord.of(stored, path))
        stored["hyper"] = {**stored["hyper"], **changed}
        alike = ("method", "ipc", "protocol", "hyper", "network")
        key = [*(stored[name] for name in alike), stored["real"]["fingerprint"], len(stored["accuracies"])]
        key += [stored["lr"]] if "lr_tried" in stored else []
        yield digest(key), stored
    elif {"distilled", "made", "protocol", "network", "data"} <= stored.keys() and stored["made"]:
        made = EvaluationRecord.of(stored, path).made
        for name in ("distilled", "random"):
            arm = stored.get(name) or {"accuracies": []}
            for one, accuracies in zip(made, arm["accuracies"], strict=False):
                yield f"{path} {name}", _pseudo_cell(stored, arm, one, accuracies, name)


def _pseudo_cell(
    stored: Mapping[str, Any], arm: Mapping[str, Any], made: Made, accuracies: list[float], name: str
) -> dict[str, Any]:
    """One set of an evaluation, written as a cell."""
    learned = name == "distilled"
    return {
        "method": made.method if learned else BASELINE,
        "data": stored["data"]["name"],
        "real": stored["data"],
        "ipc": made.ipc,
        "seed": made.seed,
        "protocol": _protocol_of(stored),
        "network": stored["network"],
        "accuracies": accuracies,
        "per_class": arm["per_class"],
        "hyper": {**(made.hyper if learned else {}), **_beside(stored, made, learned)},
        "cost": {
            "steps": made.cost.steps if learned else 0,
            "distillation_seconds": made.cost.seconds if learned else 0.0,
            "prepare_seconds": 0.0,
            "evaluation_seconds": arm["seconds"] / len(arm["accuracies"]),
        },
    }


def _beside(stored: Mapping[str, Any], made: Made, learned: bool) -> dict[str, str]:
    """What a run changed in its method, and how networks were trained: what is not as usual."""
    found = _texts(made) if learned else {}
    trained = stored.get("training")
    return {**({"training": training(trained)} if trained else {}), **found}


def _texts(record: Changed) -> dict[str, str]:
    return {kind.option: kind.text(one) or kind.told(one)[1] for kind, one in record.changes}


def _known(path: Path) -> bool:
    """Whether a JSON file belongs to results without being one: a plan, a summary, a manifest, a learning rate."""
    return path.parent.name == RATES or path.name in (
        "plan.json",
        "comparison.json",
        "cross.json",
        "manifest.json",
        "config.json",
    )


def _protocol_of(stored: Mapping[str, Any]) -> str:
    """The protocol's name, with what was not as it says: kind of labels, optimizer, augmentation."""
    other = other_ways(stored)
    told = [f"{other['labels']} labels"] if "labels" in other else []
    told += [str(stored["optimizer"])] if "optimizer" in other else []
    return ", ".join([str(stored["protocol"]), *told, *(["no augmentation"] if "augmented" in other else [])])


def _scene(key: str, record: Mapping[str, Any]) -> str:
    """What a method and its Random share: their evaluation file, or data, size, protocol and network of cells."""
    if " " in key:
        return key.rpartition(" ")[0]
    shared = (record["real"]["fingerprint"], record["ipc"], record["protocol"], record["network"])
    return digest([*shared, len(record["accuracies"])])


def _first(cells: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    return cells[min(cells)]


def _is_random(cells: Mapping[int, Mapping[str, Any]]) -> bool:
    return bool(_first(cells)["method"] == BASELINE)


def _order(row: Row) -> tuple[str, str, int, bool, str]:
    one = _first(row.cells)
    return row.data, one["protocol"], row.ipc, row.method != BASELINE, row.method


def _entry(row: Row, rows: list[Row]) -> Entry:
    one = _first(row.cells)
    recipe = find_recipe(row.method, row.data, row.ipc)
    known = recipe if recipe is not None and recipe.accuracy is not None else None
    return Entry(row, _label(row, rows), one["protocol"], known, "" if known is None else _remark(one, known))


def _label(row: Row, rows: list[Row]) -> str:
    """The method; where rows differ in their settings alone, with those that differ."""
    one = _first(row.cells)
    alike = [
        _first(other.cells)
        for other in rows
        if (other.method, other.data, other.ipc, _first(other.cells)["protocol"])
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
    if network["name"] != "convnet" or network.get("options", {}).get("width") != _USUAL_WIDTH:
        remarks.append("other network")
    if any(record["hyper"].get(name) != value for name, value in known.hyper.items()):
        remarks.append("other settings")
    remarks += [f"{name}: {record['hyper'][name]}" for name in (*overrides(), "training") if name in record["hyper"]]
    return ", ".join(remarks) or "same protocol"
