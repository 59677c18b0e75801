"""Progress on the error stream: what is being done, its numbers, the time left."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from datastill.core.context import Context
from datastill.core.plan import Callback

if TYPE_CHECKING:
    from datastill.launch import Done

#: Seconds between lines where the error stream is a file.
_LINE_SECONDS = 30.0
#: Names are shown as they are: nothing in them is taken for markup or an emoji.
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


class Display:
    """Progress bars in a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, **_PLAIN)
        self.out = Console(**_PLAIN)
        if not self.out.is_terminal and "COLUMNS" not in os.environ:
            self.out.width = 120  # a file or a pipe has no width of its own, and tables are cut at 80
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()

    @property
    def drawing(self) -> bool:
        """Whether there are bars, which show every number."""
        return self._bars is not None

    def say(self, text: str) -> None:
        """A line for people; goes to the error stream, so that the output stays clean."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def table(self, table: Table) -> None:
        """A table, on the output."""
        self.out.print(table)

    @contextlib.contextmanager
    def bars(self) -> Iterator[Display]:
        """Show bars inside the block."""
        if self.quiet or not sys.stderr.isatty():
            yield self
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as self._bars:
            yield self
        self._bars, self._tasks = None, {}

    def update(self, task: str, done: float, total: float, numbers: dict[str, float]) -> None:
        """Report `done` of `total`; shaped as `evaluate(progress=...)` wants it."""
        text = "  ".join(f"{name} {_short(name, value)}" for name, value in numbers.items())
        if self._bars is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, numbers=text)
            self._bars.update(self._tasks[task], completed=round(done, 2), numbers=text)
        elif not self.quiet and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            far = f"{done:g} of {total:g}" if done == int(done) else f"{100 * done / total:.0f} %"
            self.console.print(f"{task}: {far}  {text}", soft_wrap=True)


class LoopProgress(Callback):
    """The loop's bar: step, loss, accuracy of the last check, time left."""

    def __init__(self, display: Display, check: Any = None) -> None:
        self.display, self.check = display, check

    def after_step(self, context: Context) -> None:
        """One more step done."""
        numbers = {"loss": context.loss}
        if self.check is not None and self.check.accuracies:
            step, numbers["check"] = self.check.accuracies[-1]
            if step == context.step and not self.display.drawing:
                self.display.say(
                    f"step {step:,}: {_short('check', numbers['check'])} of training images (--check-every)"
                )
        if context.skipped:
            numbers["skipped"] = context.skipped
        self.display.update("distilling", context.step, context.steps, numbers)


def _short(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in ("accuracy", "check") else f"{value:.4g}"


def ended(done: Done, outcome: str) -> str:
    """A line about a unit of work that ended."""
    from datastill.core.cost import describe_seconds

    left = f", about {describe_seconds(done.seconds_left)} left" if done.done < done.total else ""
    return f"[{done.done}/{done.total}] {done.unit.name}: {outcome} ({done.seconds:.1f} s{left})"
