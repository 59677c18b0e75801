"""How far a call from Python is, where a notebook or a terminal can show it: `datastill.Progress`."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import TYPE_CHECKING, Any

from datastill.core.cost import describe_seconds
from datastill.core.plan import Callback

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.launch import Done

#: Style of the cells of tables in notebooks, whose pages may give them no room.
CELL = "text-align:left;vertical-align:top;padding:0 1em 0.1em 0"
#: Seconds between two drawings.
EVERY = 0.25


class Progress(Callback):
    """Bars that a call draws: in a notebook as HTML that needs no widgets, in a terminal as one line.

    Give it as `progress=` to `distill`, `evaluate`, `compare` and `train_experts`; `distill` shows its steps in it too.
    In a notebook that is saved or exported, the last state stays.
    """

    def __init__(self) -> None:
        self._lines: dict[str, tuple[float, float, str]] = {}
        self._begun: dict[str, float] = {}
        self._drawn = 0.0
        self._handle: Any = None

    def __call__(
        self, task: str | Done, done: float = 0.0, total: float = 0.0, numbers: dict[str, float] | None = None
    ) -> None:
        """Note how far something is.

        Args:
            task: what is being done; or a unit that has ended, as `compare` and `train_experts` tell it.
            done: how much of it is done.
            total: how much there is.
            numbers: worth showing, by name.
        """
        if not isinstance(task, str):
            return self("units of work", task.done, task.total, {})
        told = "  ".join(f"{name} {value:.4g}" for name, value in (numbers or {}).items())
        self._begun.setdefault(task, time.monotonic())
        self._lines[task] = (done, total, told)
        if done >= total or time.monotonic() - self._drawn > EVERY:
            self._drawn = time.monotonic()
            self._draw(task)
        return None

    def after_step(self, context: Context) -> None:
        """One more step of `distill` is done."""
        self("distilling", context.step, context.steps, {"loss": context.loss})

    def _repr_html_(self) -> str:
        rows = []
        for task, (done, total, told) in self._lines.items():
            bar = f"<progress style='width:8em' value='{done:.6g}' max='{total:.6g}'></progress>"
            cells = (escape(task), bar, f"{done:.4g} of {total:.6g}", escape(told), self._time(task))
            rows.append("".join(f"<td style='{CELL};white-space:nowrap'>{cell}</td>" for cell in cells))
        lines = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<div style='overflow-x:auto'><table>{lines}</table></div>"

    def _time(self, task: str) -> str:
        """What it took, or how much is left."""
        done, total, _ = self._lines[task]
        spent = time.monotonic() - self._begun[task]
        if done >= total:
            return describe_seconds(spent)
        return f"{describe_seconds(spent * (total - done) / done)} left" if done else ""

    def _draw(self, task: str) -> None:
        if in_notebook():
            from IPython.display import display

            if self._handle is None:
                self._handle = display(self, display_id=True)
            else:
                self._handle.update(self)
        elif sys.stderr.isatty():
            done, total, told = self._lines[task]
            line = f"{task}: {done:.4g} of {total:.6g}  {told}  {self._time(task)}"[:79]
            print(f"\r{line:<79}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this process, and so shows HTML."""
    return type(ipython()).__name__ == "ZMQInteractiveShell"


def ipython() -> Any:
    """The shell of IPython in which this process runs, or None; IPython is not loaded for it."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
