"""A run that several processes share under torchrun: the images of one process, one sentence when a rank ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import distill, load_real, methods
from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Callback
from datastill.core.ranks import RankFailed, Ranks, was_told
from datastill.core.split import SHARED, ByClass, refuse_unsplit
from datastill.distillation.job import prepare_job
from forked import Forked

NETWORK = "convnet:width=8,depth=2"
#: A few steps of each method; those of the second list take longer to begin.
FAST = {"dm": {}, "dc": {"outer": 2, "inner": 2}}
SLOW = {"datadam": {}, "dsa": {"outer": 2, "inner": 2}, "idc": {"outer": 2}, "idm": {}, "dream": {}}
#: What is built on another method's plan: a narrower network, one tile, networks that were trained before the steps.
BUILT = {"dm-fast": {"width": 4}, "idc-i": {"outer": 2}, "acc-dd": {"outer": 2, "bank_networks": 2, "bank_epochs": 1}}
#: Sums over classes are taken apart and put together, so images agree but for rounding.
TOLERANCE = 1e-5

SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = {places!r}
from test_ranks import run_asked
if __name__ == "__main__":
    run_asked(Path(sys.argv[1]), json.loads(sys.argv[2]))
"""


class Fails(Callback):
    """Rank 1 finds no batch in its third step."""

    def before_real_batch(self, batch: Batch, context: Context) -> Batch:
        if os.environ["RANK"] == "1" and context.step == 2:
            raise ValueError("no batch here")
        return batch


class Tells(Callback):
    """Each rank leaves a file when it is at work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before_real_batch(self, batch: Batch, context: Context) -> Batch:
        (self.folder / f"works.{os.environ['RANK']}").touch()
        return batch


def run_asked(folder: Path, what: dict[str, dict[str, Any]]) -> None:
    """What every rank does: runs by method, with their options."""
    kinds: dict[str, list[Callback]] = {"fails": [Fails()], "tells": [Tells(folder)]}
    for name, given in what.items():
        options = dict(given)
        if "image_lr_of_rank_1" in options:
            changed = options.pop("image_lr_of_rank_1")
            options |= {"image_lr": changed} if os.environ["RANK"] == "1" else {}
        options["callbacks"] = kinds.get(options.pop("callback", ""), [])
        try:
            made = distill(name, "digits", **options)
        except Exception as error:
            (folder / f"error.{os.environ['RANK']}").write_text(f"{type(error).__name__}: {error}")
            raise SystemExit(1) from error
        if os.environ["RANK"] == "0":
            torch.save(made.images, folder / f"{name}.pt")


def asked(**options: object) -> dict[str, object]:
    return {"ipc": 2, "network": NETWORK, "steps": 4, "real_batch": 8, **options}


def start(folder: Path, what: dict[str, dict]) -> list[Forked]:
    """Two ranks that are told what torchrun would tell them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def rank(index: str) -> None:
        os.environ.update(shared, RANK=index, LOCAL_RANK=index)
        run_asked(folder, what)

    return [Forked(rank, index) for index in ("0", "1")]


def shared(folder: Path, what: dict[str, dict]) -> None:
    assert [process.wait() for process in start(folder, what)] == [0, 0]


def under_torchrun(folder: Path, what: dict[str, dict]) -> None:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(places=[str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, str(folder), json.dumps(what)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def check_equal(folder: Path, what: dict[str, dict], run: Callable[[Path, dict[str, dict]], None]) -> None:
    run(folder, what)
    for name, options in what.items():
        alone = distill(name, "digits", **options).images
        torch.testing.assert_close(torch.load(folder / f"{name}.pt"), alone, rtol=0, atol=TOLERANCE)


def test_two_ranks_make_the_images_of_one_process(tmp_path: Path) -> None:
    check_equal(tmp_path, {name: asked(**options) for name, options in FAST.items()}, shared)


@pytest.mark.slow
def test_other_methods_too(tmp_path: Path) -> None:
    check_equal(tmp_path, {name: asked(**options) for name, options in SLOW.items()}, under_torchrun)


@pytest.mark.slow
def test_methods_on_the_plans_of_others_too(tmp_path: Path) -> None:
    check_equal(tmp_path, {name: asked(**options) for name, options in BUILT.items()}, shared)
    assert {*FAST, *SLOW, *BUILT} == set(SHARED.replace(" and ", ", ").split(", ")), "all that can be shared were"


def test_ranks_with_other_settings_are_refused(tmp_path: Path) -> None:
    ranks = start(tmp_path, {"dm": asked(image_lr_of_rank_1=2.0, out=str(tmp_path / "run"))})
    assert [rank.wait(120) for rank in ranks] == [1, 1]
    for rank in (0, 1):
        assert "were started with another hyper" in (tmp_path / f"error.{rank}").read_text()
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_rank_that_fails_ends_all_with_its_sentence(tmp_path: Path) -> None:
    ranks = start(tmp_path, {"dm": asked(callback="fails", out=str(tmp_path / "run"))})
    assert [rank.wait(120) for rank in ranks] == [1, 1]
    assert (tmp_path / "error.0").read_text() == "RankFailed: Rank 1 of 2 stopped: ValueError: no batch here"
    assert (tmp_path / "error.1").read_text().endswith("no batch here")
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_is_killed_ends_the_others_and_the_rerun_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Killed, a rank takes what came after the last checkpoint with it; asked to stop, nothing."""
    hyper = asked(steps=100, out=str(tmp_path / "run"), resume=True, callback="tells", checkpoint_seconds=0.05)
    ranks = start(tmp_path, {"dm": hyper})
    checkpoint = tmp_path / "run" / "checkpoints" / "block-00000.safetensors"
    while not (checkpoint.exists() and (tmp_path / "works.1").exists()) and ranks[0].poll() is None:
        time.sleep(0.02)
    os.kill(ranks[1].pid, number)
    assert [rank.wait(30) for rank in ranks] == [1, -number if number == signal.SIGKILL else 1]
    sentence = (tmp_path / "error.0").read_text()
    assert ("has ended without a word" if number == signal.SIGKILL else "add --resume to go on") in sentence
    shared(tmp_path, {"dm": hyper})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ranks"] == 2
    plain = {name: value for name, value in hyper.items() if name not in ("out", "resume", "callback")}
    torch.testing.assert_close(
        torch.load(tmp_path / "dm.pt"), distill("dm", "digits", **plain).images, rtol=0, atol=TOLERANCE
    )


@pytest.mark.slow
def test_the_command_prints_and_writes_once(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "datastill"]
    words = ["--data", "digits", "--network", NETWORK, "--steps", "4", "--real-batch", "8", "--out"]
    made = subprocess.run([*run, "distill", "dm", *words, str(tmp_path / "a")], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    assert made.stderr.count("Done: 4 steps") == 1
    assert (tmp_path / "a" / "report.html").is_file()
    for words_, said in (
        (["compare", "--out", str(tmp_path / "b")], "ranks share `datastill distill` alone"),
        (["distill", "dm", *words, str(tmp_path / "a")], "already holds a finished run"),
    ):
        refused = subprocess.run([*run, *words_], capture_output=True, text=True)
        assert refused.returncode == 1
        assert refused.stderr.count("datastill: ") == 1
        assert said in refused.stderr
    assert not (tmp_path / "b").exists()


def refusal(method: str, count: int = 2, **options: object) -> str:
    job = prepare_job(method, load_real("digits"), ipc=1, network=NETWORK, **options)
    runtime = replace(job.task.runtime, ranks=Ranks(0, count))
    with pytest.raises(InputError) as caught:
        refuse_unsplit(job.own_plan, replace(job.task, runtime=runtime), method)
    return str(caught.value)


def test_what_cannot_be_shared_is_refused_in_a_sentence() -> None:
    assert "makes no steps" in refusal("random")
    assert "KernelRidge" in refusal("kip")
    assert "take --workers or --shard" in refusal("cim")
    assert "holds each class against all others" in refusal("cafe")
    assert "11 ranks cannot share 10 classes" in refusal("dm", 11)


def test_the_methods_that_are_named_are_those_that_can_be_shared() -> None:
    real = load_real("digits")
    able = []
    for name, info in methods().items():
        if "classes" in info.cls.takes and name != "auto":
            plan = prepare_job(name, real, ipc=1, network="convnet:norm=batch").own_plan
            able += [name] if isinstance(plan.objective, ByClass) else []
    assert sorted(able) == sorted([*SHARED.replace(" and ", ", ").split(", "), "cafe"])


def test_errors_that_all_ranks_know_of() -> None:
    assert was_told(RankFailed("x"))
    assert not was_told(InputError("x"))
    outer = InputError("y")
    outer.__cause__ = RankFailed("x")
    assert was_told(outer)
    assert Ranks().meet(3) == [3]
    assert list(Ranks(1, 3).own(range(7))) == [1, 4]
