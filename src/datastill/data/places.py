"""Where the images of a source are read from, found without reading them: nothing may be written there."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.data.sources import is_there, sources, split_options


def places_of(source: Any) -> tuple[Path, ...]:
    """The folders of a source, links followed; () where it has none, or cannot be found here.

    Args:
        source: anything that `load_real` takes, or what it returned.
    """
    from datastill.data.real import RealSet

    if isinstance(source, RealSet):
        return tuple(Path(place) for place in source.places)
    if isinstance(source, str | os.PathLike):
        with contextlib.suppress(InputError, OSError, ValueError):
            return tuple(dict.fromkeys(_named(os.fspath(source))))
        return ()
    if source is None:
        return ()
    if isinstance(source, Mapping):
        source = tuple(source.values())
    if isinstance(source, tuple | list) and len(source) <= 2:
        return tuple(dict.fromkeys(place for part in source for place in places_of(part)))
    root = getattr(source, "root", None)  # of torchvision's datasets
    return places_of(Path(root)) if isinstance(root, str | os.PathLike) and is_there(Path(root)) else ()


def under_data(name: str) -> Path | None:
    """The folder of that name in `DATASTILL_DATA`; letter case and -/_ may differ."""
    root = os.environ.get("DATASTILL_DATA")
    if not root or not Path(root).expanduser().is_dir():
        return None
    folder = Path(root).expanduser()
    if is_there(folder / name) and (folder / name).is_dir():
        return folder / name
    wanted = name.lower().replace("-", "_")
    return next(
        (c for c in sorted(folder.iterdir()) if c.is_dir() and c.name.lower().replace("-", "_") == wanted),
        None,
    )


def _named(text: str) -> Iterator[Path]:
    name, options = (text, {}) if is_there(text) else split_options(text)
    known = sources().get(name)
    if known is not None:
        parameter = inspect.signature(known).parameters.get("base")
        if parameter is not None:  # a biased set is made of the images of another
            yield from places_of(options.get("base", parameter.default))
        return
    path = Path(name).expanduser()
    folder = path if is_there(path) else under_data(name)
    if folder is None:
        return
    yield folder.resolve()
    yield from _links(folder, 2)


def _links(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that links inside a folder lead to: their images are read as well."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        inside = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    for child in inside:
        if child.is_symlink():
            yield child.resolve()
        elif depth > 1:
            yield from _links(child, depth - 1)
