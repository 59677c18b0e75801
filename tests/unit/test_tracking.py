"""Losses on the way: files, the same after a stop as without one; TensorBoard reading itself back; functions."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill.cli import main
from datastill.core.errors import Diverged, InputError, Interrupted, MissingExtra
from datastill.core.plan import Callback
from datastill.report import tracking
from datastill.report.tracking import FILES, TensorBoard, Tracker, lines_of, tracked, trackers, write_losses
from datastill.store.files import read_tensors
from decoupled_data import digits

ASKED: dict[str, Any] = {"ipc": 1, "network": "convnet:width=4,depth=1", "real_batch": 4}


def distill(steps: int = 6, **options: Any) -> Any:
    return datastill.distill("dm", digits(), steps=steps, **ASKED, **options)


def rows_of(folder: Path) -> list[tuple[int, int, float]]:
    """The rows of both files, which say the same."""
    with open(folder / "losses.csv", newline="") as file:
        table = [(int(r["block"]), int(r["step"]), float(r["loss"])) for r in csv.DictReader(file)]
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [(r["block"], r["step"], r["loss"]) for r in lines] == table
    return table


class StopAt(Callback):
    """Ends a run after a step, as Ctrl-C does, or as a crash does, after the last checkpoint."""

    def __init__(self, step: int, error: type[BaseException]) -> None:
        self.step, self.error = step, error

    def after_step(self, context: Any) -> None:
        if context.step == self.step:
            raise self.error("stop")


def test_every_run_with_a_folder_has_both_files(tmp_path: Path) -> None:
    distill(out=tmp_path / "run")
    losses = read_tensors(tmp_path / "run" / "losses.safetensors")[0]["losses"]
    rows = rows_of(tmp_path / "run")
    assert [(b, s) for b, s, _ in rows] == [(0, k) for k in range(1, 7)]
    assert torch.allclose(torch.tensor([loss for _, _, loss in rows]), losses[0], rtol=1e-6)


def test_files_are_there_while_it_runs(tmp_path: Path) -> None:
    seen = []

    def look(numbers: dict[str, float], step: int) -> None:
        if step > 1:
            seen.append((step, len(rows_of(tmp_path / "run"))))

    distill(out=tmp_path / "run", track=look)
    assert seen == [(k, k - 1) for k in range(2, 7)], "the row of this step is about to be written"


@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_a_run_that_goes_on_has_the_files_of_one_that_was_not_stopped(tmp_path: Path, seconds: float) -> None:
    """With a checkpoint after every step, and with the first alone: then rows behind it are made again."""
    distill(out=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stop"):
        distill(out=tmp_path / "run", callbacks=[StopAt(4, RuntimeError)], checkpoint_seconds=seconds)
    with open(tmp_path / "run" / "losses.csv", "a") as file:
        file.write("0,5,0.1")  # a kill within a line
    assert not (tmp_path / "run" / "manifest.json").exists()
    distill(out=tmp_path / "run", resume=True)
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_that_others_wrote_or_lost_are_put_right_at_the_end(tmp_path: Path) -> None:
    distill(out=tmp_path / "whole")
    before = (tmp_path / "whole" / "losses.csv").read_bytes()
    (tmp_path / "whole" / "losses.csv").write_text("nonsense\n")
    (tmp_path / "whole" / "losses.jsonl").unlink()
    distill(out=tmp_path / "whole", resume=True)
    assert (tmp_path / "whole" / "losses.csv").read_bytes() == before
    assert len(rows_of(tmp_path / "whole")) == 6


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    """A folder that somebody sent could name a file of yours."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RuntimeError):
        distill(out=tmp_path / "run", callbacks=[StopAt(2, RuntimeError)], checkpoint_seconds=0)
    (tmp_path / "run" / "losses.csv").unlink()
    (tmp_path / "run" / "losses.csv").symlink_to(tmp_path / "mine.txt")
    distill(out=tmp_path / "run", resume=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert len(rows_of(tmp_path / "run")) == 6


def test_many_steps_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "ROWS", 4)
    distill(steps=10, out=tmp_path / "run")
    assert [s for _, s, _ in rows_of(tmp_path / "run")] == [1, 3, 6, 9, 10]


def test_several_blocks_and_losses_that_are_not_finite(tmp_path: Path) -> None:
    losses = torch.tensor([[1.5, math.nan], [0.25, math.inf]])
    write_losses(tmp_path, losses, [0, 1])
    assert (tmp_path / "losses.csv").read_text() == "block,step,loss\n0,1,1.5\n0,2,nan\n1,1,0.25\n1,2,inf\n"
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.5, None, 0.25, None]
    assert lines_of(0, 1, 0.1)[0] == "0,1,0.1\n"
    write_losses(tmp_path / "none", torch.zeros(0, 0), [])
    assert not (tmp_path / "none").exists()


def test_blocks_in_other_processes_leave_the_files_too(tmp_path: Path) -> None:
    from decoupled_data import NETWORK, teacher

    one = {"ipc": 1, "network": NETWORK, "teacher": teacher(), "steps": 2}
    blocks = datastill.distill("sre2l", digits(), out=tmp_path / "apart", workers=2, **one).manifest["cost"]["blocks"]
    datastill.distill("sre2l", digits(), out=tmp_path / "whole", **one)
    assert len(rows_of(tmp_path / "apart")) == 2 * blocks
    assert [r[:2] for r in rows_of(tmp_path / "apart")] == [r[:2] for r in rows_of(tmp_path / "whole")]


def test_tensorboard_reads_its_own_files_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(RuntimeError, match="stop"):
        distill(out=tmp_path / "run", callbacks=[StopAt(4, RuntimeError)], checkpoint_seconds=1e6, track="tensorboard")
    distill(out=tmp_path / "run", resume=True, track="tensorboard")
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert read.Tags()["scalars"] == ["loss"]
    points = [(event.step, event.value) for event in read.Scalars("loss")]
    assert [step for step, _ in points] == list(range(1, 7)), "each step once, though some were made twice"
    assert [value for _, value in points] == pytest.approx([loss for _, _, loss in rows_of(tmp_path / "run")])


def test_the_command_tracks_checks_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = (
        "distill dm --data digits --steps 4 --real-batch 4 --network convnet:width=4,depth=1 --check-every 2 --quiet"
    )
    assert main([*words.split(), "--track", "tensorboard", "--out", str(tmp_path / "run")]) == 0
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("check_accuracy")] == [2, 4]


def test_functions_and_several_trackers() -> None:
    one: list[tuple[int, dict[str, float]]] = []
    two: list[int] = []
    track = [lambda numbers, step: one.append((step, numbers)), lambda metrics, step: two.append(step)]
    made = distill(track=track)
    assert [step for step, _ in one] == two == list(range(1, 7))
    assert all(list(numbers) == ["loss"] for _, numbers in one)
    assert made.manifest["cost"]["steps"] == 6


def test_what_a_function_raises_is_its_users(tmp_path: Path) -> None:
    def broken(numbers: dict[str, float], step: int) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        distill(out=tmp_path / "run", track=broken)
    distill(out=tmp_path / "run", resume=True)
    assert len(rows_of(tmp_path / "run")) == 6


def test_trackers_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        distill(track="tensorbord")
    with pytest.raises(InputError, match=r"losses\.csv"):
        distill(out=tmp_path / "run", track="csv")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="out="):
        distill(track="tensorboard")
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match=r"datastill\[tensorboard\]"):
        trackers("tensorboard", tmp_path)
    with pytest.raises(MissingExtra):
        TensorBoard(tmp_path)


def test_what_is_no_tracker_is_told_and_one_that_fails_to_close_leaves_none_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tracker 3"):
        trackers(3, None)
    closed = []

    class Fails(Tracker):
        def close(self) -> None:
            closed.append(self)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"), tracked([Fails(), Fails()], tmp_path):
        pass
    assert len(closed) == 2


def test_a_full_disk_ends_no_run_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are put right at the end, where the disk has room again."""
    real = tracking.write_text
    monkeypatch.setattr(tracking, "write_text", lambda *_: (_ for _ in ()).throw(InputError("full")))

    def room(numbers: dict[str, float], step: int) -> None:
        if step == 5:
            monkeypatch.setattr(tracking, "write_text", real)

    distill(out=tmp_path / "run", track=room)
    assert len(rows_of(tmp_path / "run")) == 6


def test_stopped_and_diverged_runs_keep_their_rows(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        distill(out=tmp_path / "one", callbacks=[StopAt(3, Interrupted)])
    assert len(rows_of(tmp_path / "one")) == 2
    with pytest.raises(Diverged):
        distill(out=tmp_path / "two", callbacks=[StopAt(3, Diverged)])
    assert len(rows_of(tmp_path / "two")) == 2
