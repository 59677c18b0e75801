"""Output that never costs a result: characters that a stream lacks are spelled out, and one that is full is let go."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

_SPELLED = {"×": "x", "±": "+/-", "→": "->", "≠": "!=", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "…": "...", "−": "-"}
_SPELLED |= {"’": "'", "‘": "'", "“": '"', "”": '"', "·": ".", "²": "^2", "µ": "u", "α": "alpha", "√": "sqrt"}


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("datastill.spelled", _spelled)


#: Names of data and sets that others made could move the cursor or color the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Names and what they say, aligned, a line each; control characters are spelled out."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {_CONTROL.sub(lambda found: repr(found[0])[1:-1], text)}")


class Lenient:
    """A text stream that cannot fail; `lost` is the first failure. All else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write, or let it go."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or let it go."""
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # full, broken, closed
            self.lost = error
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())  # what is buffered would fail again when Python ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lenient_streams() -> Iterator[None]:
    """Standard output and error as they are, but for failures: a full output is told on the error stream."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # in place of one that was closed before the start
        out, err = (Lenient(stream or nowhere) for stream in before)
        for stream in before:
            if stream is not None and stream.errors in ("strict", None):
                with contextlib.suppress(AttributeError, ValueError):
                    stream.reconfigure(errors="datastill.spelled")  # type: ignore[union-attr]
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.flush()
            if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
                err.write(f"datastill: some of the output could not be written ({out.lost}).\n")
            err.flush()
            sys.stdout, sys.stderr = before
