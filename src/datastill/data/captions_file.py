"""The captions file of a folder of images: a line for each caption, with the image that it belongs to.

`captions.csv`, `.tsv`, `.jsonl` or `.json`, or `metadata.*` as the Hugging Face Hub has it, with the columns `image`
(or `file_name`) and `caption` (or `text`), and `split` where the file says it. An image of several captions has several
lines.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from datastill.core.errors import InputError
from datastill.store.opening import printable

KINDS = ("csv", "tsv", "jsonl", "json")
_NAMES = tuple(f"{stem}.{kind}" for stem in ("captions", "metadata") for kind in KINDS)
_IMAGE, _CAPTION = ("image", "file_name"), ("caption", "text")
#: What `split` may say; validation images stand in for test images where there are none.
_SPLITS = {"": "", "train": "train", "test": "test", "val": "val", "validation": "val", "restval": "train"}
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Line:
    """A caption of an image."""

    image: str  #: path below the folder
    caption: str
    split: str = ""  #: "train", "test", "val", or "" where the file does not say
    number: int = 0  #: line of the file, from 1


def find_captions(folder: Path) -> Path | None:
    """The captions file of a folder; None where it has none."""
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def read_captions(path: Path) -> list[Line]:
    """All captions of a file, in its order.

    Raises:
        InputError: it is no UTF-8, lacks a column, or a line has no image, an empty caption or an unknown split.
    """
    lines = [_line(path, number, row) for number, row in _rows(path, _text(path))]
    if not lines:
        raise InputError(f"{printable(path)} has no captions; write one line for each, with image and caption.")
    return lines


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{printable(path)} is larger than a captions file of 1 GiB; split it up.")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{printable(path)} is not UTF-8 (line {number}); save it as UTF-8, for example with "
            "iconv -f latin1 -t utf-8."
        ) from error


def _rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Lines with their numbers."""
    if path.suffix == ".json":
        found = _json(path, 1, text)
        if not isinstance(found, list):
            raise InputError(f"{printable(path)} must be a list of records with image and caption.")
        yield from enumerate(found, 1)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, _json(path, number, line)
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            for row in reader:
                yield reader.line_num, {str(key).strip(): value for key, value in row.items()}
        except csv.Error as error:
            raise InputError(f"{printable(path)} cannot be read at line {reader.line_num} ({error}).") from error


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)} is no JSON at line {number} ({error}); mend it.") from error


def _line(path: Path, number: int, row: Any) -> Line:
    where = f"{printable(path)}, line {number},"
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is no record with image and caption.")
    image = next((row[name] for name in _IMAGE if name in row), None)
    caption = next((row[name] for name in _CAPTION if name in row), None)
    if image is None or caption is None:
        missing = " and ".join(name for name, value in (("image", image), ("caption", caption)) if value is None)
        raise InputError(f"{where} has no {missing}; the columns are image (or file_name) and caption (or text).")
    if not isinstance(image, str) or not image.strip():
        raise InputError(f"{where} names no image; give the path of one below the folder.")
    if not isinstance(caption, str) or not caption.strip():
        raise InputError(f"{where} has an empty caption for {image.strip()!r}; write one, or remove the line.")
    split = str(row.get("split") or "").strip().lower()
    if split not in _SPLITS:
        raise InputError(f"{where} has the split {split!r}; use train, test or val, or leave the column out.")
    return Line(PurePosixPath(image.strip()).as_posix(), " ".join(caption.split()), _SPLITS[split], number)
