"""Steps that take equal seconds of the processor, whichever method makes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from datastill.core.plan import Callback

#: Steps that are timed, and those before them, which pay for more than a step.
_TIMED, _FIRST = 10, 4


class Clock(Callback):
    """CPU seconds at the end of every step."""

    def __init__(self) -> None:
        self.read: list[float] = []

    def after_step(self, context: Any) -> None:
        """Read the clock."""
        self.read.append(time.process_time())


def steps_for(seconds: float, run: Callable[[int, list[Callback]], object]) -> int:
    """How many steps take so many CPU seconds: `run` makes a few of them under a clock."""
    clock = Clock()
    run(_FIRST + _TIMED, [clock])
    return max(1, round(seconds * _TIMED / (clock.read[-1] - clock.read[_FIRST - 1])))
