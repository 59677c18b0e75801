"""A federated run that is killed at any moment goes on, and ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OPTIONS = ["--clients", "3", "--rounds", "2", "--network", "convnet:width=4,depth=1", "--partition", "iid"]
OPTIONS += ["--ipc", "1", "--steps", "20", "--server-passes", "5", "--device", "cpu", "--quiet"]


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "datastill", "federated", "feddm", *OPTIONS, "--out", str(out)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[a-z]*.safetensors"))}


def accuracies(folder: Path) -> list[float]:
    return [one["accuracy"] for one in json.loads((folder / "federated.json").read_text())["rounds"]]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    for awaited in ("rounds/0000/client-0001.safetensors", "rounds/0001/client-0000.safetensors"):
        process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (killed / awaited).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
        assert not (killed / "federated.json").exists()
    subprocess.run(command(killed), check=True, capture_output=True)
    assert files(killed) == files(whole)
    assert accuracies(killed) == accuracies(whole)
    pooled = tmp_path / "pooled"
    subprocess.run([*command(pooled), "--workers", "2"], check=True, capture_output=True)
    assert files(pooled) == files(whole)
