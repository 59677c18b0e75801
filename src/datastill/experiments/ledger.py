"""Results that lie in a folder, as rows, and the published numbers that stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datastill.core.errors import InputError
from datastill.evaluation.kinds import other_ways
from datastill.experiments.cells import FORMAT as CELL
from datastill.experiments.entries import Entry, entry_of, first_of, order_of
from datastill.experiments.rates import FOLDER as RATES
from datastill.experiments.records import CellRecord, EvaluationRecord, Made
from datastill.experiments.result import Row
from datastill.experiments.robust import FOLDER as WHOLE
from datastill.experiments.settings import BASELINE
from datastill.experiments.submitted import FORMAT as SENT
from datastill.experiments.submitted import (
    REMARK,
    RemarkRecord,
    ResultRecord,
    cells_of,
    refuse_unknown,
)
from datastill.report.words import training
from datastill.store.files import digest, read_json
from datastill.store.manifest import Changed


class Ledger(NamedTuple):
    """What lies in a folder.

    Attributes:
        entries: rows.
        others: JSON files that hold no result.
        damaged: a sentence for each file that was kept out, which names the field.
    """

    entries: list[Entry]
    others: list[Path]
    damaged: list[str]


def read_ledger(folder: str | Path) -> Ledger:
    """The rows of all results below a folder; a file that breaks the schema is kept out, and named.

    Cells that differ in nothing but their seed make one row, wherever they lie. An evaluation that
    `datastill evaluate` wrote makes a row of its own, and one for the Random beside it; so does a result that was sent.

    Raises:
        InputError: there is no folder, or no result in it, or none that is whole.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give one that holds results, such as runs/compare.")
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    found = Ledger([], [], [])
    remarks: list[tuple[Path, RemarkRecord]] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            remark, records = _remark_in(path), list(records_in(path))
        except InputError as error:
            found.damaged.append(str(error))
            continue
        remarks += [(path, remark)] if remark is not None else []
        if not records and remark is None and not _known(path):
            found.others.append(path)
        for key, record in records:
            record["file"] = path.relative_to(folder).as_posix()
            _add(groups.setdefault(key, {}), record, found.damaged)
    if not groups:
        if found.damaged:
            raise InputError(found.damaged[0])
        raise InputError(f"There is no result in {folder}; `datastill compare` and `datastill evaluate` write them.")
    found.entries.extend(_entries(_rows(groups), lambda row: _unreliable(row, folder, remarks), found.damaged))
    return found


def _entries(rows: list[Row], unreliable: Callable[[Row], str], damaged: list[str]) -> Iterator[Entry]:
    """Rows beside what is reported; those whose records do not go together are told of."""
    for row in rows:
        try:
            entry = entry_of(row, rows, unreliable(row))
            entry.to_dict()  # which fails on such records, here and nowhere later
        except (InputError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            damaged.append(f"{', '.join(cell['file'] for cell in row.cells.values())}: {why}")
        else:
            yield entry


def _add(cells: dict[int, dict[str, Any]], record: dict[str, Any], damaged: list[str]) -> None:
    """A record beside those of its row; sets of one evaluation may share a seed, and a file may repeat another."""
    other = cells.setdefault(record["seed"], record)
    if other is record:
        return
    if other["file"] == record["file"]:
        cells[max(cells) + 1] = record
    elif other["accuracies"] != record["accuracies"]:
        damaged.append(
            f"{record['file']}: other numbers than {other['file']} for the same setting and seed; it is left out."
        )


def _rows(groups: Mapping[str, dict[int, dict[str, Any]]]) -> list[Row]:
    """Rows beside their Random, in the order of a table: those that compare beside each other, Random first."""
    baselines = {_scene(key, first_of(cells)): cells for key, cells in groups.items() if _is_random(cells)}
    rows = []
    for key, cells in groups.items():
        one = first_of(cells)
        rows.append(Row(one["real"]["name"], one["ipc"], one["method"], cells, baselines.get(_scene(key, one), {})))
    return sorted(rows, key=order_of)


def records_in(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is alike over seeds, record) of a cell, or of every set of an evaluation or a sent result.

    Raises:
        InputError: it is one of these and breaks the schema; the field is named.
    """
    stored = read_json(path)
    if not isinstance(stored, dict):
        return
    if stored.get("format") == CELL:
        changed = _texts(CellRecord.of(stored, path))
        stored["hyper"] = {**stored["hyper"], **changed}
        stored["protocol"] = _protocol_of(stored)
        alike = ("method", "ipc", "protocol", "hyper", "network")
        key = [*(stored[name] for name in alike), stored["real"]["fingerprint"], len(stored["accuracies"])]
        key += [stored["lr"]] if "lr_tried" in stored else []
        yield digest(key), stored
    elif stored.get("format") == SENT:
        refuse_unknown(stored, path)
        sent = ResultRecord.of(stored, path)
        yield from ((f"{path} distilled", cell) for cell in cells_of(sent, sent.method, sent.measured))
        if sent.random is not None and sent.method != BASELINE:
            yield from ((f"{path} random", cell) for cell in cells_of(sent, BASELINE, sent.random))
    elif {"distilled", "made", "protocol", "network", "data"} <= stored.keys() and stored["made"]:
        made = EvaluationRecord.of(stored, path).made
        for name in ("distilled", "random"):
            arm = stored.get(name) or {"accuracies": []}
            for one, accuracies in zip(made, arm["accuracies"], strict=False):
                yield f"{path} {name}", _pseudo_cell(stored, arm, one, accuracies, name)


def _remark_in(path: Path) -> RemarkRecord | None:
    """The remark that a file is, or None."""
    try:
        stored = read_json(path)
    except InputError:
        return None
    return RemarkRecord.of(stored, path) if isinstance(stored, dict) and stored.get("format") == REMARK else None


def _unreliable(row: Row, folder: Path, remarks: list[tuple[Path, RemarkRecord]]) -> str:
    """What speaks against a row: its own records, and remarks on their files."""
    own = [cell for cell in row.cells.values() if not cell.get("beside")]  # a Random of its own is not what is meant
    told, paths = [str(cell.get("unreliable") or "") for cell in own], [folder / cell["file"] for cell in own]
    told += [remark.unreliable for at, remark in remarks if any(remark.concerns(at, path) for path in paths)]
    return "; ".join(dict.fromkeys(one for one in told if one))


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
        "bytes": (made.bytes or {}) if learned else {},
        "hardware": made.cost.hardware if learned else "",
        "versions": made.cost.versions,
        "beside": not learned,
        "command": stored.get("command"),
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
    return path.parent.name in (RATES, WHOLE) or path.name in (
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


def _is_random(cells: Mapping[int, Mapping[str, Any]]) -> bool:
    return bool(first_of(cells)["method"] == BASELINE)
