"""What a computation cost, and on what."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: of the device where it is a GPU, else of this process since it started."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


@dataclass
class Stopwatch:
    """Wall and CPU seconds since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds` so far."""
        return {
            "seconds": round(time.perf_counter() - self.wall, 3),
            "cpu_seconds": round(time.process_time() - self.cpu, 3),
        }


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions that a result depends on; with the commit, where datastill is run from a checkout of its own."""
    from datastill._version import __version__

    found = {"datastill": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**found, "commit": commit()} if commit() else found


@cache
def commit() -> str:
    """The commit of the checkout that this code is run from, "-dirty" where files differ; "" where it is installed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or not (root / "src" / "datastill").is_dir():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=quiet)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" takes CUDA, then Apple's MPS, then the CPU."""
    from datastill.core.errors import InputError

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"The device {name!r} cannot be used here; take --device cpu.") from error
    return device


def describe_seconds(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def plural(count: float, noun: str) -> str:
    """ "1 image", "2 images", "2 classes", "2 passes", "1.5 seconds"."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{count:,} {noun}{ending}" if isinstance(count, int) else f"{count:g} {noun}{ending}"


def describe_cost(steps: int, seconds: float, preparing: float = 0.0) -> str:
    """What making a set took, in words; `preparing` came before, in this run or in one whose units it took."""
    if not steps:
        return f"selected in {describe_seconds(seconds + preparing)}"
    before = f" after {describe_seconds(preparing)} of preparation" if preparing >= 0.5 else ""
    return f"{plural(steps, 'step')} in {describe_seconds(seconds)}{before}"


def environment(device: torch.device) -> dict[str, Any]:
    """Device, hardware and versions, for a manifest."""
    return {"device": device.type, "hardware": hardware(device), "versions": versions()}
