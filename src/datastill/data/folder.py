"""Real sets out of a folder with one sub-folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from datastill.core.errors import InputError
from datastill.data.cache import Listing, materialise
from datastill.data.decode import CorruptImage, decode_image
from datastill.data.inside import Links
from datastill.data.raw import Raw, Request, Split

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in "png jpg jpeg jpe jfif bmp gif webp tif tiff ppm pgm pbm pnm jp2 avif tga".split()  # noqa: SIM905
)
TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation")


def from_folder(root: Path, request: Request) -> Raw:
    """Class sub-folders of `root`, or of its `train/` and `test/`.

    Without `test/`, a `val/`, `valid/` or `validation/` is the test split, and noted as such. Images are
    found at any depth in a class folder; hidden files and files that are no images are passed over.

    Raises:
        InputError: no class folders, one without an image, or links that lead out of `root`.
    """
    links = Links(root, request.follow_links)
    children = {child.name.lower(): child for child in _visible(root) if child.is_dir()}
    train = next((children[n] for n in TRAIN if n in children), None)
    if train is None:
        return Raw(root.name, str(root), _read_split(root, request, links))
    test = next((children[n] for n in TEST if n in children), None)
    notes: tuple[str, ...] = ()
    if test is None:
        test = next((children[n] for n in VALIDATION if n in children), None)
        notes = () if test is None else (f"test split: the folder {test.name}/",)
    return Raw(
        root.name,
        str(root),
        _read_split(train, request, links),
        None if test is None else _read_split(test, request, links),
        notes=notes,
    )


def _read_split(folder: Path, request: Request, links: Links) -> Split:
    files, labels = list_classes(folder, links)
    key = ["folder", str(folder), [(str(f.relative_to(folder)), *_stamp(f)) for f in files]]

    def decode(i: int) -> np.ndarray:
        try:
            data = files[i].read_bytes()
        except OSError as error:
            raise CorruptImage(
                f"{files[i]} cannot be read ({error.strerror}); mend or remove it, or skip such images with "
                "skip_bad (--skip-bad)."
            ) from error
        return decode_image(data, str(files[i]), request)

    listing = Listing(labels, decode, lambda i: str(files[i]))
    return materialise(key, lambda: listing, request, "folder")[0]


def list_classes(folder: Path, links: Links) -> tuple[list[Path], list[str]]:
    """Image files and their class names, sorted by class and path.

    Raises:
        InputError: no class folders, one without an image, or links that lead out of the data.
    """
    classes = [child for child in _visible(folder) if child.is_dir()]
    if not classes:
        loose = sum(is_image(child) for child in _visible(folder))
        found = f"{loose} images but no class sub-folders" if loose else "no class sub-folders with images"
        raise InputError(f"{folder} has {found}; put the images of each class into a folder of its own.")
    files: list[Path] = []
    labels: list[str] = []
    for child in classes:
        before = len(links.outside)
        found_here = _images_below(child, links)
        if not found_here and len(links.outside) == before:
            raise InputError(
                f"The class folder {child} has no image (.png, .jpg, .webp, ...); add images or remove the folder."
            )
        files += found_here
        labels += [child.name] * len(found_here)
    links.refuse()
    return files, labels


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file, and not hidden."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error


def _images_below(folder: Path, links: Links) -> list[Path]:
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
        found += links.inside(path for path in (Path(here, name) for name in names) if is_image(path))
    return sorted(found)


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # a dangling link: reported, or skipped, when it is decoded
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
