"""Units over a Ray cluster of two local workers: what one process gives, and what a kill takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datastill import distill, load_real
from datastill.core.errors import InputError
from datastill.experiments import compare, load_comparison
from datastill.launch import Unit, UnitsFailed, cluster, ray_pool, run_units
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.surrogates.experts import train_experts
from decoupled_data import NETWORK

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SMALL = {"ipc": 1, "seeds": 2, "network": "convnet:width=8,depth=1", "networks": 1, "protocol": "dsa-quick-v1"}


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """One cluster for the tests of this file, since it takes ten seconds to start; workers find this module."""
    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (here, before) if part)
    with cluster("ray:2"):
        yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def square(n: float, target: Path) -> None:
    """Writes what it computed, where, and how many threads it had; 16 is killed, below zero takes a while."""
    if n == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    if n < -10:
        (target.parent / f"begun.{os.getpid()}").touch()
    for _ in range(round(max(0.0, -n) * 20)):
        time.sleep(0.05)
    write_json(target, {"square": n * n, "threads": torch.get_num_threads(), "here": os.getpid()})


def units(folder: Path, numbers: list[float]) -> list[Unit]:
    return [Unit(f"unit {n}", (n,), folder / f"{n}.json") for n in numbers]


@pytest.mark.usefixtures("_ray")
def test_a_kill_loses_one_unit(tmp_path: Path) -> None:
    made = [*units(tmp_path, [16, -1, 2, 3])]
    made.append(Unit("child", (5,), tmp_path / "5.json", needs=(tmp_path / "-1.json",)))
    with pytest.raises(UnitsFailed, match=r"1 of 5 units failed.*unit 16: its worker process died.*rerun"):
        run_units(square, made, workers="ray:2")
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: one["square"] for name, one in found.items()} == {"-1": 1, "2": 4, "3": 9, "5": 25}
    assert {one["threads"] for one in found.values()} == {1}
    assert os.getpid() not in {one["here"] for one in found.values()}


@pytest.mark.usefixtures("_ray")
def test_workers_of_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "versions", lambda: {"datastill": "9.9", "torch": "1.0"})
    with pytest.raises(InputError, match=r"has datastill 0.*and here it is datastill 9\.9 and torch 1\.0; install"):
        run_units(square, units(tmp_path, [1, 2]), workers="ray:2")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_ray")
def test_a_comparison_equals_the_serial_one(tmp_path: Path) -> None:
    asked = {**SMALL, "settings": {"dm": {"steps": 20, "real_batch": 8}}}
    one = compare(["dm"], "digits", out=tmp_path / "serial", **asked)
    two = compare(["dm"], "digits", out=tmp_path / "ray", workers="ray:2", **asked)
    assert [(row.mean, row.interval) for row in one.rows] == [(row.mean, row.interval) for row in two.rows]
    assert [row.mean for row in load_comparison(tmp_path / "ray").rows] == [row.mean for row in one.rows]


@pytest.mark.usefixtures("_ray")
def test_experts_equal_the_serial_ones_byte_for_byte(tmp_path: Path) -> None:
    real = load_real("digits")
    network = resolve_network("convnet:width=4,depth=1", **real.network_shape)
    for name, workers in (("one", 1), ("ray", "ray:2")):
        train_experts(real, network, tmp_path / name, experts=2, epochs=2, workers=workers)
    mine, theirs = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*.bin")} for n in ("one", "ray"))
    assert len(mine) == 2
    assert mine == theirs


@pytest.mark.usefixtures("_ray")
def test_recovered_blocks_equal_the_serial_ones(tmp_path: Path) -> None:
    hyper = {"ipc": 3, "steps": 5, "teacher": "", "squeeze_passes": 2, "seed": 3, "block_classes": 4}
    hyper |= {"network": NETWORK}
    made = [
        distill("dwa", "digits", out=tmp_path / str(k), workers=workers, **hyper).images
        for k, workers in enumerate([1, "ray:2"])
    ]
    assert torch.equal(*made)


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {above!r}]
from test_ray import square, units
from datastill.launch import run_units
if __name__ == "__main__":
    run_units(square, units(Path(sys.argv[1]), [1, 2, -60, -61]), workers="ray:2")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_unit_goes_on_when_its_parent_is_stopped_or_killed(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), above=str(Path(__file__).parents[1])))
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=subprocess.PIPE, text=True) as parent:
        while len(workers := [int(path.suffix[1:]) for path in tmp_path.glob("begun.*")]) < 2 and parent.poll() is None:
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.stderr is not None
        said = parent.communicate(timeout=30)[1] if number == signal.SIGINT else ""
        parent.wait(timeout=30)
    deadline = time.monotonic() + 15
    while any("_perform" in command(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if "_perform" in command(pid)]
    assert {path.name for path in tmp_path.glob("*.json")} == {"1.json", "2.json"}
    assert number == signal.SIGKILL or "Stopped: 2 of 4 units are finished and kept" in said


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
