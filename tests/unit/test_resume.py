"""Kill, stop, damage: what is on disk is whole, and a resumed run is bit-identical to an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from datastill import distill, load_distilled, load_real
from datastill.core.context import Context
from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Callback
from datastill.core.rng import Rng
from forked import Forked

SMALL = {"ipc": 2, "network": "convnet:width=8,depth=1", "real_batch": 8, "seed": 5}


def start(folder: Path, steps: int) -> Forked:
    """A run in a process of its own, with a checkpoint after every step."""
    return Forked(distill, "dm", "digits", steps=steps, out=folder, resume=True, checkpoint_seconds=0.0, **SMALL)


def kill_and_resume(folder: Path, steps: int, kills: int, seed: int) -> int:
    """Kill -9 at random moments of the run, soon after it has taken up work; how many kills hit a run at work."""
    moments = random.Random(seed)
    checkpoints = folder / "checkpoints" / "block-00000.safetensors"
    hit = 0
    for _ in range(kills):
        seen = checkpoints.stat().st_mtime_ns if checkpoints.exists() else 0
        process = start(folder, steps)
        while process.poll() is None and (checkpoints.stat().st_mtime_ns if checkpoints.exists() else 0) == seen:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.03))
        process.kill()
        hit += process.wait() == -signal.SIGKILL
        if (folder / "manifest.json").exists():
            load_distilled(folder)
    assert start(folder, steps).wait() == 0
    return hit


def assert_identical(folder: Path, other: Path) -> None:
    one, two = load_distilled(folder), load_distilled(other)
    assert torch.equal(one.images, two.images)
    losses = [(f / "losses.safetensors").read_bytes() for f in (folder, other)]
    assert losses[0] == losses[1]


def test_killed_runs_resume_to_the_same_bits(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight, 100).wait() == 0
    assert kill_and_resume(killed, 100, kills=2, seed=0) >= 1
    assert_identical(straight, killed)
    assert not list(killed.rglob("*.tmp")) or all(p.name.startswith(".") for p in killed.rglob("*.tmp"))


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight, 400).wait() == 0
    # 15 of 20: a run of so few, short steps may have ended before its kill comes
    assert kill_and_resume(killed, 400, kills=20, seed=1) >= 15
    assert_identical(straight, killed)


class StopAt(Callback):
    """Sends this process the signal of Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, context: Context) -> None:
        if context.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="--resume"):
        distill("dm", "digits", steps=20, out=out, callbacks=[StopAt(7)], checkpoint_seconds=1e9, **SMALL)
    assert not (out / "manifest.json").exists()
    resumed = distill("dm", "digits", steps=20, out=out, resume=True, **SMALL)
    whole = distill("dm", "digits", steps=20, **SMALL)
    assert torch.equal(resumed.images, whole.images)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill("dm", "digits", steps=20, out=out, callbacks=[StopAt(3)], **SMALL)
    with pytest.raises(InputError, match="unfinished"):
        distill("dm", "digits", steps=20, out=out, **SMALL)


def test_what_is_refused_after_preparing_leaves_the_folder_to_the_mended_command(tmp_path: Path) -> None:
    """A layer that the network lacks is found out by the first step; the teacher that was prepared is kept."""
    asked = {"ipc": 1, "steps": 2, "network": "convnet:width=8,depth=2,norm=batch", "candidates": 20,
             "squeeze_passes": 12, "out": tmp_path / "run"}  # fmt: skip
    with pytest.raises(InputError, match="no layer 'nope'"):
        distill("cim", "digits", layer="nope", **asked)
    kept = list((tmp_path / "run").rglob("teacher-*.safetensors"))
    assert kept
    assert not (tmp_path / "run" / "config.json").exists()
    before = kept[0].stat().st_mtime_ns
    assert len(distill("cim", "digits", **asked).images) == 10
    assert kept[0].stat().st_mtime_ns == before


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill("random", "digits", ipc=1, out=out)
    with pytest.raises(InputError, match="finished"):
        distill("random", "digits", ipc=1, out=out)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 6}, "seed"),
        ({"ipc": 1}, "ipc"),
        ({"real_batch": 9}, "real_batch"),
        ({"network": "convnet:width=4,depth=1"}, "network"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill("dm", "digits", steps=20, out=out, callbacks=[StopAt(3)], **SMALL)
    before = (out / "config.json").read_bytes()
    with pytest.raises(InputError, match=named):
        distill("dm", "digits", steps=20, out=out, resume=True, **{**SMALL, **change})
    assert (out / "config.json").read_bytes() == before


def test_other_data_are_refused_on_resume(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill("dm", "digits", steps=20, out=out, callbacks=[StopAt(3)], **SMALL)
    with pytest.raises(InputError, match="data"):
        distill("dm", "digits:train=1200", steps=20, out=out, resume=True, **SMALL)


@pytest.mark.parametrize("damage", ["truncate", "pickle", "empty"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill("dm", "digits", steps=20, out=out, callbacks=[StopAt(3)], **SMALL)
    path = out / "checkpoints" / "block-00000.safetensors"
    data = path.read_bytes()
    if damage == "pickle":
        torch.save({"codes": torch.zeros(3)}, path)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    with pytest.raises(InputError, match="block-00000"):
        distill("dm", "digits", steps=20, out=out, resume=True, **SMALL)


def test_a_run_resumes_with_the_threads_it_began_with(tmp_path: Path) -> None:
    """Threads change the last bits, so they are taken from the run, whatever this machine has."""
    generator = Rng(0).generator("images")
    real = load_real((torch.rand(40, 1, 28, 28, generator=generator), torch.arange(40) % 2))
    settings = {"ipc": 1, "network": "convnet:width=64,depth=3", "real_batch": 4, "steps": 4}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(Interrupted):
            distill("dm", real, out=tmp_path / "run", callbacks=[StopAt(2)], **settings)
        whole = distill("dm", real, **settings)
        torch.set_num_threads(1)
        resumed = distill("dm", real, out=tmp_path / "run", resume=True, **settings)
        assert torch.equal(whole.images, resumed.images)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_budget_becomes_steps_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill("dm", "digits", budget=2.0, out=out, callbacks=[StopAt(3)], **SMALL)
    steps = json.loads((out / "config.json").read_text())["hyper"]["steps"]
    resumed = distill("dm", "digits", budget=2.0, out=out, resume=True, **SMALL)
    assert resumed.manifest["hyper"]["steps"] == steps == resumed.manifest["cost"]["steps"]


def test_seeds_and_callers_generators(tmp_path: Path) -> None:
    real = load_real("digits")
    torch_state = torch.get_rng_state()
    runs = [distill("dm", real, steps=5, **SMALL).images for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(torch_state, torch.get_rng_state())
