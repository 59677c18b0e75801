"""Files and folders under a temporary name, locked while they are written: what a kill left is not, and is removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

#: How the names of unfinished files and folders end.
TEMPORARY = ".datastill.tmp"


def remove_rests(target: Path) -> None:
    """Remove what a kill left of attempts to write a file or folder; what another process is writing stays."""
    if not target.parent.is_dir():
        return
    with os.scandir(target.parent) as entries:
        rests = [Path(e.path) for e in entries if e.name.startswith(f".{target.name}.") and e.name.endswith(TEMPORARY)]
    for rest in rests:
        with contextlib.suppress(OSError):
            handle = os.open(rest, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if not lock(handle):
                    continue
                if not rest.is_dir():
                    rest.unlink()
                elif {path.name for path in rest.iterdir()} <= {target.name}:
                    shutil.rmtree(rest)
            finally:
                os.close(handle)


def lock(handle: int, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed, or its process ends; None where nothing can be locked."""
    try:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def locked_temporary(target: Path) -> tuple[int, Path]:
    """A new file beside the target, locked while it is written, so that nobody takes it for what a kill left."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=TEMPORARY, dir=target.parent)
        if lock(handle) is not False and os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)
