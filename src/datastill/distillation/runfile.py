"""`run.toml` of a run: every option that it was settled to, for `datastill distill --config`.

A line for each option of the command, by its name there. What is measured or chosen on the way (a budget, a method that
suits the data, scaling) stands as what became of it, so the file says the same whatever is faster or newer next time.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datastill._version import __version__
from datastill.core.overrides import overrides
from datastill.core.registry import Method
from datastill.report.reproduce import options_of
from datastill.store.files import write_text
from datastill.store.manifest import Manifest

RUN_FILE = "run.toml"
#: Options that may name a file with a network, or a folder of trained ones.
_OF_FILES = ("network", "teacher", "experts", "backbones")
_HEAD = f"""\
# Written by datastill {__version__}. To make the set again: datastill distill --config THIS_FILE --out NEW_FOLDER
# Options on the command line win over those here.
"""


def write_run_file(folder: Path, method: Method, record: Manifest) -> None:
    """Write what the run was settled to; nothing where options cannot say it, such as images that were given as arrays.

    Args:
        folder: of the run.
        method: that was run.
        record: the manifest of what it made.
    """
    options, own = options_of(record), file_of(method)
    if options is None:
        return
    name = record.method if own is None else f"{own}:{record.method}"
    options = {name: _placed(name, value) for name, value in options.items()}
    exact = {"compile": "on" if record.cost.compile else "off", "device": record.cost.device}
    write_text(folder / RUN_FILE, _HEAD + as_toml({"method": name, **options, **exact}))


def _placed(name: str, value: Any) -> Any:
    """A text that names files of the user's from the folder of this process, as it names them from any."""
    if name in overrides():
        return overrides()[name].placed(value)
    if name not in _OF_FILES or not isinstance(value, str):
        return value
    return "+".join(map(_absolute, value.split("+") if name == "backbones" else [value]))


def _absolute(text: str) -> str:
    place, colon, called = text.rpartition(":")
    if place.endswith(".py") and Path(place).is_file():
        return f"{Path(place).resolve()}{colon}{called}"
    return str(Path(text).resolve()) if text and Path(text).is_dir() else text


def file_of(method: Method) -> Path | None:
    """The file of a method that is not built in, where it has one."""
    kind = type(method)
    if kind.__module__.startswith("datastill."):
        return None
    try:
        return Path(inspect.getfile(kind)).resolve()
    except (OSError, TypeError):  # made in an interpreter
        return None


def as_toml(options: Mapping[str, Any]) -> str:
    """Options as lines of TOML; None is the word "none", as on the command line."""
    return "".join(f"{name.replace('_', '-')} = {_value(item)}\n" for name, item in options.items())


def _value(item: Any) -> str:
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, list | tuple):
        return f"[{', '.join(map(_value, item))}]"
    if isinstance(item, int | float):
        return repr(item)
    text = json.dumps("None" if item is None else str(item), ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
