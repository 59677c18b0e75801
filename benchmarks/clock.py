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
    """How many steps, in each block where there are several, take so many CPU seconds: `run` makes a few of them."""
    clock = Clock()
    run(_FIRST + _TIMED, [clock])
    blocks = max(1, round(len(clock.read) / (_FIRST + _TIMED)))
    of_a_step = (clock.read[-1] - clock.read[_FIRST - 1]) / (len(clock.read) - _FIRST)
    return max(1, round(seconds / of_a_step / blocks))
