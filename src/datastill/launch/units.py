"""A unit of work, what is told when one ends, and the error that lists those that failed."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datastill.core.errors import DatastillError, Interrupted, UserCodeFailed

#: A pure function: arguments and the file to write. It writes that file whole (`store.files`) or raises.
Function = Callable[..., object]


@dataclass(frozen=True)
class Unit:
    """One call of the function: `function(*arguments, target)` writes `target`.

    Attributes:
        name: for people; it stands in progress and errors.
        arguments: can be pickled where units go to other processes.
        target: the file that is there when the unit is finished, named by a hash of what it depends on.
        group: units of one group cost about the same; the time left is reckoned by group.
        needs: files of other units, earlier in the list, that must be there before it can start.
    """

    name: str
    arguments: tuple[Any, ...]
    target: Path
    group: str = ""
    needs: tuple[Path, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether its file is there."""
        return self.target.is_file()

    @property
    def ready(self) -> bool:
        """Whether all that it needs is there."""
        return all(path.is_file() for path in self.needs)


@dataclass(frozen=True)
class Failure:
    """A unit that failed: one sentence for people, the traceback for those who mend it."""

    name: str
    sentence: str
    exit_code: int
    traceback: str = ""
    lost: bool = False  #: its process died, which says nothing of the unit

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}"


@dataclass(frozen=True)
class Done:
    """A unit has ended, and how far all of them are."""

    unit: Unit
    failure: Failure | None
    seconds: float  #: of this unit
    done: int  #: units that have ended or were finished before
    total: int
    seconds_left: float  #: of all, reckoned from those that ended


class UnitsFailed(DatastillError):
    """Some units failed; the others were done and are kept."""

    def __init__(self, failures: list[Failure], total: int) -> None:
        self.failures = failures
        self.exit_code = failures[0].exit_code
        shown = "; ".join(str(failure).rstrip(".") for failure in failures[:5])
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        super().__init__(
            f"{len(failures)} of {total} units failed, the others are kept: {shown}{more}. "
            "Mend what is named and rerun the same command to go on."
        )


def without_needs(unit: Unit) -> Failure:
    """A unit that cannot start, since a unit that it needs has failed."""
    return Failure(unit.name, "what it needs could not be made", 1)


def attempt(function: Function, unit: Unit) -> tuple[Failure | None, float]:
    """Run one unit; an error becomes a `Failure`, a wish to stop stays an exception."""
    started = time.perf_counter()
    failure = None
    try:
        function(*unit.arguments, unit.target)
        if not unit.finished:
            failure = Failure(unit.name, f"it ended without writing {unit.target}", 1)
    except Interrupted:
        raise
    except UserCodeFailed as error:
        failure = Failure(unit.name, str(error).split("\n\n")[0], error.exit_code, traceback.format_exc())
    except DatastillError as error:
        failure = Failure(unit.name, str(error), error.exit_code)
    except Exception as error:
        sentence = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        failure = Failure(unit.name, sentence, 1, traceback.format_exc())
    return failure, time.perf_counter() - started


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses one thread inside the block: sums over threads depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Clock:
    """Reckons the time left: units of a group cost what finished ones of it did, others what any did."""

    def __init__(self, units: list[Unit], workers: int) -> None:
        self.workers = workers
        self.waiting: dict[str, int] = {}
        for unit in units:
            self.waiting[unit.group] = self.waiting.get(unit.group, 0) + 1
        self.spent: dict[str, list[float]] = {}

    def ended(self, unit: Unit, seconds: float) -> float:
        """Note one more that has ended; seconds that the others will take."""
        self.waiting[unit.group] -= 1
        self.spent.setdefault(unit.group, []).append(seconds)
        everything = [s for group in self.spent.values() for s in group]
        mean = sum(everything) / len(everything)
        left = 0.0
        for group, count in self.waiting.items():
            known = self.spent.get(group)
            left += count * (sum(known) / len(known) if known else mean)
        return left / min(self.workers, max(1, sum(self.waiting.values())))
