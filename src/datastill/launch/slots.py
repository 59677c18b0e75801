"""Units over places that run one at a time each, in the order in which they become ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from datastill.core.errors import DatastillError
from datastill.launch.units import Failure, Unit, without_needs

#: What ended: nothing or what went wrong, and the seconds that it took.
End = tuple[Failure | None, float]


class WorkersLost(DatastillError):
    """Workers do not come to life; what had been finished is kept."""


class Slots(Protocol):
    """Places for units."""

    @property
    def count(self) -> int:
        """How many units run at once."""
        ...

    def submit(self, unit: Unit) -> Any:
        """Begin a unit in a free place; a handle of it."""
        ...

    def wait(self, running: Collection[Any]) -> Collection[Any]:
        """Handles of those that have ended, one or more."""
        ...

    def end(self, handle: Any, unit: Unit) -> End:
        """How it ended; its place is free again."""
        ...


def fill(slots: Slots, units: Sequence[Unit], ended: Callable[[Unit, Failure | None, float], None]) -> None:
    """Run all units; `ended` is called here, in the order in which they end."""
    held, ready, running = list(units), deque[Unit](), dict[Any, Unit]()
    while held or ready or running:
        now = [unit.ready for unit in held]
        ready += [unit for unit, may in zip(held, now, strict=True) if may]
        held = [unit for unit, may in zip(held, now, strict=True) if not may]
        while ready and len(running) < slots.count:
            unit = ready.popleft()
            running[slots.submit(unit)] = unit
        if not running:
            for unit in held:
                ended(unit, without_needs(unit), 0.0)
            break
        for handle in slots.wait(running):
            unit = running.pop(handle)
            ended(unit, *slots.end(handle, unit))


def lost(unit: Unit, why: str) -> Failure:
    """A unit whose worker is gone; the others go on."""
    return Failure(unit.name, f"its worker process died ({why})", 1, lost=True)
