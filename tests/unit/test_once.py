"""Once each: a job is settled, its plan built, a stored state rendered, a card written; counted in whole commands."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill import distill, load_distilled
from datastill.cli import main
from datastill.core import loop
from datastill.core.registry import methods
from datastill.decoders.multi_formation import MultiFormation
from datastill.decoders.pixels import Pixels
from datastill.distillation import distill as run
from datastill.distillation import job as jobs
from datastill.distillation.job import prepare_job
from datastill.models import NetworkFactory
from datastill.report import folder
from datastill.report.snapshots import moments
from datastill.store.artifact import DistilledSet

pytestmark = pytest.mark.usefixtures("short_protocols")

CASES = {
    "dm": ["--steps", "5"],
    "idc": ["--steps", "5", "--net-images", "50"],
    "mtt": ["--steps", "3", "--expert-count", "1", "--expert-epochs", "3", "--max-start", "2", "--expert-part", "0.1"],
    "rded": ["--squeeze-passes", "1", "--candidates", "5"],
    "random": [],
}
NETWORK = ["--network", "convnet:width=8,depth=2,padding=1"]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thing is done; images that a step decodes are no rendering."""
    seen: Counter[str] = Counter()
    stepping = []

    def counted(holder: Any, name: str, what: str) -> None:
        before: Callable[..., Any] = getattr(holder, name)

        def call(*args: Any, **options: Any) -> Any:
            if not (stepping and what in ("renderings", "networks")):
                seen[what] += 1
            return before(*args, **options)

        monkeypatch.setattr(holder, name, call)

    def step(*args: Any, before: Callable[..., Any] = loop.one_step) -> None:
        stepping.append(1)
        before(*args)
        stepping.clear()

    monkeypatch.setattr(loop, "one_step", step)
    counted(jobs, "_settle", "settlements")
    for cls in {info.cls for info in methods().values()}:
        if "build" in vars(cls):
            counted(cls, "build", "plans")
    for decoder in (Pixels, MultiFormation):
        counted(decoder, "decode", "renderings")
    for module in (run, folder):
        counted(module, "write_card_and_preview", "cards")
    counted(NetworkFactory, "__call__", "networks")
    return seen


@pytest.mark.parametrize("method", CASES)
def test_distill_does_everything_once(method: str, counts: Counter[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [method, "--data", "digits", "--ipc", "1", *NETWORK, *CASES[method], "--quiet"]
    assert main(["distill", *words, "--out", str(out)]) == 0
    steps = int(CASES[method][1]) if "--steps" in CASES[method] else 0
    assert counts["settlements"] == counts["plans"] == counts["cards"] == 1
    assert counts["renderings"] == len(moments(steps)) + 1, "every snapshot and the set"
    counts.clear()
    assert main(["evaluate", str(out), "--networks", "1", "--protocol", "dc-v1", "--quiet"]) == 0
    assert counts["renderings"] == counts["cards"] == 1
    assert counts["settlements"] == counts["plans"] == 0
    assert counts["networks"] == 3, "one of its kind, one on the set and one on Random"


@pytest.mark.parametrize("method", ["dm", "random"])
def test_the_function_does_everything_once(method: str, counts: Counter[str], tmp_path: Path) -> None:
    hyper: dict[str, Any] = {"steps": 2} if method == "dm" else {}
    made = distill(method, "digits", ipc=1, network=NETWORK[1], out=tmp_path / "run", **hyper)
    assert counts == {"settlements": 1, "plans": 1, "renderings": 1, "cards": 1, "networks": 1}
    counts.clear()
    datastill.evaluate(made, "digits", networks=1, protocol="dc-v1")
    assert counts == {"networks": 3}, "rendered already"


def test_an_estimate_settles_the_run_and_the_papers_once(counts: Counter[str]) -> None:
    assert main(["estimate", "dm", "--data", "digits", *NETWORK, "--steps", "2", "--json"]) == 0
    assert counts == {"settlements": 2, "plans": 2, "networks": 1}


def test_only_a_profile_takes_steps_before_the_run(counts: Counter[str], tmp_path: Path, capsys: Any) -> None:
    words = ["distill", "dm", "--data", "digits", *NETWORK, "--steps", "3"]
    assert main([*words, "--profile", "--out", str(tmp_path / "told")]) == 0
    assert counts["settlements"] == counts["plans"] == 2, "the run and the paper's setting"
    assert "Expected: 0 seconds, 3 steps." in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    assert "Expected" not in capsys.readouterr().err
    told, plain = (load_distilled(tmp_path / name) for name in ("told", "plain"))
    assert torch.equal(told.images, plain.images)


def test_a_comparison_settles_every_cell_once(counts: Counter[str], tmp_path: Path) -> None:
    words = ["compare", "--methods", "dm", *NETWORK, "--set", "dm.steps=2", "--seeds", "2", "--networks", "1"]
    assert main([*words, "--protocol", "dc-v1", "--out", str(tmp_path), "--quiet"]) == 0
    cells = 4
    assert counts["settlements"] == counts["plans"] == counts["cards"] == cells
    assert counts["renderings"] == cells + 2, "the page shows those of the first seed, which it reads again"


def test_a_job_builds_one_plan_and_another_process_its_own() -> None:
    job = prepare_job("dm", "digits", ipc=1, network=NETWORK[1])
    assert job.plan() is job.plan()
    again = pickle.loads(pickle.dumps(job))
    assert again.method == job.method
    assert again.plan() is not job.plan()


class TestRendering:
    @pytest.fixture
    def one(self) -> DistilledSet:
        return distill("idc", "digits", ipc=1, network=NETWORK[1], steps=1, net_images=10)

    def test_is_kept(self, one: DistilledSet) -> None:
        assert one.images is one.images
        assert one.rendered(torch.ones(10)).y is not one.targets
        assert one.images is one.images

    @pytest.mark.parametrize(
        "change",
        [
            lambda one: one.codes["images"].fill_(0.5),
            lambda one: one.codes.update(images=torch.full_like(one.codes["images"], 0.5)),
            lambda one: one.images.zero_(),
            lambda one: one.manifest["decoder"].update(factor=1),
            lambda one: setattr(one, "labels", one.labels.flip(0)),
        ],
    )
    def test_is_made_anew_where_something_changed(self, one: DistilledSet, change: Callable[[Any], object]) -> None:
        before = one.rendered()
        change(one)
        after, fresh = one.rendered(), DistilledSet(one.codes, one.labels, one.space, one.manifest).rendered()
        assert after is not before
        assert torch.equal(after.x, fresh.x)
        assert torch.equal(after.y, fresh.y)
