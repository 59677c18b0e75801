"""Real sets out of a folder with one sub-folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datastill.core.errors import InputError
from datastill.data.cache import Listing, materialise
from datastill.data.decode import CorruptImage, decode_image
from datastill.data.inside import Links
from datastill.data.parts import is_image
from datastill.data.raw import Raw, Request, Split
from datastill.data.splits import first_usable, found_note, listed
from datastill.data.tree import Layout, layout_of
from datastill.store.opening import printable, sound_path

#: What systems leave in folders.
_LITTER = frozenset((".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".gitignore", ".nomedia"))


def from_folder(root: Path, request: Request) -> Raw:
    """Class sub-folders of `root`, or of those of its sub-folders that are its splits (`tree.layout_of`).

    Images are found at any depth in a class folder. Hidden files and files that are no images are passed over, counted,
    and the first is named.

    Raises:
        InputError: no class folders, one without an image, names that can be read in several ways, or links that lead
            out of `root`.
    """
    links = Links(root, request.follow_links)
    layout = layout_of(root, request)
    notes, passed = list(layout.notes), list(layout.passed)
    train = _read_split(layout, layout.train, request, links, passed)
    if request.choice.train is None:
        _refuse_one_class(train, layout)
    names, test = first_usable(
        layout.decision, lambda part: _read_split(layout, layout.classes(part), request, links, passed), notes
    )
    found = found_note(
        (train, _folders(layout.decision.train)),
        (test, _folders(names)),
        _folders(layout.decision.left),
        test is not None and layout.decision.stand_in,
    )
    return Raw(root.name, str(root), train, test, notes=(*found, *notes, *_passed_over(passed, root)))


def _refuse_one_class(train: Split, layout: Layout) -> None:
    """Where splits that were told by their names have one class between them, the names may be the classes'."""
    decision = layout.decision
    parts = _folders([*decision.train, *(name for test in decision.tests for name in test), *decision.left])
    if len(set(train.labels)) == 1 and len(parts) > 1:
        raise InputError(
            f"All images are of one class ({train.labels[0]!r}) in {listed(_folders(decision.train))}; at least two "
            f"are needed (or --train . if {listed(sorted(parts))} are the classes)."
        )


def _folders(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}/" for name in names)


def _read_split(layout: Layout, classes: Sequence[Path], request: Request, links: Links, passed: list[Path]) -> Split:
    files, labels = list_classes(classes, links, passed)
    folder = layout.folder_of(classes)
    key = ["folder", str(folder), [(str(f.relative_to(folder)), *_stamp(f)) for f in files]]

    def encoded(i: int) -> bytes:
        try:
            return files[i].read_bytes()
        except OSError as error:
            raise CorruptImage(
                f"{printable(files[i])} cannot be read ({error.strerror}); mend or remove it, or skip such images with "
                "skip_bad (--skip-bad)."
            ) from error

    def decode(i: int) -> np.ndarray:
        return decode_image(encoded(i), printable(files[i]), request)

    listing = Listing(labels, decode, lambda i: printable(files[i]), encoded=encoded)
    return materialise(key, lambda: listing, request, "folder")[0]


def list_classes(
    classes: Sequence[Path], links: Links, passed: list[Path] | None = None
) -> tuple[list[Path], list[str]]:
    """Image files of class folders and their class names, sorted by class and path.

    Args:
        classes: the class folders; those of one name are one class.
        links: which links may be followed.
        passed: added to: files that are no images.

    Raises:
        InputError: a class folder without an image, or links that lead out of the data.
    """
    files: list[Path] = []
    labels: list[str] = []
    for child in sorted(classes, key=lambda folder: (folder.name, folder)):
        sound_path(child)
        before = len(links.outside)
        others: list[Path] = []
        found_here = _images_below(child, links, others)
        if not found_here and len(links.outside) == before:
            raise InputError(
                f"The class folder {child} has no image (.png, .jpg, .webp, ...){_instead(others)}; add images or "
                "remove the folder."
            )
        files += found_here
        labels += [child.name] * len(found_here)
        if passed is not None:
            passed += others
    links.refuse()
    return files, labels


def _images_below(folder: Path, links: Links, others: list[Path]) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    if not links.allows(folder):
        return found
    for here, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up
            below.clear()
            continue
        seen.add(real)
        shown = [Path(here, name) for name in below if not name.startswith(".")]
        below[:] = [path.name for path in links.inside(shown)]
        paths = [Path(here, name) for name in names]
        images = [path for path in paths if is_image(path)]
        if len(images) < len(paths):
            others += [path for path in paths if not is_image(path) and not _is_litter(path.name)]
        found += links.inside(images)
    return sorted(found)


def _is_litter(name: str) -> bool:
    return name.lower() in _LITTER or name.startswith("._")


def _instead(others: Sequence[Path]) -> str:
    return f" but {_kinds(others)}, such as {printable(min(others))}" if others else ""


def _passed_over(files: Sequence[Path], root: Path) -> tuple[str, ...]:
    if not files:
        return ()
    first = printable(min(file.relative_to(root) for file in files))
    return (f"passed over as no images: {_kinds(files)}, such as {first}",)


def _kinds(files: Sequence[Path]) -> str:
    counts = Counter(_kind(file) for file in files)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(6))


def _kind(file: Path) -> str:
    if file.name.startswith("."):
        return "hidden"
    return file.suffix.lower() or "without an extension"


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # a dangling link: reported, or skipped, when it is decoded
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
