"""Errors that a user can mend: one clear sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DatastillError(Exception):
    """Base of every error that datastill raises on purpose."""

    exit_code = 1


class InputError(DatastillError, ValueError):
    """Something the user gave cannot be used; the text says what and how to mend it."""

    exit_code = 2


class MissingExtra(InputError, ImportError):
    """An optional dependency is needed here; the text names the extra to install."""


class Diverged(DatastillError, ArithmeticError):
    """Too many non-finite steps; the last good set is on disk."""

    exit_code = 3


class RanAway(Diverged):
    """Numbers of the images have left any range that images have; the set of the last checkpoint is on disk."""


class Interrupted(DatastillError):
    """The user stopped the run; it was saved and can be resumed."""

    exit_code = 130


class ShareDone(DatastillError):
    """One share of a run's blocks is done, as asked; the set is not whole, so there is none to return."""

    exit_code = 0


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names nearest to `name`, or all of them when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return "There are none."
    return "Known: " + ", ".join(names) + "."
