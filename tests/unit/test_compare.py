"""compare: the same numbers in one process, in a pool, and after kills; a finished cell stays; nothing is lost."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

import datastill
from datastill import load_distilled, load_real
from datastill.core import registry
from datastill.core.errors import InputError, Interrupted
from datastill.evaluation import evaluate
from datastill.experiments import CellsFailed, Comparison, compare, grid, load_comparison
from datastill.experiments.settings import Settings, make_settings, pick_protocol
from datastill.experiments.sources import real_sets
from datastill.sampling.inits import random_indices
from datastill.store.files import CHECKSUM
from datastill.training.feature_network import FeatureNetwork
from forked import Forked

NETWORK = "convnet:width=8,depth=1"
SMALL = {
    "ipc": [1, 2],
    "seeds": 2,
    "network": NETWORK,
    "networks": 2,
    "protocol": "dsa-quick-v1",
    "settings": {
        "dm": {"steps": 60, "real_batch": 8},
        "herding": {"feature_passes": 1},
        "kcenter": {"feature_passes": 1},
    },
}
METHODS = ["herding", "kcenter", "dm"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One comparison in one process."""
    return compare(METHODS, "digits", out=tmp_path_factory.mktemp("compare") / "serial", **SMALL)


def records(folder: Path) -> dict[str, dict]:
    """Every cell's record without what may differ: seconds and memory."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}
    for record in found.values():
        assert set(record.pop("cost")) >= {"distillation_seconds", "evaluation_seconds", "peak_memory_bytes"}
        assert record.pop(CHECKSUM)  # over the cost too
    return found


def assert_same(folder: Path, done: Comparison) -> None:
    """Records, plan, table and the sets themselves equal those of the serial comparison."""
    assert done.folder is not None
    assert records(folder) == records(done.folder)
    assert json.loads((folder / "plan.json").read_text()) == json.loads((done.folder / "plan.json").read_text())
    mine = load_comparison(folder)
    assert [(r.mean, r.interval, r.difference) for r in mine.rows[1:4]] == [
        (r.mean, r.interval, r.difference) for r in done.rows[1:4]
    ]
    for path in done.folder.glob("cells/*"):
        assert torch.equal(load_distilled(path).images, load_distilled(folder / "cells" / path.name).images)
    assert not [path for path in folder.rglob("*.tmp") if not path.name.startswith(".")]


def kill_and_resume(folder: Path, kills: int, workers: list[int], seed: int) -> int:
    """Kill -9 at random moments of the work, then let it end; how many kills hit it at work."""
    moments = random.Random(seed)
    hit = 0
    for k in range(kills):
        before = len(list(folder.glob("results/*.json")))
        process = Forked(compare, METHODS, "digits", out=folder, workers=workers[k % len(workers)], **SMALL)
        while process.poll() is None and len(list(folder.glob("results/*.json"))) == before:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        hit += process.wait() == -signal.SIGKILL
        for path in folder.glob("results/*.json"):
            json.loads(path.read_text())
    compare(METHODS, "digits", out=folder, **SMALL)
    return hit


@pytest.mark.slow
def test_a_pool_gives_what_one_process_gives(done: Comparison, tmp_path: Path) -> None:
    result = compare(METHODS, "digits", out=tmp_path / "pool", workers=2, **SMALL)
    assert_same(tmp_path / "pool", done)
    assert [row.mean for row in result.rows] == [row.mean for row in done.rows]


@pytest.mark.slow
def test_killed_comparisons_go_on_to_the_same_numbers(done: Comparison, tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path / "killed", 2, workers=[1], seed=0) == 2
    assert_same(tmp_path / "killed", done)


def test_a_finished_cell_is_not_run_again(done: Comparison) -> None:
    folder = done.folder
    assert folder is not None
    kept = sorted((folder / "results").glob("*.json"))[1:]
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    gone = sorted((folder / "results").glob("*.json"))[0]
    stamps = {path: path.stat().st_mtime_ns for path in [*kept, *files] if path != gone}
    stored = json.loads(gone.read_text())
    gone.unlink()
    told: list[str] = []
    compare(METHODS, "digits", out=folder, progress=lambda d: told.append(d.unit.target.name), **SMALL)
    assert told == [gone.name]
    again = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert all(gone.stem in str(path) for path in again), "only the missing cell was touched"
    del stored["cost"], stored[CHECKSUM]
    assert records(folder)[gone.name] == stored


def test_differences_are_paired_with_the_random_of_the_same_seed(done: Comparison) -> None:
    row, other = done.row("dm", ipc=2), done.row("random", ipc=2)
    mine = torch.tensor([row.cells[s]["accuracies"] for s in (0, 1)], dtype=torch.double)
    base = torch.tensor([other.cells[s]["accuracies"] for s in (0, 1)], dtype=torch.double)
    assert row.difference == pytest.approx(float((mine - base).mean()))
    values = (mine - base).flatten()
    half = float(stats.t.ppf(0.975, 3)) * float(values.std()) / 2.0
    assert row.interval_over == "networks"
    assert row.difference_interval == pytest.approx(half)
    assert math.isnan(other.difference)
    # the cell's own evaluation, with Random beside it, gives both arms: same weights, orders and selection
    folder = done.cell_folder(row, 1)
    again = evaluate(folder, "digits", protocol="dsa-quick-v1", networks=2, seed=1)
    assert again.distilled.accuracies[0].tolist() == pytest.approx(row.cells[1]["accuracies"], abs=1e-6)
    assert again.random is not None
    assert again.random.accuracies[0].tolist() == pytest.approx(other.cells[1]["accuracies"], abs=1e-6)
    real = load_real("digits")
    selected = load_distilled(done.cell_folder(other, 1)).images
    assert torch.equal(selected, real.batch(random_indices(real, 2, 1)).x)


def test_intervals_are_over_sets_from_three_seeds_on() -> None:
    result = compare("random", "digits", ipc=1, seeds=3, network=NETWORK, networks=2, protocol="dsa-quick-v1")
    row = result.row("random")
    means = torch.tensor([row.cells[s]["accuracies"] for s in row.seeds], dtype=torch.double).mean(1)
    assert row.interval_over == "sets"
    assert row.interval == pytest.approx(float(stats.t.ppf(0.975, 2)) * float(means.std()) / math.sqrt(3))
    assert result.folder is None or not result.folder.exists()
    assert "random" in result.table()


def test_what_methods_share_is_prepared_once(done: Comparison) -> None:
    folder = done.folder
    assert folder is not None
    assert len(list(folder.glob("prepare/feature-network-*.safetensors"))) == 2, "one for each seed"
    assert not list(folder.glob("cells/*/prepare"))
    costs = [cell["cost"] for r in done.rows if r.method == "kcenter" for cell in r.cells.values()]
    assert all(cost["prepare_seconds"] > 0 for cost in costs)
    assert done.row("dm", ipc=1).cost("prepare_seconds") == 0


def test_a_record_holds_what_it_takes_to_judge_it(done: Comparison) -> None:
    cell = done.row("dm", ipc=1).cells[0]
    assert cell["hyper"]["steps"] == 60
    assert cell["cost"]["steps"] == 60
    assert cell["real"]["fingerprint"] == load_real("digits").fingerprint
    assert cell["versions"]["torch"] == torch.__version__
    assert cell["hardware"].endswith("1 threads")
    assert cell["command"].startswith("datastill compare --data digits --methods random herding kcenter dm --ipc 1 2")
    assert "--set dm.steps=60" in cell["command"]
    assert len(cell["per_class"]) == 10
    assert cell["protocol"] == "dsa-quick-v1"


def test_what_it_returns(done: Comparison) -> None:
    assert [row.method for row in done.rows] == ["random", *METHODS] * 2
    assert len(done.verdicts) == 6
    assert "against Random" in done.verdicts[0]
    record = done.to_dict()
    json.dumps(record, allow_nan=False)
    assert record["rows"][0]["difference"] is None
    lines = done.table().splitlines()
    assert len([line for line in lines if line.startswith("| digits")]) == 8
    assert sum("**" in line for line in lines) == 2
    assert datastill.compare is compare
    with pytest.raises(InputError, match="2 rows fit"):
        done.row("dm")


def test_random_is_added_and_one_protocol_serves_all(tmp_path: Path) -> None:
    torch_state = torch.get_rng_state()
    x = torch.rand(80, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    result = compare(
        ["dm"], (x, torch.arange(80) % 2), ipc=1, seeds=[5], networks=1, network="convnet:width=4,depth=2",
        settings={"dm": {"steps": 2, "real_batch": 4}}, out=tmp_path,
    )  # fmt: skip
    assert [row.method for row in result.rows] == ["random", "dm"]
    assert result.protocol == "dsa-quick-v1", "16 pixels are augmented"
    assert result.rows[0].seeds == [5]
    assert result.command is None, "arrays cannot be named on a command line"
    assert torch.equal(torch_state, torch.get_rng_state())
    assert pick_protocol("auto", [(1, 8, 8)]).name == "dc-v1"
    assert pick_protocol("auto", [(1, 8, 8), (3, 32, 32)]).name == "dsa-quick-v1"


METHOD_FILE = """
from dataclasses import dataclass
from datastill.core.registry import Method, method

@method("middle", paper="none", family="coreset")
@dataclass(frozen=True, kw_only=True)
class Middle(Method):
    \"\"\"Random images under a name of one's own.\"\"\"

    shade: float = 0.5  #: of nothing

    def build(self, task):
        from datastill.core.plan import Plan
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.inits import RandomReal
        return Plan(init=RandomReal(), decoder=Pixels())
"""


def test_a_method_in_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    (tmp_path / "mine.py").write_text(METHOD_FILE)
    given = str(tmp_path / "mine.py")
    result = compare(
        [given], "digits", ipc=1, seeds=1, networks=1, network=NETWORK, protocol="dsa-quick-v1",
        settings={given: {"shade": 0.25}}, precision="float32", out=tmp_path / "out",
    )  # fmt: skip
    row = result.row("middle")
    assert row.cells[0]["hyper"] == {"shade": 0.25}
    assert row.difference == 0, "the same selection, weights and orders as Random"
    assert given in str(result.command)


def test_several_data_sets_side_by_side(tmp_path: Path) -> None:
    result = compare(
        ["random"], ["digits", load_real("digits:train=1200")], ipc=1, seeds=1, networks=1, network=NETWORK,
        protocol="dsa-quick-v1", out=tmp_path,
    )  # fmt: skip
    assert [row.data for row in result.rows] == ["digits", "digits:train=1200"]
    assert result.rows[0].cells[0]["real"]["images"] == 899
    assert result.rows[1].cells[0]["real"]["images"] == 1200


def test_a_budget_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def within(job, budget, folder, resume):
        asked.append((job.method_name, budget))
        if job.method_name == "random":
            return job
        return replace(job, method=replace(job.method, steps=2 + len(asked)), notes=("measured",))

    monkeypatch.setattr(grid, "within", within)
    settings = {"ipc": 1, "seeds": 2, "networks": 1, "network": NETWORK, "protocol": "dsa-quick-v1"}
    settings |= {"budget": 5.0, "settings": {"dm": {"real_batch": 4}}, "out": tmp_path}
    first = compare(["dm"], "digits", **settings)
    assert [name for name, _ in asked if name == "dm"] == ["dm"], "once, not per seed"
    steps = first.row("dm").cells[0]["hyper"]["steps"]
    assert first.row("dm").cells[1]["hyper"]["steps"] == steps
    assert first.row("dm").cells[0]["notes"] == ["measured"]
    next((tmp_path / "results").glob("*dm*seed1*")).unlink()
    calls = len(asked)
    second = compare(["dm"], "digits", **settings)
    assert len(asked) == calls, "read back from plan.json"
    assert second.row("dm").cells[1]["hyper"]["steps"] == steps


def test_a_budget_beside_given_steps_is_refused(tmp_path: Path) -> None:
    """As `distill` and `estimate` do; the steps of one method used to push its budget aside without a word."""
    with pytest.raises(InputError, match="either budget"):
        grid._settle(_asked(5.0), real_sets("digits"), grid.Cell("digits", "dm", 1, 0), tmp_path)


def _asked(budget: float) -> Settings:
    return make_settings(
        ["dm"], real_sets("digits"), ipc=1, seeds=1, network=NETWORK, protocol="auto", networks=1, recipe="auto",
        settings={"dm": {"steps": 7}}, budget=budget, device="cpu",
    )  # fmt: skip


def test_the_failure_of_a_cell_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datastill.core.wrapped._TOO_LARGE", float("inf"))  # else the rate is lowered ...
    monkeypatch.setattr("datastill.core.guard.FARTHEST", float("inf"))  # ... or the first step ends the run
    settings = {"ipc": 1, "seeds": 1, "networks": 1, "network": NETWORK, "protocol": "dsa-quick-v1"}
    wild = {"dm": {"image_lr": 1e38, "steps": 40, "real_batch": 4}, "herding": {"feature_passes": 1}}
    with pytest.raises(CellsFailed, match=r"digits, dm, ipc 1, seed 0: .*finite") as caught:
        compare(["dm", "herding"], "digits", settings=wild, out=tmp_path, **settings)
    assert caught.value.exit_code == 3
    assert [row.method for row in caught.value.comparison.rows] == ["random", "herding"]
    assert caught.value.comparison.missing == ["digits, dm, ipc 1, seed 0"]
    assert (tmp_path / "comparison.json").is_file()


def test_the_failure_of_a_preparation_is_told_and_costs_only_those_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureNetwork, "run", lambda self, task: 1 / 0)
    with pytest.raises(CellsFailed, match="ZeroDivisionError") as caught:
        compare(["herding"], "digits", ipc=1, seeds=1, networks=1, network=NETWORK, out=tmp_path)
    assert [row.method for row in caught.value.comparison.rows] == ["random"]
    (trace,) = (tmp_path / "errors").glob("*.txt")
    assert "Traceback" in trace.read_text()


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    def stop(done) -> None:
        if done.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="2 of 3 units are finished and kept; rerun"):
        compare("random", "digits", ipc=1, seeds=3, networks=1, network=NETWORK, protocol="dsa-quick-v1",
                out=tmp_path, progress=stop)  # fmt: skip
    assert len(list((tmp_path / "results").glob("*.json"))) == 2
    with pytest.raises(Interrupted, match="nothing is kept"):
        compare("random", "digits", ipc=1, seeds=3, networks=1, network=NETWORK, protocol="dsa-quick-v1",
                progress=stop)  # fmt: skip
