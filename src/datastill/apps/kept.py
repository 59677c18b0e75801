"""Cells of a run that were computed before it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.store.files import read_json
from datastill.store.schema import Record, Text


class Cells(Record):
    """What was asked, and what was found by name."""

    config: dict[str, Any]
    cells: dict[Text, Any]


def kept_cells(path: Path | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The cells in a file of results; none where there is no file.

    Raises:
        InputError: the file is of other settings; the first that differs is named.
    """
    if path is None or not path.is_file():
        return {}
    kept = read_json(path, Cells)
    other = next((name for name, value in config.items() if kept["config"].get(name) != value), None)
    if other is not None:
        raise InputError(
            f"{path.parent} holds a run with {other} = {kept['config'].get(other)!r}, not {config[other]!r}; give "
            "another folder (--out)."
        )
    return dict(kept["cells"])
