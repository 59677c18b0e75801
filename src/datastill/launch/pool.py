"""Units over a pool of processes: one torch thread each, ended at once with the process that started them.

Workers are started afresh ("spawn"): a forked copy of a process that has used torch's threads can hang. They
stand in a process group of their own, so that Ctrl-C in a terminal reaches only the parent, which then asks
each worker to stop between two steps; a worker whose parent has died ends itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import DatastillError, InputError, Interrupted
from datastill.launch.units import Failure, Function, Unit, attempt, without_needs

#: Seconds that a worker has to write a checkpoint when it is asked to stop.
GRACE_SECONDS = 8.0

_stopped = False


class WorkersLost(DatastillError):
    """A worker process died; what it had finished is kept."""


def run_pool(
    function: Function, units: Sequence[Unit], workers: int, ended: Callable[[Unit, Failure | None, float], None]
) -> None:
    """Map over processes; `ended` is called here, in the order in which units end."""
    if multiprocessing.parent_process() is not None:
        raise InputError(
            "Several workers were asked for inside a worker: put the call of your script under "
            '`if __name__ == "__main__":`, since every worker imports the script.'
        )
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    held = list(units)
    running: dict[Future[tuple[Failure | None, float]], Unit] = {}
    try:
        while held or running:
            ready = [unit for unit in held if unit.ready]
            held = [unit for unit in held if not unit.ready]
            with _interrupts_ignored():  # a worker inherits this, and is not interrupted while it starts
                running |= {executor.submit(_work, function, unit): unit for unit in ready}
            if not running:
                for unit in held:
                    ended(unit, without_needs(unit), 0.0)
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                ended(running.pop(future), *future.result())
        executor.shutdown()
    except BrokenProcessPool as error:
        done = sum(unit.finished for unit in units)
        raise WorkersLost(
            f"A worker process died (killed for want of memory, or it could not import your script); {done} of "
            f"{len(units)} units are finished and kept; rerun the same command to go on, with fewer workers if "
            "memory is short."
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        _end([p for p in multiprocessing.active_children() if p not in before])


def _work(function: Function, unit: Unit) -> tuple[Failure | None, float]:
    """One unit, in a worker."""
    global _stopped
    if _stopped:
        raise Interrupted("Stopped.")
    try:
        return attempt(function, unit)
    except (Interrupted, KeyboardInterrupt):
        _stopped = True  # the next unit may already lie in this worker's queue
        raise Interrupted("Stopped.") from None


def _start_worker() -> None:
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
    for name in ("SIGINT", "SIGHUP"):  # the parent hears them and asks with SIGTERM
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process when the parent has died: it would go on alone, beside the rerun."""
    wait_for([sentinel])
    os._exit(1)


def _end(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Ask workers to stop, and after a while make them; an idle one is gone at once."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
