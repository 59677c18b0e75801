"""Whether files of a real set lie inside its folder: a downloaded folder may hold links and paths to anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from datastill.core.errors import InputError


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
        follow: whether the caller lets them lead out; None where a caller cannot.
    """

    def __init__(self, folder: Path, follow: bool | None = None) -> None:
        self.folder, self.follow = folder, follow
        self.roots = roots_of(folder)
        self.outside: list[Path] = []

    def inside(self, paths: Iterable[Path]) -> list[Path]:
        """Those of the paths that are no links, or links that may be followed."""
        return [path for path in paths if not path.is_symlink() or self.allows(path)]

    def allows(self, path: Path) -> bool:
        """Whether a path may be read; one that may not is noted. A dangling link harms nobody."""
        if self.follow or not path.exists() or is_inside(path, self.roots):
            return True
        self.outside.append(path)
        return False

    def refuse(self) -> None:
        """Raise if any were noted.

        Raises:
            InputError: how many, the first, and how to go on.
        """
        if not self.outside:
            return
        trust = "" if self.follow is None else "; if you trust them all, let them (follow_links=True, --follow-links)"
        what = "1 link leads" if len(self.outside) == 1 else f"{len(self.outside)} links lead"
        raise InputError(
            f"{what} out of {self.folder}, such as {self.outside[0]}, and none was followed; copy what they lead to "
            f"into the folder{trust}."
        )
