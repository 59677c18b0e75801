"""Folders of images, looked into only as far as needed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from datastill.core.errors import InputError
from datastill.data.inside import Links
from datastill.data.splits import kind_of, rest_of, words_of

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in "png jpg jpeg jpe jfif bmp gif webp tif tiff ppm pgm pbm pnm jp2 avif tga".split()  # noqa: SIM905
)

#: How the names begin of what is none of the owner's: hidden files, and what macOS puts into archives.
_HIDDEN = (".", "__MACOSX")


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file, and not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted.

    Raises:
        InputError: it cannot be read.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if not entry.name.startswith(_HIDDEN))


class Part:
    """A folder, looked into only as far as needed."""

    def __init__(self, path: Path, links: Links) -> None:
        self.path, self.links = path, links
        self.name = path.name

    @cached_property
    def loose(self) -> bool:
        """Whether images lie in it and not in a folder of it. A link that leads out is not looked behind."""
        return not self._allowed or any(is_image(file) for file in _files(self.path))

    @cached_property
    def below(self) -> tuple[Part, ...]:
        """Folders in it that hold images at any depth."""
        if not self._allowed:
            return ()
        parts = (Part(child, self.links) for child in sorted(folders_in(self.path)))
        return tuple(part for part in parts if part.holds)

    @cached_property
    def holds(self) -> bool:
        """Whether there are images in it at any depth."""
        return self.loose or any(
            _holds(path, self.links, {os.path.realpath(self.path)}) for path in folders_in(self.path)
        )

    @cached_property
    def _allowed(self) -> bool:
        return bool(self.links.inside([self.path]))

    def unwrapped(self, deepest: int = 4) -> Part:
        """The folder that holds the class folders: archives repeat a name (train/train/a) or put images/ between."""
        if self.loose or len(self.below) != 1 or not deepest:
            return self
        (only,) = self.below
        repeats = only.name == self.name or (kind_of(only.name) or "") == kind_of(self.name) or not _meaning(only.name)
        return only.unwrapped(deepest - 1) if repeats and only.below and not only.loose else self


def _meaning(name: str) -> bool:
    return bool(rest_of(name)) or kind_of(name) is not None or not words_of(name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error


def _files(folder: Path) -> Iterable[Path]:
    return (Path(entry.path) for entry in _entries(folder) if not entry.is_dir())


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, in no order."""
    return [Path(entry.path) for entry in _entries(folder) if not entry.name.startswith(_HIDDEN) and entry.is_dir()]


def _holds(folder: Path, links: Links, seen: set[str]) -> bool:
    if not links.inside([folder]):
        return True  # listing it will say so
    real = os.path.realpath(folder)
    if real in seen:  # a link that leads back up
        return False
    seen.add(real)
    return any(map(is_image, _files(folder))) or any(_holds(child, links, seen) for child in folders_in(folder))
