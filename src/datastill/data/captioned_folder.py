"""Real sets of pairs out of a folder of images with a captions file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datastill.core.errors import InputError
from datastill.data.cache import Listing, materialise
from datastill.data.captions_file import Line, find_captions, read_captions
from datastill.data.decode import CorruptImage, decode_image
from datastill.data.inside import Links
from datastill.data.raw import Raw, Request, Sentences, Split, refuse_choice
from datastill.store.opening import printable


def from_captioned(root: Path, request: Request, *, text: str = "hashed") -> Raw:
    """Pairs of the images in `root` and the captions in its captions file.

    Args:
        root: the folder.
        request: how to read images; they must be of one size, or `request.size` makes them so.
        text: the text encoder; "hashed:dim=512"; semicolons part its options.

    Raises:
        InputError: the captions cannot be used, an image is missing or lies elsewhere, or the file names training
            images alone by their split and others by none.
    """
    refuse_choice(request, "A folder with a captions file, whose column `split` chooses,")
    path = find_captions(root)
    assert path is not None
    lines = read_captions(path)
    links = Links(root, request.follow_links)
    parts = {split: [line for line in lines if line.split == split] for split in ("", "train", "test", "val")}
    if parts[""] and (parts["train"] or parts["test"] or parts["val"]):
        number = parts[""][0].number
        raise InputError(f"{printable(path)}, line {number}, has no split and others do; give one to each, or to none.")
    _refuse_both_sides(path, parts["train"], parts["test"] or parts["val"])
    train = parts[""] or parts["train"]
    if not train:
        raise InputError(f"{printable(path)} has no caption of the split train; give some images to it.")
    test = parts["test"] or parts["val"]
    made = _split(root, path, train, links, request)
    return Raw(root.name, str(root), made, _split(root, path, test, links, request) if test else None, text=text)


def _refuse_both_sides(path: Path, train: Sequence[Line], test: Sequence[Line]) -> None:
    """Splits are by image, never by caption."""
    known = {line.image for line in train}
    both = next((line for line in test if line.image in known), None)
    if both is not None:
        raise InputError(
            f"{printable(path)} has {both.image!r} in train and in {both.split} (line {both.number}); an image with "
            "all its captions belongs to one split."
        )


def _split(root: Path, path: Path, lines: Sequence[Line], links: Links, request: Request) -> Split:
    """The distinct images of the lines, decoded, and which caption belongs to which."""
    position: dict[str, int] = {}
    files: list[Path] = []
    for line in lines:
        if line.image not in position:
            position[line.image] = len(files)
            files.append(_file(root, path, line))
    links.inside(files)
    links.refuse()

    def encoded(i: int) -> bytes:
        try:
            return files[i].read_bytes()
        except OSError as error:
            raise CorruptImage(
                f"{printable(files[i])} cannot be read ({error.strerror}); mend or remove it."
            ) from error

    def decode(i: int) -> np.ndarray:
        return decode_image(encoded(i), printable(files[i]), request)

    stamps = [(f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = ["captioned", str(root), [[str(f.relative_to(root)), *stamp] for f, stamp in zip(files, stamps, strict=True)]]
    listing = Listing([0] * len(files), decode, lambda i: printable(files[i]), encoded=encoded)
    made, _ = materialise(key, lambda: listing, request, "captioned")
    left_out = set(made.skipped)
    kept = {i: k for k, i in enumerate(i for i, file in enumerate(files) if printable(file) not in left_out)}
    told = [(line.caption, kept[position[line.image]]) for line in lines if position[line.image] in kept]
    image = torch.tensor([k for _, k in told], dtype=torch.int64)
    return Split(made.store, made.labels, made.skipped, sentences=Sentences([c for c, _ in told], image))


def _file(root: Path, path: Path, line: Line) -> Path:
    where = f"{printable(path)}, line {line.number},"
    named = Path(line.image)
    if named.is_absolute() or ".." in named.parts:
        raise InputError(f"{where} names {line.image!r}, which is not below {root}; give paths within the folder.")
    try:
        found = (root / named).is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise InputError(f"{where} names the image {line.image!r}, and there is none; add it, or remove the line.")
    return root / named
