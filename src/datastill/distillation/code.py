"""Files of the user's code that a run calls, so that a run that goes on with changed ones says so."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datastill.core.usercode import FindsTheirs, is_theirs
from datastill.models import NetworkFactory
from datastill.store.files import digest

#: Where a script or notebook is at work, in this process and in its workers: editing how it calls us changes nothing.
_SCRIPTS = ("__main__", "__mp_main__")

#: By the name of a file, hashes of what was in it, the last one of now.
States = Mapping[str, list[str]]


def code_of(*things: Any) -> States:
    """The files in which a user's classes and functions stand, each with a hash of what is in it, in a list of one.

    Args:
        things: classes, functions, objects, and partials of them; what is not the user's is passed over.
    """
    files = sorted({file for thing in things for file in _files(thing)})
    return {file.name: [digest(file.read_text(encoding="utf-8", errors="replace"))] for file in files if file.is_file()}


def _files(thing: Any) -> Iterator[Path]:
    if isinstance(thing, partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _files(part)
        return
    if isinstance(thing, NetworkFactory):
        yield from _files(thing.build)
        return
    found = thing.found() if isinstance(thing, FindsTheirs) else thing
    if not is_theirs(found):
        return
    kind = found if inspect.isroutine(found) or isinstance(found, type) else type(found)
    module = sys.modules.get(kind.__module__)
    if module is not None and kind.__module__ not in _SCRIPTS and module.__file__:
        yield Path(module.__file__)


def code_since(before: States, now: States, since: str) -> States:
    """Every state of each file that a run has been at work with, the last one of now; warns of one that has changed.

    Args:
        before: of the earlier start.
        now: of this one.
        since: when `before` was, such as "the run began".
    """
    for name, (last,) in now.items():
        if before.get(name, [last])[-1] != last:
            warnings.warn(f"{name} has changed since {since}; what is there already stays as it was.", stacklevel=2)
    return {name: [*(one for one in before.get(name, []) if one != last), last] for name, (last,) in now.items()}


def changed_code(code: States) -> list[str]:
    """A sentence on each file that has changed."""
    return [
        f"{name} was changed while the run was under way: a part of it is of the earlier code"
        for name, states in code.items()
        if len(states) > 1
    ]
