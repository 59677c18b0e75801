"""Files of others are opened here: regular ones only, and their sizes are looked at before anything is allocated."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from datastill.core.errors import InputError

#: The largest JSON file that is read; the record of a million cached images has a tenth of it.
LARGEST_JSON = 64 << 20
#: What a file may claim in memory whatever its size on the disk,
ALWAYS = 256 << 20
#: and how many times its bytes on the disk where that is more: tiles of multi-formation are enlarged to whole images.
TIMES = 32
LONGEST_NAME = 255  #: bytes of the name of a file, on all usual file systems


def printable(path: str | Path) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 as in \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def sound_path(path: str | Path) -> Path:
    """A path that a file may have and that a record can name.

    Raises:
        InputError: it is too long, or holds a zero or bytes that are no UTF-8.
    """
    text = os.fspath(path)
    shown = printable(text.replace("\0", "\\0"))
    shown = shown if len(shown) < 100 else f"{shown[:80]}..."
    if "\0" in text or not _is_utf8(text):
        raise InputError(f"{shown} holds bytes that are no UTF-8, which records of it cannot name; rename it.")
    try:
        too_long = any(len(part.encode()) > LONGEST_NAME for part in Path(text).parts)
        os.lstat(Path(text).expanduser())
    except (OSError, RuntimeError) as error:  # none is there; no home folder
        too_long |= isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    if too_long:
        raise InputError(f"{shown} is too long for a path; check it, or choose a shorter one.")
    return Path(text)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file for reading, where it is a regular one: a pipe or a device would be waited for without an end.

    Raises:
        InputError: there is none, it is of another kind, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist ({error.strerror}).") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path} is not a regular file but a folder, pipe or device, and is refused.")
    return os.fdopen(handle, "rb")


def stored_bytes(path: str | Path) -> int:
    """Bytes of a regular file that are on the disk: its size without the holes of a sparse file.

    Raises:
        InputError: as `open_regular`.
    """
    with open_regular(path) as file:
        known = os.fstat(file.fileno())
        blocks = getattr(known, "st_blocks", 0) * 512
        if blocks >= known.st_size or not hasattr(os, "SEEK_HOLE"):
            return known.st_size
        return _without_holes(file.fileno(), known.st_size)


def _without_holes(handle: int, size: int) -> int:
    """Blocks may be fewer than the size says where a file system compresses or has not written yet; holes are holes."""
    found, end = 0, 0
    try:
        while end < size and found * TIMES < size:
            start = os.lseek(handle, end, os.SEEK_DATA)
            end = os.lseek(handle, start, os.SEEK_HOLE)
            found += end - start
    except OSError:  # no data beyond
        return found
    return found if end >= size else size


def refuse_sparse(path: str | Path) -> int:
    """The size of a regular file, whose bytes are on the disk.

    Raises:
        InputError: most of it is a hole; or as `open_regular`.
    """
    size = os.stat(path).st_size if os.path.exists(path) else 0
    refuse_claim(path, size, stored_bytes(path), "is sparse: it claims")
    return size


def refuse_claim(what: object, claimed: int, stored: int, words: str) -> None:
    """Refuse what would take far more memory than there are bytes on the disk.

    Args:
        what: the file or folder.
        claimed, stored: bytes.
        words: what it does, before the number.

    Raises:
        InputError: more than 256 MiB and more than 32 times the stored bytes.
    """
    if claimed > max(ALWAYS, TIMES * stored):
        raise InputError(
            f"{what} {words} {claimed / 1e6:,.0f} MB and holds {stored / 1e6:,.3f} MB; more than {TIMES} times as much "
            "is refused."
        )


def sha256_of(path: str | Path) -> str:
    """The hash of a regular file, which is not read whole into memory.

    Raises:
        InputError: as `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_small(path: str | Path, most: int = LARGEST_JSON) -> bytes:
    """All bytes of a regular file that is not larger than `most`.

    Raises:
        InputError: it is larger; or as `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(
                f"{path} has {size / 1e6:,.0f} MB, and at most {most / 1e6:,.0f} MB are read; it is damaged."
            )
        try:
            return file.read(most + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}).") from error


def refuse_inflated(path: str | Path, data: IO[bytes], stored: int) -> None:
    """Refuse a zip archive whose entries are many times as large as the file.

    Raises:
        InputError: they are; what is no archive passes.
    """
    try:
        with zipfile.ZipFile(data) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    refuse_claim(path, claimed, stored, "unpacks to")


def map_array(path: str | Path) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of a `.npy` file, memory-mapped and read-only.

    Raises:
        InputError: it is no such file, is cut short, or sparse; or as `open_regular`.
    """
    refuse_sparse(path)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a hostile header provokes errors of many kinds in the reader
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        raise InputError(f"{path} is cut short or damaged ({reason}).") from error
