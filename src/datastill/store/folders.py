"""Folders that are whole or absent, folders that one process at a time writes in, and what may be removed.

Nothing is removed but what this process made, or what is proved to be datastill's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from datastill.core.errors import InputError
from datastill.store.files import make_folder, write_error
from datastill.store.unfinished import TEMPORARY, lock, remove_rests

LOCK = ".datastill.lock"


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target`; it gets the target's name on success and is removed on failure.

    What a kill leaves is removed when the same target is written again.

    Raises:
        InputError: something stands at the target already, or it cannot be written.
    """
    target = Path(target).absolute()
    refuse_taken(target)
    make_folder(target.parent)
    try:
        hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=TEMPORARY, dir=target.parent))
    except OSError as error:
        raise write_error(target, error) from error
    inside = hidden / target.name  # made with the user's permissions, which mkdtemp's own folder has not
    handle = os.open(hidden, os.O_RDONLY)
    try:
        lock(handle)
        inside.mkdir()
        yield inside
        os.rename(inside, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(handle)


def refuse_taken(target: Path) -> None:
    """Refuse a target that is a file, or a folder with anything in it; what a kill left beside it is removed.

    Raises:
        InputError: it is.
    """
    remove_rests(target)
    try:
        used = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except OSError as error:
        raise InputError(f"{target} cannot be read ({error.strerror}); choose another folder.") from error
    if used:
        what = "is there already and is not empty" if target.is_dir() else "is there already and is a file"
        raise InputError(f"{target} {what}; choose another --out, a new or empty folder.")


@contextlib.contextmanager
def held(folder: Path, *, name: str = LOCK, shared: bool = False) -> Iterator[None]:
    """Hold a folder while writing in it; a kill lets it go. Where the file system knows no locks, nothing is held.

    Args:
        folder: made if it is not there, and removed again if nothing comes into it.
        name: of the lock.
        shared: together with others that hold it so.

    Raises:
        InputError: another process holds it; it is named.
    """
    new = not folder.is_dir()
    path = make_folder(folder) / name
    handle = _held_file(path, shared)
    try:
        yield
    finally:
        if handle is not None:
            if not shared or lock(handle):
                path.unlink(missing_ok=True)
            os.close(handle)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def remove_made(folder: Path, made: Sequence[str]) -> None:
    """Remove a folder of which every file is known to be datastill's.

    Args:
        folder: what to remove; nothing happens where it is not there.
        made: patterns of paths inside it.

    Raises:
        InputError: it is a link or holds anything else, which is named; nothing was removed.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    strange = [folder] if folder.is_symlink() or not folder.is_dir() else []
    strange += [p for p in folder.rglob("*") if p.is_symlink() or (not p.is_dir() and not _known(p, folder, made))]
    if strange:
        raise InputError(
            f"{folder} holds {strange[0].relative_to(folder.parent)}, which datastill did not make; nothing was "
            "removed: move it, or choose another --out."
        )
    shutil.rmtree(folder)


def _known(path: Path, folder: Path, made: Sequence[str]) -> bool:
    inside = path.relative_to(folder).as_posix()
    return inside.endswith(TEMPORARY) or any(fnmatchcase(inside, pattern) for pattern in made)


def _held_file(path: Path, shared: bool) -> int | None:
    """The open file of a lock that is held; None where nothing can be locked."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(path.parent, error) from error
        got = lock(handle, shared)
        if got is None:
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        if not got:
            who = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another command"
            os.close(handle)
            raise InputError(
                f"{path.parent} is in use: {who} is at work in it; wait for its end, or choose another folder."
            )
        if os.fstat(handle).st_nlink:  # else its last holder removed it between the two calls
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return handle
        os.close(handle)
