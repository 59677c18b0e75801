"""Whether files of a real set lie inside its folder: a downloaded folder may hold links and paths to anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datastill.core.errors import InputError
from datastill.data.raw import Request


def roots_of(folder: Path) -> tuple[Path, ...]:
    """Where the files of a set's folder may lie: in it, or among the blobs that a snapshot of the Hub links to."""
    root = folder.resolve()
    snapshots = next((above for above in (root, *root.parents) if above.parent.name == "snapshots"), None)
    blobs = () if snapshots is None else (snapshots.parent.parent / "blobs",)
    return (root, *blobs)


def is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path, with its links followed, lies below one of `roots`."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle; no path at all
        return False
    return any(real.is_relative_to(root) for root in roots)


class Links:
    """Links of one folder that lead out of it, collected while it is listed and not followed.

    Args:
        folder: the set's folder.
        request: says whether the caller lets them lead out.
    """

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.free = folder, request.follow_links
        self.roots = roots_of(folder)
        self.outside: list[Path] = []

    def allows(self, path: Path) -> bool:
        """Whether a path may be read; one that may not is noted. A dangling link harms nobody."""
        if self.free or not path.exists() or is_inside(path, self.roots):
            return True
        self.outside.append(path)
        return False

    def refuse(self) -> None:
        """Raise if any were noted.

        Raises:
            InputError: how many, the first, and how to go on.
        """
        if self.outside:
            count, first = len(self.outside), self.outside[0]
            raise InputError(
                f"{count} link{'s lead' if count > 1 else ' leads'} out of {self.folder}, such as {first}, and none was "
                "followed; copy what they lead to into the folder, or if you trust them all, say so with "
                "follow_links=True (--follow-links)."
            )
