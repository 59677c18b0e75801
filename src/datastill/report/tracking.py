"""Losses while a run goes on: as CSV and JSON lines always, in TensorBoard or any function where asked for."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from torch import Tensor

from datastill.core.errors import InputError, MissingExtra, nearest
from datastill.core.plan import Callback
from datastill.store.files import make_folder, write_text
from datastill.store.opening import read_small

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.core.plan import Plan

#: Called with the numbers by name and `step=`, as `mlflow.log_metrics` and `wandb.log` are.
Track = Callable[..., object]

#: Files in the folder of a run; its steps are thinned out to so many rows.
FILES, ROWS = ("losses.csv", "losses.jsonl"), 100_000
HEADER = "block,step,loss\n"
TENSORBOARD = "tensorboard"


def numbers_of(context: Context) -> dict[str, float]:
    """What there is to track of a step: loss, steps skipped so far, accuracy of a check at this step."""
    found = {"loss": context.loss}
    if context.skipped:
        found["skipped"] = float(context.skipped)
    for callback in context.callbacks:
        found |= callback.numbers(context)
    return found


class Tracker(Callback):
    """Something that is told numbers, and closed at the end of a run."""

    def close(self) -> None:
        """The run has ended, in whatever way."""


class LossLog(Tracker):
    """Appends every loss to `losses.csv` and `losses.jsonl`; a run that goes on cuts off what it makes again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._open = folder, list[TextIO]()
        self._every, self._failed = 1, False

    def after_step(self, context: Context) -> None:
        """One row, where this step has one. A full disk is told where the set is written."""
        if self._failed:
            return
        try:
            if not self._open:
                self._begin(context)
            if has_row(context.step, context.steps, self._every):
                for file, line in zip(self._open, lines_of(context.block.key, context.step, context.loss), strict=True):
                    file.write(line)
        except (OSError, InputError):
            self._failed = True

    def close(self) -> None:
        """Close both files."""
        for file in self._open:
            file.close()
        self._open = []

    def _begin(self, context: Context) -> None:
        """Keep the rows before this step, and go on behind them; blocks that follow have none yet."""
        self._every = thinned(context.steps, len(keys_of(context.plan, context.task.labels)))
        make_folder(self.folder)
        for name in FILES:
            path = self.folder / name
            text = read_small(path).decode(errors="replace") if path.is_file() else ""
            kept = "".join(_before(text, name, context.block.key, context.step))
            if kept != text or not text:
                write_text(path, kept or (HEADER if name.endswith("csv") else ""))
            self._open.append(open(path, "a", encoding="utf-8", buffering=1, opener=_no_link))  # noqa: SIM115


def has_row(step: int, steps: int, every: int) -> bool:
    """Whether a step stands in the files: the first, the last, and every n-th."""
    return step % every == 0 or step in (1, steps)


def thinned(steps: int, blocks: int) -> int:
    """Of how many steps one stands in the files."""
    return max(1, math.ceil(steps * blocks / ROWS))


def keys_of(plan: Plan, labels: Tensor) -> list[int]:
    """The blocks of a run, by key."""
    return [block.key for block in plan.partition.blocks(labels)]


def lines_of(block: int, step: int, loss: float) -> tuple[str, str]:
    """A row of the CSV file and one of the JSON lines, from the loss as float32."""
    short = f"{np.float32(loss):.7g}"
    number = float(short) if math.isfinite(loss) else None
    return f"{block},{step},{short}\n", json.dumps({"block": block, "step": step, "loss": number}) + "\n"


def write_losses(folder: Path, losses: Tensor, keys: Sequence[int]) -> None:
    """Both files as a whole, where they are not yet: blocks in other processes tell nothing on the way.

    Args:
        folder: of the run.
        losses: of every step, (blocks, steps).
        keys: of the blocks.
    """
    if not losses.numel():
        return
    steps = losses.shape[1]
    every = thinned(steps, len(keys))
    rows = [
        lines_of(key, k + 1, loss)
        for key, values in zip(keys, losses.tolist(), strict=True)
        for k, loss in enumerate(values)
        if has_row(k + 1, steps, every)
    ]
    for name, head, column in zip(FILES, (HEADER, ""), zip(*rows, strict=True), strict=True):
        text, path = head + "".join(column), folder / name
        if not path.is_file() or path.is_symlink() or read_small(path) != text.encode():
            write_text(path, text)


class TensorBoard(Tracker):
    """Scalars of every step for TensorBoard (`datastill[tensorboard]`); a run that goes on replaces what it makes anew.

    Args:
        folder: of the event files; each block has one of its own, where there are several.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("TensorBoard is not installed: `pip install 'datastill[tensorboard]'`.") from error
        self.folder, self._make = Path(folder), SummaryWriter
        self._block, self._several = -1, False
        self._writer: Any = None

    def after_step(self, context: Context) -> None:
        """One point for each number."""
        if self._block != context.block.key:
            self.close()
            if self._block < 0:
                self._several = len(keys_of(context.plan, context.task.labels)) > 1
            place = self.folder / f"block-{context.block.key:05d}" if self._several else self.folder
            self._writer, self._block = self._make(str(make_folder(place)), purge_step=context.step), context.block.key
        for name, value in numbers_of(context).items():
            self._writer.add_scalar(name, value, context.step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class Told(Tracker):
    """Calls a function with the numbers of every step."""

    def __init__(self, track: Track) -> None:
        self.track = track

    def after_step(self, context: Context) -> None:
        """One call; blocks after the first go on counting steps."""
        self.track(numbers_of(context), step=context.block.key * context.steps + context.step)


@contextlib.contextmanager
def tracked(callbacks: Sequence[Callback], folder: Path | None) -> Iterator[list[Callback]]:
    """The callbacks with the files of a run that has a folder behind them; all trackers are closed afterwards."""
    every = [*callbacks, *([LossLog(folder)] if folder is not None else [])]
    try:
        yield every
    finally:
        with contextlib.ExitStack() as stack:  # one that fails to close leaves none of the others open
            for one in every:
                if isinstance(one, Tracker):
                    stack.callback(one.close)


def trackers(track: Any, folder: Path | None) -> list[Tracker]:
    """What a caller asks for.

    Args:
        track: None; "tensorboard"; a function of the numbers and `step=`; a `Tracker`; or several of them.
        folder: of the run, or None.

    Raises:
        InputError: an unknown name, or a run without a folder for TensorBoard; MissingExtra where it is not installed.
    """
    asked = [] if track is None else [track] if isinstance(track, str) or callable(track) else _several(track)
    made: list[Tracker] = []
    for one in asked:
        if isinstance(one, Tracker):
            made.append(one)
        elif callable(one):
            made.append(Told(one))
        elif one != TENSORBOARD:
            raise InputError(
                f"There is no tracker {one!r}. {nearest(str(one), [TENSORBOARD])} Losses are in losses.csv and "
                "losses.jsonl of every run; other trackers are functions (track=mlflow.log_metrics)."
            )
        elif folder is None:
            raise InputError("TensorBoard's files lie in the folder of a run; give one (out=).")
        else:
            made.append(TensorBoard(folder / TENSORBOARD))
    return made


def _several(track: Any) -> list[Any]:
    if isinstance(track, list | tuple):
        return list(track)
    return [track]


def _before(text: str, name: str, block: int, step: int) -> Iterator[str]:
    """The lines of whole rows of other blocks, and of this one before a step."""
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        if name.endswith("csv") and line == HEADER:
            yield line
            continue
        try:
            row = json.loads(line) if name.endswith("jsonl") else line.split(",")
            key, at = map(int, (row["block"], row["step"]) if isinstance(row, dict) else row[:2])
        except (ValueError, LookupError, TypeError):
            continue
        if key != block or at < step:
            yield line


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
