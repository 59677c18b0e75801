"""Where the images of a source are read from, found without reading them: nothing may be written there."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.data.sources import sources, split_options
from datastill.store.opening import sound_path
from datastill.store.outputs import OWN_FILES


@dataclass(frozen=True)
class Named:
    """What the text of a source names."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    path: Path | None = None  #: what is there by that name, a folder or a file; it wins over what is built in
    built_in: Callable[..., Any] | None = None
    shadows: bool = False  #: whether a folder has the name of a built-in set


def named(source: str | os.PathLike[str]) -> Named:
    """What a path or name stands for: what is there by that path, else what is built in, else a name.

    A folder without data, such as results, has no claim on the name of a built-in set, nor has one where options of the
    built-in set follow, or a colon alone: `digits:` is always the built-in set.

    Raises:
        InputError: it is empty, too long for a path, or its options cannot be read.
    """
    text = os.fspath(source)
    if not isinstance(text, str) or not text.strip():
        raise InputError("The source is empty; give a path or a name such as 'digits'.")
    if not isinstance(source, str):
        return Named(text, path=_existing(text))
    whole = _existing(text)
    name, options = (text, {}) if whole is not None else split_options(text)
    path = whole or _existing(name)
    known = sources().get(name)
    if known is not None:
        holds = path is not None and _has_data(path)
        if not holds or text == f"{name}:" or (options and set(options) <= set(inspect.signature(known).parameters)):
            return Named(name, options, built_in=known, shadows=holds)
        return Named(name, options, path, shadows=True)
    return Named(name, options, path)


def _existing(text: str) -> Path | None:
    path = sound_path(text)
    with contextlib.suppress(RuntimeError):  # no home folder
        path = path.expanduser()
    return path if path.exists() else None


def _has_data(path: Path) -> bool:
    from datastill.data.inside import Links
    from datastill.data.parquet import find_parquet
    from datastill.data.parts import Part

    if not path.is_dir() or any((path / name).exists() for name in OWN_FILES):
        return False
    try:
        return bool(find_parquet(path)) or Part(path, Links(path)).holds
    except (InputError, OSError):
        return True


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
    return places_of(Path(root)) if isinstance(root, str | os.PathLike) and Path(root).exists() else ()


def under_data(name: str) -> Path | None:
    """The folder of that name in `DATASTILL_DATA`; letter case and -/_ may differ."""
    root = os.environ.get("DATASTILL_DATA")
    if not root or not Path(root).expanduser().is_dir():
        return None
    folder = Path(root).expanduser()
    if (folder / name).is_dir():  # a name that is no path was refused before
        return folder / name
    wanted = name.lower().replace("-", "_")
    return next(
        (c for c in sorted(folder.iterdir()) if c.is_dir() and c.name.lower().replace("-", "_") == wanted),
        None,
    )


def _named(text: str) -> Iterator[Path]:
    found = named(text)
    if found.built_in is not None:
        parameter = inspect.signature(found.built_in).parameters.get("base")
        if parameter is not None:  # a biased set is made of the images of another
            yield from places_of(found.options.get("base", parameter.default))
        return
    folder = found.path or under_data(found.name)
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
