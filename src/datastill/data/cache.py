"""Images decoded once: a uint8 `.npy` and a JSON record beside it, in the cache folder.

The folder is `DATASTILL_CACHE`, else `datastill` in `XDG_CACHE_HOME`, else `~/.cache/datastill`. A
damaged entry is rebuilt; where the folder cannot be written, images stay in memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from datastill.core.errors import InputError
from datastill.data.decode import CorruptImage, ImageError
from datastill.data.raw import LabelId, Request, Split
from datastill.data.store import DecodeStore, MemmapStore, MemoryStore, Store, SubsetStore
from datastill.store import schema
from datastill.store.files import atomic_path, digest, read_sealed, write_sealed
from datastill.store.opening import map_array

VERSION = 1  #: of the decoding: raise it whenever the same bytes would give other pixels
IN_MEMORY_BYTES = 1 << 30  #: storage="auto" maps larger sets from disk
CHUNK = 512  #: images decoded between two writes
THREADS = 2  #: Pillow decodes outside the interpreter lock; more threads wait for it


@dataclass(frozen=True)
class Listing:
    """Encoded images in order, not yet decoded."""

    labels: Sequence[LabelId]
    decode: Callable[[int], np.ndarray]  #: position -> (c, h, w) uint8; raises ImageError
    name: Callable[[int], str]  #: position -> what errors call it
    names: tuple[str, ...] | None = None  #: class names by integer label
    encoded: Callable[[int], bytes] | None = None  #: position -> the file's bytes; raises ImageError


@dataclass
class Record:
    """What is known of a decoded listing: the JSON of a cache entry."""

    shape: tuple[int, int, int]
    labels: list[LabelId]  #: of every listed image, the skipped ones too
    names: list[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)  #: position -> name of an image that is left out
    crc: int | None = None  #: CRC-32 of the pixels in the .npy, which holds zeros for skipped images


class Stored(schema.Record):
    """What a `Record` may be in its file."""

    shape: Annotated[list[schema.Side], Field(min_length=3, max_length=3)]
    labels: list[schema.Whole] | list[schema.Text]
    names: list[schema.Text] | None = None
    skipped: dict[str, schema.Text] = Field(default_factory=dict)
    crc: schema.Count | None = None


def cache_folder() -> Path:
    """Where decoded sets are kept; not created here."""
    given = os.environ.get("DATASTILL_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datastill"


def materialise(
    key: Any, listing: Callable[[], Listing], request: Request, label: str
) -> tuple[Split, tuple[str, ...] | None]:
    """Decode a listing, or find it decoded: the split, and the class names by integer label if known.

    Args:
        key: JSON-able identity of the encoded images; another key is another entry.
        listing: makes the listing; not called where the cache has all that is needed.
        request: gives storage, mode, size and skip_bad.
        label: a readable beginning for the entry's file names.

    Raises:
        InputError: a corrupt image (unless skip_bad), mixed modes or sizes, no image.
    """
    identity = digest([VERSION, key, request.size, request.mode, request.skip_bad])
    entry = cache_folder() / "real" / f"{label}-{identity}.json"
    if request.watch is not None:
        request.watch(listing())
    if request.storage == "decode":
        return _on_access(entry, listing(), request.skip_bad)
    found = _open(entry, request.storage)
    if found is None:
        items = listing()
        try:
            with quiet_decoding():
                _write(entry, items, request.skip_bad)
            found = _open(entry, request.storage)
            if found is None:
                raise InputError(f"{entry} cannot be read back")
        except ImageError:
            raise
        except InputError as error:
            warn_unkept("Decoded images are", error)
            with quiet_decoding():
                found = _in_memory(items, request.skip_bad)
    record, store = found
    items_of = functools.cache(listing)
    return _split(record, store, lambda i: items_of().name(i)), _names(record)


def _open(entry: Path, storage: str) -> tuple[Record, Store] | None:
    """A sound cache entry, or None where it is absent or damaged."""
    record = _read(entry)
    if record is None or record.crc is None:
        return None
    try:
        store: Store = MemmapStore(entry.with_suffix(".npy"))
        if len(store) != len(record.labels) or store.shape != record.shape:
            return None
        if storage == "memmap" or (storage == "auto" and store.array.nbytes > IN_MEMORY_BYTES):  # type: ignore[attr-defined]
            return record, store
        pixels = np.array(map_array(entry.with_suffix(".npy")))
    except (InputError, OSError, ValueError):
        return None
    if pixels.dtype != np.uint8 or zlib.crc32(pixels.data) != record.crc:
        return None
    return record, MemoryStore(torch.from_numpy(pixels))


def _read(entry: Path) -> Record | None:
    try:
        record = Record(**read_sealed(entry, Stored))
        record.shape = tuple(record.shape)  # type: ignore[assignment]
        return record
    except (InputError, TypeError):
        return None


def _write(entry: Path, items: Listing, skip_bad: bool) -> None:
    """Decode into the entry. Any InputError that is not an ImageError means that it cannot be written."""
    record, checksum = _empty_record(items), 0
    with atomic_path(entry.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        for chunk in decoded(items, record, skip_bad):
            if not file.tell():
                shape = (len(items.labels), *record.shape)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            # plain writes: a memory map would end the process on a full disk
            file.write(chunk.data)
            checksum = zlib.crc32(chunk.data, checksum)
    record.crc = checksum
    write_sealed(entry, record.__dict__)


def _in_memory(items: Listing, skip_bad: bool) -> tuple[Record, Store]:
    record = _empty_record(items)
    pixels = np.concatenate(list(decoded(items, record, skip_bad)))
    return record, MemoryStore(torch.from_numpy(pixels))


def _on_access(entry: Path, items: Listing, skip_bad: bool) -> tuple[Split, tuple[str, ...] | None]:
    """A store that decodes each time. Once, all images are tried, which is recorded."""
    record = _read(entry)
    if record is None or len(record.labels) != len(items.labels):
        record = _empty_record(items)
        with quiet_decoding():
            for _ in decoded(items, record, skip_bad):
                pass
        try:
            write_sealed(entry, record.__dict__)
        except InputError as error:
            warn_unkept("Decoded images are", error)
    store = DecodeStore(len(items.labels), record.shape, items.decode)
    return _split(record, store, items.name), _names(record)


def decoded(items: Listing, record: Record, skip_bad: bool) -> Iterator[np.ndarray]:
    """Chunks (m, c, h, w) uint8 in order; fills `record` with the shape and with what was skipped."""
    lead, first = _first_image(items, skip_bad)
    record.shape = first.shape
    count = len(items.labels)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, count, CHUNK):
            positions = range(start, min(start + CHUNK, count))
            images = np.zeros((len(positions), *record.shape), np.uint8)
            for i, image in zip(positions, pool.map(functools.partial(_attempt, items, skip_bad), positions)):
                if image is None:
                    record.skipped[str(i)] = items.name(i)
                elif image.shape != record.shape:
                    raise _mixed(items.name(lead), record.shape, items.name(i), image.shape)
                else:
                    images[i - start] = image
            yield images
    _refuse_emptied(items, record)


def _attempt(items: Listing, skip_bad: bool, i: int) -> np.ndarray | None:
    """An image, or None where it cannot be read and such are left out."""
    try:
        return items.decode(i)
    except CorruptImage:
        if not skip_bad:
            raise
        return None


def _first_image(items: Listing, skip_bad: bool) -> tuple[int, np.ndarray]:
    """The first image that can be read, and its position."""
    count = len(items.labels)
    for i in range(count):
        image = _attempt(items, skip_bad, i)
        if image is not None:
            return i, image
    raise ImageError(f"None of the {count} images can be decoded; check the files.")


@contextlib.contextmanager
def quiet_decoding() -> Iterator[None]:
    """Without Pillow's remarks on odd metadata. Around the threads, since filters belong to the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _mixed(first: str, shape: tuple[int, ...], other: str, found: tuple[int, ...]) -> ImageError:
    if shape[0] != found[0]:
        kinds = {1: "gray", 3: "color"}
        return ImageError(
            f"Images mix modes: {first} is {kinds[shape[0]]} and {other} is {kinds[found[0]]}; "
            "convert all with mode='RGB' or 'L' (--mode RGB)."
        )
    return ImageError(
        f"Images mix sizes: {first} is {shape[1]}x{shape[2]} and {other} is {found[1]}x{found[2]} "
        "(height x width); resize all with size=32 or (height, width) (--size 32)."
    )


def _refuse_emptied(items: Listing, record: Record) -> None:
    if not record.skipped:
        return
    left = {label for i, label in enumerate(items.labels) if str(i) not in record.skipped}
    for label in dict.fromkeys(items.labels):
        if label not in left:
            name = items.names[label] if items.names and isinstance(label, int) else label
            raise ImageError(f"Class {name!r} has no readable image; mend its files or remove the class.")


def _empty_record(items: Listing) -> Record:
    if not len(items.labels):
        raise ImageError("There are no images to load; check the path and the file types.")
    names = None if items.names is None else list(items.names)
    return Record(shape=(0, 0, 0), labels=list(items.labels), names=names)


def _split(record: Record, store: Store, called: Callable[[int], str]) -> Split:
    store.called = called
    if not record.skipped:
        return Split(store, record.labels)
    rows = [i for i in range(len(record.labels)) if str(i) not in record.skipped]
    labels = [record.labels[i] for i in rows]
    skipped = tuple(record.skipped.values())
    return Split(SubsetStore(store, torch.tensor(rows)), labels, skipped)


def _names(record: Record) -> tuple[str, ...] | None:
    return None if record.names is None else tuple(record.names)


@contextlib.contextmanager
def kept(what: str) -> Iterator[None]:
    """Around a write into the cache: one that fails costs a warning, and not the result.

    Args:
        what: is not kept, as the subject of a sentence with its verb.
    """
    try:
        yield
    except InputError as error:
        warn_unkept(what, error)


def warn_unkept(what: str, error: InputError) -> None:
    """Say that something has to be made again next time."""
    warnings.warn(
        f"{what} not cached and will be made again next time: {error} Set DATASTILL_CACHE to a folder that can be "
        "written.",
        stacklevel=4,
    )
