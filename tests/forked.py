"""A copy of this process that does something and can be killed: a fresh one would first import torch for seconds."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver


class Forked:
    """An action in a fork of this process, which ends with it; as `subprocess.Popen`, as far as tests of kills ask.

    The fork has run nothing of the job that it is given, and takes nothing back: what it resumes from is on disk.
    """

    def __init__(self, action: Callable[..., object], *args: object, **more: object) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _act(partial(action, *args, **more))

    def poll(self) -> int | None:
        """The exit code, minus the signal where one ended it; None while it is at work."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """The exit code, when it has ended; after the timeout it is killed.

        Raises:
            TimeoutError: it was.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                self.wait()
                raise TimeoutError(f"still at work after {timeout} s")
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _act(action: Callable[[], object]) -> None:
    """Do it and end, past everything that the process it is a copy of would do at its end."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # what workers are forks of is no child of this process, which may use it all the same
        if forkserver._forkserver._forkserver_pid is not None:  # type: ignore[attr-defined]
            forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
        action()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
