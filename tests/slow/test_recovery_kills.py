"""Recovery that is killed at any moment, alone and in a pool, ends with the images of an undisturbed run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from datastill import load_distilled
from decoupled_data import NETWORK, teacher

SCRIPT = """
import sys
import datastill
if __name__ == "__main__":
    folder, workers = sys.argv[1], int(sys.argv[2])
    datastill.distill(
        "dwa", datastill.load_real("digits"), ipc=3, steps=150, jitter=2, r_bn=0.05, block_classes=4,
        teacher=sys.argv[3], network=sys.argv[4], out=folder, resume=True, workers=workers, checkpoint_seconds=0.05,
    )
"""  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_recovery_goes_on_to_the_same_images(tmp_path: Path, workers: int) -> None:
    teacher().save(tmp_path / "teacher")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    errors = (tmp_path / "errors.txt").open("ab")

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            str(script),
            str(tmp_path / folder),
            str(workers),
            str(tmp_path / "teacher"),
            NETWORK,
        ]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)

    begun = time.monotonic()
    whole = start("whole")
    assert whole.wait(timeout=600) == 0, (tmp_path / "errors.txt").read_text()
    seconds = time.monotonic() - begun
    moment, kills, folder = random.Random(workers), 0, "killed"
    for k in range(40):
        begun, running = time.monotonic(), start(folder)
        try:
            assert running.wait(timeout=moment.uniform(0.4, 0.9) * seconds) == 0, (tmp_path / "errors.txt").read_text()
            if kills or seconds < 1:
                break
            seconds, folder = time.monotonic() - begun, f"killed-{k}"  # the whole one was slow: once more, sooner
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
            if (tmp_path / folder / "manifest.json").exists():  # it was all but gone
                break
    errors.close()
    made = load_distilled(tmp_path / folder)
    assert kills >= 1 or seconds < 1
    assert torch.equal(made.images, load_distilled(tmp_path / "whole").images)
