"""Where and how numbers are computed, and who is told how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from datastill.core import compilation
from datastill.core.cost import pick_device
from datastill.core.precision import casting
from datastill.core.ranks import Ranks
from datastill.core.threads import threads_for

#: Told what is being done, how much of it is done, how much there is, and numbers worth showing.
Progress = Callable[[str, float, float, dict[str, float]], None]


def silent(task: str, done: float, total: float, numbers: dict[str, float]) -> None:
    """No progress."""


@dataclass(frozen=True)
class Runtime:
    """Device, precision, compiled code and progress, as one thing that is handed on whole.

    Attributes:
        precision: of the networks' arithmetic: "float32", or "bf16" for convolutions and matrix products.
        compile: compiled code as asked for: "auto", "on" or "off"; `compiled` says what came of it.
        ranks: the processes that share the run.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    compile: str = "auto"
    progress: Progress = field(default=silent, compare=False)
    compiled: bool = False
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def of(
        cls, device: str = "auto", precision: str = "float32", compile: str = "auto", progress: Progress = silent
    ) -> Runtime:
        """From what a caller says.

        Raises:
            InputError: an unknown device, precision or mode of compiling, or one that is not to be had here.
        """
        where = pick_device(device)
        casting(where, precision)
        compilation.decide(compile, 0.0, where)
        return cls(where, precision, compile, progress)

    def for_work(self, macs: float, may: bool = True) -> Runtime:
        """With compiled code where it was asked for, or where so many multiply-accumulates pay for it.

        Args:
            may: whether what is to be computed can be compiled at all: no layer couples samples, say.
        """
        return replace(self, compiled=compilation.decide(self.compile, macs, self.device) and may)

    @contextlib.contextmanager
    def computing(self, macs: float) -> Iterator[None]:
        """Inside the block torch has the threads that networks of so many multiply-accumulates deserve, and casts."""
        with threads_for(macs), casting(self.device, self.precision):
            yield
