"""Recovery that is killed at any moment, alone and in a pool, ends with the images of an undisturbed run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from datastill import distill, load_distilled, load_real
from decoupled_data import NETWORK, teacher
from forked import Forked


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_recovery_goes_on_to_the_same_images(tmp_path: Path, workers: int) -> None:
    teacher().save(tmp_path / "teacher")

    def start(folder: str) -> Forked:
        return Forked(
            distill, "dwa", load_real("digits"), ipc=3, steps=80, jitter=2, r_bn=0.05, block_classes=4,
            teacher=str(tmp_path / "teacher"), network=NETWORK, out=tmp_path / folder, resume=True, workers=workers,
            checkpoint_seconds=0.05,
        )  # fmt: skip

    begun = time.monotonic()
    assert start("whole").wait() == 0
    seconds = time.monotonic() - begun
    moment, kills, folder = random.Random(workers), 0, "killed"
    for k in range(40):
        begun, running = time.monotonic(), start(folder)
        try:
            # later after every kill: on a machine that has become busy, starting alone may take what the whole one took
            assert running.wait(timeout=moment.uniform(0.4, 0.9) * seconds * 1.2**kills) == 0
            if kills or seconds < 1:
                break
            seconds, folder = time.monotonic() - begun, f"killed-{k}"  # the whole one was slow: once more, sooner
        except TimeoutError:
            kills += 1
            if (tmp_path / folder / "manifest.json").exists():  # it was all but gone
                break
    made = load_distilled(tmp_path / folder)
    assert kills >= 1 or seconds < 1
    assert torch.equal(made.images, load_distilled(tmp_path / "whole").images)
