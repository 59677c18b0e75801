"""Units over a pool of processes: one torch thread each, ended at once with the process that started them.

Workers begin without anything of the caller's: a forked copy of a process that has used torch's threads can hang. On
Linux they are forks of a process that has imported torch and done nothing else ("forkserver"), so that the seconds and
the memory of that are spent once, elsewhere fresh processes ("spawn"). They stand in a process group of their own, so
that Ctrl-C in a terminal reaches only the parent, which then asks each worker to stop between two steps; a worker whose
parent has died ends itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import wait as wait_for
from typing import Any

import numpy as np
import torch

from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import Interrupted
from datastill.launch.slots import End, WorkersLost, fill, lost
from datastill.launch.units import Failure, Function, Unit, attempt
from datastill.launch.workers import refuse_inside_worker

#: Seconds that a worker has to write a checkpoint when it is asked to stop.
GRACE_SECONDS = 8.0

_stopped = False


def run_pool(
    function: Function, units: Sequence[Unit], workers: int, ended: Callable[[Unit, Failure | None, float], None]
) -> None:
    """Map over processes; `ended` is called here, in the order in which units end.

    Raises:
        WorkersLost: workers die before they are at work.
    """
    refuse_inside_worker()
    before = set(multiprocessing.active_children())
    pool = _Pool(function, workers)
    try:
        fill(pool, units, ended)
    finally:
        pool.close()
        _end([p for p in multiprocessing.active_children() if p not in before])


class _Worker:
    """One process, which a kill takes away from one unit alone."""

    def __init__(self, module: str) -> None:
        context = _context(module)
        values = (dict(os.environ),)  # the process that is forked has those of its own beginning
        self.executor = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=values)
        # a worker inherits ignored signals, and is not interrupted while it starts
        with _main_that_can_be_imported(), contextlib.ExitStack() as stack:
            stack.enter_context(_signals_ignored())
            if context.get_start_method() == "forkserver":
                forkserver.ensure_running()
                stack.close()  # its first fork takes a while, in which signals are heard
            self.begun = self.executor.submit(os.getpid)

    @property
    def came_to_life(self) -> bool:
        """Whether it has imported the caller's script."""
        return self.begun.done() and self.begun.exception() is None


class _Pool:
    """`Slots` of processes: each is started when it is first needed, and again after it has died."""

    def __init__(self, function: Function, count: int) -> None:
        self.function, self.count = function, count
        self.free: list[_Worker] = []
        self.busy: dict[Future[End], _Worker] = {}

    def submit(self, unit: Unit) -> Future[End]:
        """Begin a unit in a process."""
        worker = self.free.pop() if self.free else _Worker(self.function.__module__)
        try:
            future = worker.executor.submit(_work, self.function, unit)
        except BrokenProcessPool as error:  # it has died already: told as if it died now
            future = Future()
            future.set_exception(error)
        self.busy[future] = worker
        return future

    def wait(self, running: Collection[Future[End]]) -> Collection[Future[End]]:
        """Those that have ended."""
        return wait(running, return_when=FIRST_COMPLETED).done

    def end(self, future: Future[End], unit: Unit) -> End:
        """How a unit ended; a process that died is not used again."""
        worker = self.busy.pop(future)
        try:
            found = future.result()
        except BrokenProcessPool as error:
            worker.executor.shutdown(wait=False)
            if worker.came_to_life:
                return lost(unit, "killed, perhaps for want of memory"), 0.0
            raise WorkersLost(
                "A worker process died as it began (killed for want of memory, or it could not import your script); "
                "what is finished is kept; rerun the same command to go on, with fewer workers if memory is short."
            ) from error
        self.free.append(worker)
        return found

    def close(self) -> None:
        """No more units."""
        for worker in [*self.free, *self.busy.values()]:
            worker.executor.shutdown(wait=not self.busy, cancel_futures=True)


def _work(function: Function, unit: Unit) -> End:
    """One unit, in a worker."""
    global _stopped
    if _stopped:
        raise Interrupted("Stopped.")
    try:
        return attempt(function, unit)
    except (Interrupted, KeyboardInterrupt):
        _stopped = True  # the next unit may already lie in this worker's queue
        raise Interrupted("Stopped.") from None


def _context(module: str) -> multiprocessing.context.BaseContext:
    """How processes are started; `module` is what they will need."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # of no effect once it runs; an optimizer imports torch._dynamo, which takes as long as torch
    context.set_forkserver_preload(["torch._dynamo", *([module] if module.startswith("datastill.") else [])])
    return context


def _start_worker(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # noqa: NPY002 - forks have the numbers of the process that they are copies of
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
def _signals_ignored() -> Iterator[None]:
    """Those that a terminal sends to all of a group."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _main_that_can_be_imported() -> Iterator[None]:
    """A worker imports the caller's script; one that came over standard input is no file, and has nothing for it."""
    main = sys.modules["__main__"]
    path = main.__dict__.get("__file__")
    if path is None or os.path.exists(path):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path
