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


class UserCodeFailed(InputError):
    """A network or a method that the user brought failed; the error that it raised is the cause.

    Args:
        sentence: whose code it was, and what it did.
        part: their part of the traceback, or "".
        at: when it happened, such as "at step 3 of 9"; "" where nobody has said so yet.
        hint: how to go on.
    """

    def __init__(self, sentence: str, part: str = "", at: str = "", hint: str = "") -> None:
        super().__init__(sentence, part, at, hint)

    def told(self, at: str = "", hint: str = "") -> UserCodeFailed:
        """The same with what is known further out; who said something first stays."""
        sentence, part, first, said = self.args
        return UserCodeFailed(sentence, part, first or at, said or hint)

    def __str__(self) -> str:
        sentence, part, at, hint = self.args
        happened = f"This was {at}." if at else ""
        end = "" if str(sentence).endswith((".", "!", "?")) else "."
        text = " ".join(piece for piece in (f"{sentence}{end}", happened, hint) if piece)
        return f"{text}\n\n{part.rstrip()}" if part else text


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
