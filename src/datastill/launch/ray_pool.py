"""Units over the workers of a Ray cluster (extra `ray`), on this machine or on those that share its folders.

A cluster is joined where RAY_ADDRESS names one or the caller has joined it; else one is started here and ended with
the units. Ray starts in about ten seconds, and is imported only where it is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing.spawn
import os
import pickle
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from datastill._version import __version__
from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import InputError, Interrupted, MissingExtra
from datastill.core.rng import undisturbed
from datastill.launch.slots import End, fill, lost
from datastill.launch.units import Failure, Function, Unit, attempt
from datastill.launch.workers import Workers, mark_worker, refuse_inside_worker

#: Seconds that units have to write a checkpoint when they are asked to stop.
GRACE_SECONDS = 8.0
#: Bytes above which an argument that units share is sent to the cluster once.
_LARGE = 1 << 17


def run_ray(
    function: Function, units: Sequence[Unit], workers: Workers, ended: Callable[[Unit, Failure | None, float], None]
) -> None:
    """Map over the workers of a cluster; `ended` is called here, in the order in which units end.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: Ray does not start, or its workers have another version of datastill or torch.
    """
    refuse_inside_worker()
    with cluster(workers):
        tasks = _Tasks.of(function, workers)
        try:
            fill(tasks, units, ended)
        finally:
            tasks.close()


@contextlib.contextmanager
def cluster(workers: int | str | Workers) -> Iterator[None]:
    """Hold one cluster inside the block, for several calls of `run_units`; nothing where Ray is not asked for.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: it does not start, or does not answer.
    """
    asked = Workers.of(workers)
    if not asked.ray:
        yield
        return
    ray = _imported()
    ours = not ray.is_initialized()
    if ours:
        _start(ray, asked)
    try:
        yield
    finally:
        if ours:
            with _own_signals():
                ray.shutdown()


def _imported() -> Any:
    with undisturbed():
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("Workers of Ray need ray: pip install 'datastill[ray]'.") from error
    return ray


def _start(ray: Any, workers: Workers) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here."""
    address = os.environ.get("RAY_ADDRESS", "")
    here: dict[str, Any] = {} if address else {"address": "local", "include_dashboard": False}
    if not address and workers.count:
        here["num_cpus"] = workers.count
    try:
        with _own_signals(), undisturbed(), _quiet():
            ray.init(log_to_driver=False, configure_logging=False, **here)
    except Exception as error:
        what = f"The cluster at RAY_ADDRESS={address} does not answer" if address else "Ray does not start here"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what} ({reason}); mend that, or take a number of workers instead.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray tells of errors alone inside the block."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put the handlers of signals back afterwards: Ray takes SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Tasks:
    """`Slots` of a cluster: a task for each unit, never tried twice by Ray itself."""

    ray: Any
    function: Function
    count: int
    options: Mapping[str, Any]
    running: set[Any] = field(default_factory=set)
    sent: dict[int, tuple[bytes, Any]] = field(default_factory=dict)  #: arguments in the cluster, by identity

    @classmethod
    def of(cls, function: Function, workers: Workers) -> _Tasks:
        """As many as were asked for; else one for each GPU, or for each CPU where there is none."""
        ray = _imported()
        have = ray.cluster_resources()
        gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 1.0)
        count = workers.count or max(1, int(gpus or cpus))
        share = min(1.0, gpus / count)
        if share < 1:  # Ray counts in parts of ten thousand
            share = int(share * 10_000) / 10_000
        return cls(ray, function, count, {"num_cpus": 1, "num_gpus": share, "max_retries": 0})

    def submit(self, unit: Unit) -> Any:
        """Begin a unit."""
        bare = pickle.dumps((self.function, replace(unit, arguments=())))
        task = self.ray.remote(_perform).options(**self.options)
        handle = task.remote(_caller(), versions(), bare, *(self._sent(one) for one in unit.arguments))
        self.running.add(handle)
        return handle

    def _sent(self, argument: Any) -> Any:
        """An argument as bytes, or where the cluster keeps it."""
        packed = pickle.dumps(argument)
        if not isinstance(argument, bytes) or len(argument) < _LARGE:
            return packed
        if id(argument) not in self.sent:
            self.sent[id(argument)] = (argument, self.ray.put(packed))
        return self.sent[id(argument)][1]

    def wait(self, running: Collection[Any]) -> Collection[Any]:
        """Those that have ended; looks up now and then, so that a signal is heard."""
        while True:
            done, _ = self.ray.wait(list(running), num_returns=1, timeout=0.5)
            if done:
                return list(done)

    def end(self, handle: Any, unit: Unit) -> End:
        """How a unit ended."""
        self.running.discard(handle)
        try:
            failure, seconds = self.ray.get(handle)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | Interrupted):
                raise error.cause from None
            reason = str(error.cause).strip().splitlines()[0]
            raise InputError(
                f"A worker of Ray could not begin ({reason}); it must import datastill, and your script, as they are "
                "here."
            ) from error
        except self.ray.exceptions.RayError as error:
            return lost(unit, f"{type(error).__name__} of Ray; perhaps for want of memory"), 0.0
        if failure is None and not unit.finished:
            failure = Failure(unit.name, f"it wrote {unit.target} where this machine does not see it", 1)
        return failure, seconds

    def close(self) -> None:
        """Ask those that run to stop, and after a while make them."""
        for handle in self.running:
            self.ray.cancel(handle)
        deadline = time.monotonic() + GRACE_SECONDS
        left = list(self.running)
        while left and time.monotonic() < deadline:
            _, left = self.ray.wait(left, num_returns=len(left), timeout=0.5)
        for handle in left:
            self.ray.cancel(handle, force=True)
        self.running.clear()


def versions() -> dict[str, str]:
    """What must be the same here and in a worker, for equal numbers."""
    return {"datastill": __version__, "torch": str(torch.__version__)}


def _caller() -> dict[str, Any]:
    """What `multiprocessing` tells a process that it starts: where to import the caller's script from."""
    found = multiprocessing.spawn.get_preparation_data("datastill")
    return {name: found[name] for name in ("sys_path", "dir", "init_main_from_name", "init_main_from_path")
            if found.get(name) is not None}  # fmt: skip


def _perform(caller: Mapping[str, Any], theirs: Mapping[str, str], bare: bytes, *arguments: bytes) -> End:
    """One unit, in a worker of Ray's."""
    mark_worker()
    mine = versions()
    if mine != theirs:
        raise InputError(
            f"The worker of Ray on {platform.node()} has {_told(mine)}, and here it is {_told(theirs)}; install the "
            "same there, since numbers would differ."
        )
    torch.set_num_threads(1)
    keep_freed_memory()
    _prepare(pickle.dumps(dict(caller)))
    function, unit = pickle.loads(bare)
    return attempt(function, replace(unit, arguments=tuple(pickle.loads(one) for one in arguments)))


@functools.lru_cache(maxsize=1)
def _prepare(packed: bytes) -> None:
    """Import the caller's script as a process of `multiprocessing` does, once."""
    caller = pickle.loads(packed)
    sys.path += [place for place in caller.pop("sys_path", []) if place not in sys.path]
    folder = caller.get("dir")
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"The worker of Ray on {platform.node()} has no folder {folder}; share it between machines.")
    multiprocessing.spawn.prepare(caller)


def _told(found: Mapping[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in found.items())
