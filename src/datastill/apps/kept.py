"""Runs of applications that go on where they were stopped, and what their methods are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.core.registry import get_method
from datastill.experiments.settings import settings_of
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


def plain(method: str) -> str:
    """A method's name as the name of a file."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in method)


def arguments_of(
    methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None, budget: float | None
) -> dict[str, dict[str, Any]]:
    """What `distill` is given for each method: its own settings, and the budget where these do not decide the steps.

    Args:
        methods: by name or file.
        settings: hyper-parameters by method, {"dm": {"steps": 60}}.
        budget: seconds of each method that takes steps; None leaves its recipe alone.

    Raises:
        InputError: an unknown method, settings for one that is not there, or values that it does not take.
    """
    named = {get_method(name).name: name for name in methods}
    checked = settings_of(settings or {}, named)
    found = {}
    for known, name in named.items():
        own = dict(checked.get(known, {}))
        takes = budget is not None and "steps" in get_method(name).cls.__dataclass_fields__ and "steps" not in own
        found[name] = own | ({"budget": budget} if takes else {})
    return found
