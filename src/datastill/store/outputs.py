"""Where results may go: asked by whatever writes, before it works.

Nothing is written into data, over what others made, or where it cannot be written in the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from datastill.core.errors import InputError
from datastill.store.files import read_json
from datastill.store.opening import sound_path
from datastill.store.unfinished import remove_rests

#: Endings of files that a folder of classes is recognized by.
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
#: Files that datastill's own folders are recognized by.
OWN_FILES = ("manifest.json", "config.json", "plan.json", "meta.json", "study.json", "weights.json", "teacher.json")
#: Folders above an output that are looked at.
_ABOVE = 3


@dataclass(frozen=True)
class Kind:
    """What lies in a folder of results, and how one is known.

    Attributes:
        what: in an error.
        proof: the JSON file that such a folder has.
        keys: what that file says; () leaves it to its reader to refuse another's.
        parts: patterns; a folder of such entries alone is the beginning of one.
    """

    what: str
    proof: str = ""
    keys: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def lies_in(self, folder: Path) -> bool:
        """Whether a folder is one of this kind."""
        if self.proof and (folder / self.proof).is_file():
            with contextlib.suppress(InputError):
                record = read_json(folder / self.proof)
                return not self.keys or (isinstance(record, dict) and record.keys() >= set(self.keys))
            return not self.keys
        return all(any(fnmatchcase(name, part) for part in self.parts) for name in _visible(folder))


RUN = Kind("run", "config.json", parts=("prepare",))
EXPERTS = Kind("experts", "meta.json")
COMPARISON = Kind("comparison", "plan.json")
FRONTIER = Kind("frontier", "frontier.json", ("points", "lines"), ("baselines", "[0-9]*s"))
MATRIX = Kind("matrix over networks", "cross.json", ("networks", "methods"))
WEIGHTS = Kind("table of weights", "weights.json", ("data", "report", "classes"), ("weights.csv", "crowd_and_odd.png"))
STUDY = Kind("study", "study.json", ("data", "rows", "cells"), ("cells", "sets", "prepare", "experts"))
DEMO = Kind("demo", parts=("set-[0-9]*", "evaluation.json", "report.html", "comparison.png", "animation.gif"))
IMPORTED = Kind("imported sets", parts=("[0-9]*",))
NEW = Kind("results of this command")


def refuse_out(out: str | Path, data: Iterable[Path] = (), kind: Kind = NEW) -> None:
    """Refuse a folder that results cannot or should not go into; makes nothing, and removes what a kill left beside it.

    Args:
        out: the folder.
        data: where the real images are read from (`data.places.places_of`).
        kind: what may lie in it already.

    Raises:
        InputError: it lies in data or holds it, a file is in the way, it is not empty and not of this kind, or cannot
            be written.
    """
    out = sound_path(out)
    refuse_inside(out, data)
    _refuse_unwritable(out)
    remove_rests(out)
    if out.is_dir() and any(_visible(out)):
        if not kind.lies_in(out):
            if kind.proof and (out / kind.proof).is_file():
                raise InputError(
                    f"{out / kind.proof} is damaged, or of something else than a {kind.what}. Remove it if it is "
                    "damaged, to have it made again; else choose another --out to overwrite nothing."
                )
            raise InputError(f"{out} is not empty and holds no {kind.what}; choose another --out to overwrite nothing.")
    else:
        _refuse_class_folder(out)


def refuse_out_file(target: Path, keys: Iterable[str], data: Iterable[Path] = ()) -> None:
    """Refuse a JSON file that a result cannot or should not go into; makes nothing.

    Args:
        target: the file.
        keys: what a result says; a file of something else is not overwritten.
        data: see `refuse_out`.

    Raises:
        InputError: it is a folder, another's file, lies in data, or cannot be written.
    """
    refuse_inside(sound_path(target), data)
    _refuse_unwritable(target.parent)
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a JSON file for the result.")
    if target.exists():
        record = None
        with contextlib.suppress(InputError):
            record = read_json(target)
        if not isinstance(record, dict) or not record.keys() >= set(keys):
            raise InputError(f"{target} is there and holds no earlier result; name another file to overwrite nothing.")
    else:
        _refuse_class_folder(target)


def refuse_inside(out: Path, data: Iterable[Path]) -> None:
    """Refuse what would lie in the data, and be read as images of another class next time, or hold them.

    Raises:
        InputError: it does.
    """
    here = out.resolve()
    for place in (Path(p).resolve() for p in data):
        if here.is_relative_to(place):
            raise InputError(f"{out} lies inside the data ({place}); choose an --out outside it.")
        if place.is_relative_to(here):
            raise InputError(f"{out} holds the data ({place}); choose an --out beside it.")


def _refuse_unwritable(out: Path) -> None:
    above = next(p for p in (out, *out.absolute().parents) if p.exists() or p.is_symlink())
    if not above.is_dir():
        raise InputError(f"Cannot make the folder {out}: a file of that name is in the way; choose another --out.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"Cannot write {out}: {above} is not yours to write; choose another --out.")


def _refuse_class_folder(out: Path) -> None:
    """A new folder beside folders of images would be one more class to whoever reads them."""
    above = [p for p in out.resolve().parents if p.is_dir()][:_ABOVE]
    for folder in above:
        classes = [folder / name for name in _visible(folder) if (folder / name).is_dir() and folder / name != out]
        if len(classes) > 1 and all(_is_class(one) for one in classes):
            raise InputError(
                f"{out} would lie among folders of images and be read as one more class of {folder}; choose another "
                "--out."
            )


def _is_class(folder: Path) -> bool:
    if any((folder / name).is_file() for name in OWN_FILES):
        return False
    return any(name.lower().endswith(_IMAGES) for name in _visible(folder))


def _visible(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield entry.name
