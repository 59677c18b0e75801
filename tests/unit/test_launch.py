"""Units of work: skipped when finished, the same wherever they run, none lost when one fails, nothing left alive."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datastill.core.errors import Diverged, InputError, Interrupted, MissingExtra
from datastill.launch import Done, Unit, UnitsFailed, Workers, one_thread, run_units
from datastill.launch.units import Clock
from datastill.store.files import write_json

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_launch import square, units
from datastill.launch import run_units
if __name__ == "__main__":
    run_units(square, units(Path(sys.argv[1]), [1, 2, -60, -61]), workers=2)
"""


def square(n: float, target: Path) -> None:
    """Writes what it computed, and how many threads it had."""
    if n == 13:
        raise Diverged("thirteen is not finite.")
    if n == 14:
        raise ValueError("fourteen\nis odd")
    if n == 15:
        raise Interrupted("Stopped after step 1.")
    if n == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    if n < 0:
        time.sleep(-n)
    write_json(target, {"square": n * n, "threads": torch.get_num_threads()})


def told(name: str, target: Path) -> None:
    """Writes a variable of the environment and a number of numpy's global generator, when another worker has begun."""
    time.sleep(0.5)
    write_json(target, {"value": os.environ.get(name), "drawn": float(np.random.rand())})  # noqa: NPY002


def units(folder: Path, numbers: list[float], **options: object) -> list[Unit]:
    return [Unit(f"unit {n}", (n,), folder / f"{n}.json", **options) for n in numbers]  # type: ignore[arg-type]


def read(folder: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def test_a_finished_unit_is_left_as_it_is_and_units_of_one_target_are_one(tmp_path: Path) -> None:
    told: list[Done] = []
    write_json(tmp_path / "1.json", "finished")
    run_units(square, units(tmp_path, [1, 2, 2]), on_done=told.append)
    assert read(tmp_path)["1.json"] == "finished"
    assert [(one.unit.name, one.done, one.total) for one in told] == [("unit 2", 2, 2)]
    assert told[0].seconds_left == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_fails_does_not_lose_the_others(tmp_path: Path, workers: int) -> None:
    """Here and in a pool the others write the same, on one thread."""
    made = units(tmp_path, [13, 14, -0.3])
    made.append(Unit("child of 13", (3,), tmp_path / "3.json", needs=(tmp_path / "13.json",)))
    made.append(Unit("child of the slow", (5,), tmp_path / "5.json", needs=(tmp_path / "-0.3.json",)))
    order: list[str] = []
    with pytest.raises(UnitsFailed, match="3 of 6 units failed") as caught:
        run_units(
            square,
            [*made, *units(tmp_path, [4])],
            workers=workers,
            on_done=lambda done: order.append(done.unit.name),
        )
    assert read(tmp_path) == {f"{n}.json": {"square": n * n, "threads": 1} for n in (-0.3, 4, 5)}
    assert order.index("unit -0.3") < order.index("child of the slow"), "a unit waits for what it needs"
    sentences = {failure.name: failure for failure in caught.value.failures}
    assert sentences["unit 13"].sentence == "thirteen is not finite."
    assert sentences["unit 13"].exit_code == 3
    assert sentences["unit 14"].sentence == "ValueError: fourteen is odd"
    assert "square" in sentences["unit 14"].traceback
    assert "could not be made" in sentences["child of 13"].sentence
    assert caught.value.exit_code == caught.value.failures[0].exit_code
    assert "unit 13: thirteen" in str(caught.value)


def test_a_unit_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(UnitsFailed, match="without writing"):
        run_units(lambda target: None, [Unit("idle", (), tmp_path / "x.json")])


def test_a_wish_to_stop_ends_all_of_it(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="1 of 3 units are finished and kept; rerun the same command"):
        run_units(square, units(tmp_path, [1, 15, 2]))
    assert set(read(tmp_path)) == {"1.json"}


def test_a_worker_that_is_killed_loses_one_unit_and_the_rerun_makes_it(tmp_path: Path) -> None:
    made = [*units(tmp_path, [16, -1, 2]), *units(tmp_path, [3, 4])]
    with pytest.raises(UnitsFailed, match=r"1 of 5 units failed.*unit 16: its worker process died.*rerun") as caught:
        run_units(square, made, workers=2)
    assert [failure.lost for failure in caught.value.failures] == [True]
    assert set(read(tmp_path)) == {f"{n}.json" for n in (-1, 2, 3, 4)}
    again: list[Done] = []
    run_units(square, [*units(tmp_path, [5]), *made[1:]], workers=2, on_done=again.append)
    assert [one.unit.name for one in again] == ["unit 5"]


def test_workers_have_the_environment_of_now_and_random_numbers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they are forks of a process that began earlier."""
    for value in ("first", "second"):
        monkeypatch.setenv("DATASTILL_TOLD", value)
        run_units(told, [Unit(str(k), ("DATASTILL_TOLD",), tmp_path / f"{value}-{k}.json") for k in (0, 1)], workers=2)
    found = read(tmp_path)
    assert [one["value"] for one in found.values()] == ["first", "first", "second", "second"]
    assert len({one["drawn"] for one in found.values()}) == 4


@pytest.mark.slow
def test_workers_that_do_not_begin_end_it_in_a_sentence(tmp_path: Path) -> None:
    """Not once for each unit: a script that cannot be imported again."""
    script = tmp_path / "script.py"
    broken = f'import sys\nif __name__ == "__mp_main__":\n    raise OSError("no")\n{SCRIPT[1:]}'
    script.write_text(broken.format(here=str(Path(__file__).parent)))
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "WorkersLost: A worker process died as it began" in ended.stderr


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", "", "ray:", "ray:0", "ray:x", "rays", "ray:99999"])
def test_workers_are_a_whole_number_or_of_ray(tmp_path: Path, workers: object) -> None:
    with pytest.raises(InputError, match="workers"):
        run_units(square, [], workers=workers)  # type: ignore[arg-type]


def test_what_names_workers() -> None:
    assert Workers.of(3) == Workers(3)
    assert Workers.of("ray") == Workers(0, ray=True)
    assert Workers.of("ray:4") == Workers(4, ray=True)
    assert [Workers.of(text).go_apart(1) for text in (1, 2, "ray")] == [False, False, True]
    assert [Workers.of(text).go_apart(2) for text in (1, 2, "ray")] == [False, True, True]
    assert not Workers.of("ray").go_apart(0), "nothing to do does not start Ray"


def test_without_ray_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'datastill\[ray\]'"):
        run_units(square, units(tmp_path, [1]), workers="ray")
    write_json(tmp_path / "1.json", "finished")
    run_units(square, units(tmp_path, [1]), workers="ray")


def test_the_time_left_goes_by_group(tmp_path: Path) -> None:
    made = [Unit(str(k), (), tmp_path / str(k), group=group) for k, group in enumerate("aabbb")]
    clock = Clock(made, workers=1)
    assert clock.ended(made[0], 1.0) == 4.0  # nothing is known of b: as what ended
    assert clock.ended(made[2], 10.0) == 1.0 + 2 * 10.0
    assert Clock(made, workers=2).ended(made[0], 1.0) == 2.0


def test_threads_are_put_back_after_an_error() -> None:
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(ValueError), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("x")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped or killed, the parent leaves no process behind that would go on beside the rerun.

    What workers are forks of does no work, and ends when they and the parent have: on a busy machine later than they.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=subprocess.DEVNULL)
    while not ((tmp_path / "1.json").exists() and (tmp_path / "2.json").exists()) and parent.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    direct = children_of(parent.pid)
    workers = [one for child in direct for one in children_of(child)] or direct
    assert len(workers) == 2
    started = time.monotonic()
    parent.send_signal(number)
    parent.wait(timeout=30)
    for processes, seconds in ((workers, 15), (direct, 90)):
        while any(alive(pid) for pid in processes) and time.monotonic() - started < seconds:
            time.sleep(0.05)
        assert not [pid for pid in processes if alive(pid)]
    assert set(read(tmp_path)) == {"1.json", "2.json"}


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    if not text.exists():
        pytest.skip("no /proc here")
    return [int(child) for child in text.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_a_script_from_standard_input_has_workers(tmp_path: Path) -> None:
    """Python calls it <stdin>, which no worker can import."""
    script = (
        "import shutil\nfrom pathlib import Path\nfrom datastill.launch import Unit, run_units\n"
        "Path('one').write_text('1')\n"
        "units = [Unit(str(k), ('one',), Path(f'copy{k}')) for k in range(2)]\n"
        "run_units(shutil.copyfile, units, workers=2)\n"
    )
    found = subprocess.run(
        [sys.executable, "-"], input=script, cwd=tmp_path, text=True, capture_output=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "copy1").read_text() == "1"
