"""A federated run that is killed at any moment goes on, and ends as one that was not."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.result import Federation
from datastill.apps.federated.runner import federated
from datastill.apps.federated.strategy import Client, Payload
from datastill.cli import main
from datastill.launch import UnitsFailed
from forked import Forked

pytestmark = pytest.mark.slow

OPTIONS = ["--clients", "3", "--rounds", "2", "--network", "convnet:width=4,depth=1", "--partition", "iid"]
OPTIONS += ["--ipc", "1", "--steps", "20", "--server-passes", "150", "--device", "cpu", "--quiet"]


def start(out: Path, *more: str) -> Forked:
    return Forked(ends_well, ["federated", "feddm", *OPTIONS, "--out", str(out), *more])


def ends_well(words: list[str]) -> None:
    assert main(words) == 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[a-z]*.safetensors"))}


def accuracies(folder: Path) -> list[float]:
    return [one["accuracy"] for one in json.loads((folder / "federated.json").read_text())["rounds"]]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Killed between two clients, while the server trains, and in the second round."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for awaited in ("0000/client-0001", "0000/client-0002", "0001/client-0000"):
        process, awaited = start(killed), f"rounds/{awaited}.safetensors"
        deadline = time.monotonic() + 120
        while not (killed / awaited).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
        assert not (killed / "federated.json").exists()
        assert (killed / "rounds/0000/network.safetensors").exists() == ("0001" in awaited.split("/"))
    assert start(killed).wait() == 0
    assert files(killed) == files(whole)
    assert accuracies(killed) == accuracies(whole)
    pooled = tmp_path / "pooled"
    assert start(pooled, "--workers", "2").wait() == 0
    assert files(pooled) == files(whole)


@dataclass(frozen=True, kw_only=True)
class Mortal(FedDM):
    """The process of client 1 is killed at work, once."""

    name: ClassVar[str] = "mortal"

    grave: str = ""

    def send(self, client: Client, given: Payload) -> Payload:
        if client.id == 1 and self.grave and not Path(self.grave).exists():
            Path(self.grave).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().send(client, given)


def test_a_client_process_that_is_killed_is_no_client_that_failed(tmp_path: Path) -> None:
    """The round is not over, and the rerun asks that client alone."""

    def play(out: str, grave: str) -> Federation:
        strategy = Mortal(ipc=1, steps=5, server_passes=5, grave=grave)
        return federated(
            strategy, "digits", clients=3, rounds=2, network="convnet:width=4,depth=1", partition="iid",
            out=tmp_path / out, workers=2, device="cpu",
        )  # fmt: skip

    grave = tmp_path / "grave"
    with pytest.raises(UnitsFailed, match=r"round 1, client 1: its worker process died.*rerun"):
        play("killed", str(grave))
    first = tmp_path / "killed" / "rounds" / "0000"
    assert sorted(path.name for path in first.glob("c*.safetensors")) == [f"client-000{k}.safetensors" for k in (0, 2)]
    before = {path: path.stat().st_mtime_ns for path in first.glob("c*.safetensors")}
    made, whole = play("killed", str(grave)), play("whole", "")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert [one.dropped for one in made.rounds] == [{}, {}]
    assert [one.accuracy for one in made.rounds] == [one.accuracy for one in whole.rounds]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
