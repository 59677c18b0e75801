"""A federated run that is killed at any moment goes on, and ends as one that was not."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from datastill.cli import main
from forked import Forked

pytestmark = pytest.mark.slow

OPTIONS = ["--clients", "3", "--rounds", "2", "--network", "convnet:width=4,depth=1", "--partition", "iid"]
OPTIONS += ["--ipc", "1", "--steps", "20", "--server-passes", "5", "--device", "cpu", "--quiet"]


def start(out: Path, *more: str) -> Forked:
    return Forked(ends_well, ["federated", "feddm", *OPTIONS, "--out", str(out), *more])


def ends_well(words: list[str]) -> None:
    assert main(words) == 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[a-z]*.safetensors"))}


def accuracies(folder: Path) -> list[float]:
    return [one["accuracy"] for one in json.loads((folder / "federated.json").read_text())["rounds"]]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for awaited in ("rounds/0000/client-0001.safetensors", "rounds/0001/client-0000.safetensors"):
        process = start(killed)
        deadline = time.monotonic() + 120
        while not (killed / awaited).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
        assert not (killed / "federated.json").exists()
    assert start(killed).wait() == 0
    assert files(killed) == files(whole)
    assert accuracies(killed) == accuracies(whole)
    pooled = tmp_path / "pooled"
    assert start(pooled, "--workers", "2").wait() == 0
    assert files(pooled) == files(whole)
