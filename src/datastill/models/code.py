"""Files of the user's code in which networks and methods stand, each with a hash of what is in it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datastill.core.usercode import FindsTheirs, is_theirs
from datastill.models.factory import NetworkFactory
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


def code_key(factory: NetworkFactory) -> dict[str, Any]:
    """For keys of what is kept and taken up by other runs: the user's code of a network, where it is the user's.

    Names and shapes of parameters, which `NetworkFactory.describe` has, do not tell what a forward pass does.
    """
    found = code_of(factory)
    return {"code": dict(found)} if found else {}
