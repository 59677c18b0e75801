"""Ctrl-C, a polite kill and a closed terminal end a run between two steps, so that what is saved is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether someone asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False


class Stopped(KeyboardInterrupt):
    """A stop as Ctrl-C means it. CPython ends by SIGINT, whatever the exit code, where a plain KeyboardInterrupt has
    passed through `exec` of a string, as many imports run it."""


#: The signal that came last: what a command's exit code tells.
_last: list[int] = []


def exit_code() -> int:
    """The exit code of a command that was stopped: 128 and the signal, 130 for Ctrl-C."""
    return 128 + (_last[0] if _last else signal.SIGINT)


def was_stopped() -> bool:
    """Whether a signal has stopped the command."""
    return bool(_last)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop a command as Ctrl-C does, wherever it is.

    A signal that is ignored (`nohup`) or caught by somebody else stays so.
    """
    _last.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        _last[:] = [number]
        raise Stopped

    default = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in _heard()}
    before = {number: previous for number, previous in before.items() if previous in default}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _heard() -> list[int]:
    """Signals that stop a run; one that is ignored from outside stays ignored."""
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    return [n for n in numbers if n is not None and (n == signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN)]


@contextlib.contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request; a second one interrupts at once.

    Outside the main thread signals cannot be caught, and nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        _last[:] = [number]
        if request.requested:
            raise Stopped
        request.requested = True

    before = {number: signal.signal(number, handle) for number in _heard()}
    try:
        yield request
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
