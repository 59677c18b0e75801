"""How far experts are that other processes train: each writes a line now and then, and a thread here reads them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.store.opening import read_small
from datastill.surrogates.experts.files import record_path

#: Seconds between two lines of an expert, and between two looks at all of them.
_SECONDS = 0.5


class Pulse:
    """Writes how far one expert is; a loss of these lines loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def beat(self, epochs: float, numbers: Callable[[], tuple[float, float]]) -> None:
        """Epochs done, and the loss and accuracy, which are asked for only when a line is due."""
        if time.monotonic() - self._last < _SECONDS:
            return
        self._last = time.monotonic()
        with contextlib.suppress(OSError):
            self.path.write_text(" ".join(f"{v:.6g}" for v in (epochs, *numbers())))


@contextlib.contextmanager
def watching(folder: Path, pulses: Sequence[Path], epochs: int, progress: Progress) -> Iterator[None]:
    """Tell the progress of experts inside the block.

    Args:
        folder: of the buffer.
        pulses: the line of every expert, by its number.
        epochs: of one expert.
        progress: told the epochs of all experts that are done, how many there are, loss and accuracy.
    """
    if progress is silent:
        yield
        return
    end = threading.Event()

    def look() -> None:
        while not end.wait(_SECONDS):
            _tell(folder, pulses, epochs, progress)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    _tell(folder, pulses, epochs, progress)


def _tell(folder: Path, pulses: Sequence[Path], epochs: int, progress: Progress) -> None:
    done, seen = 0.0, []
    for expert, pulse in enumerate(pulses):
        if record_path(folder, expert).is_file():
            done += epochs
            continue
        with contextlib.suppress(InputError, OSError, ValueError):
            now, loss, accuracy = map(float, read_small(pulse, 1_000).split())
            done += now
            seen.append((loss, accuracy))
    numbers = {}
    if seen:
        numbers = {"loss": sum(s[0] for s in seen) / len(seen), "accuracy": sum(s[1] for s in seen) / len(seen)}
    progress("experts", done, epochs * len(pulses), numbers)
