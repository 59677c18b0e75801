"""A command in one of several processes that torchrun has started; imports torch only there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from datastill.core.errors import InputError

#: The command whose work ranks share.
SHARED = "distill"


def is_rank() -> bool:
    """Whether torchrun has started this process and others."""
    return os.environ.get("WORLD_SIZE", "1").isdigit() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_as_rank(command: str, main: Callable[[], int]) -> int:
    """Run a command together with the other ranks; the first one alone prints.

    Raises:
        InputError: ranks have nothing to share in this command.
    """
    from datastill.core.ranks import joined

    with joined() as ranks, _silent(not ranks.first):
        if command != SHARED:
            raise InputError(
                f"Under torchrun ranks share `datastill {SHARED}` alone; run {command} without it (--workers, where it "
                "has that)."
            )
        return main()


def speaks(error: BaseException) -> bool:
    """Whether this process tells of an error: of one that all ranks know of, the first alone does."""
    if not is_rank():
        return True
    from datastill.core.ranks import asked_for, was_told

    return asked_for()[0] == 0 or not was_told(error)


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    if not silent:
        yield
        return
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield
