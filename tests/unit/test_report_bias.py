"""What a run did against a bias: its report tells how to do it again, and its estimate counts it."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.data.real import RealSet
from datastill.experiments import cross_architecture
from datastill.experiments.ledger import read_ledger
from datastill.report import card, write_report
from datastill.report.reproduce import command, evaluate_call, python_call
from datastill.store.artifact import DistilledSet
from datastill.surrogates.debiased import DebiasedSurrogates

pytestmark = pytest.mark.usefixtures("short_protocols")

NET = "convnet:width=4,depth=1"
DATA = "cmnist:base=digits,ratio=0.1,train=200,test=100"
WEIGHTS, POOL = "kde:variance=spread,width=4,draw=true", "dfa:lr=0.002,count=2,steps=3"


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def biased() -> RealSet:
    return datastill.load_real(DATA)


@pytest.fixture(scope="module")
def made(biased: RealSet) -> DistilledSet:
    asked = {"network": NET, "steps": 2, "real_batch": 8, "debias": WEIGHTS, "surrogates": POOL}
    return datastill.distill("dm", biased, ipc=1, seed=3, **asked)


def test_the_python_call_weighs_and_matches_as_the_run_did(made: DistilledSet) -> None:
    text = python_call(made.manifest)
    assert "with_weights" not in text
    found: dict[str, DistilledSet] = {}
    exec(text, found)
    again = found["distilled"]
    assert torch.equal(again.images, made.images)
    assert again.manifest["debias"]["asked"] == WEIGHTS
    assert again.manifest["surrogates"] == made.manifest["surrogates"]


def test_the_command_weighs_and_matches_as_the_run_did(made: DistilledSet) -> None:
    text = command(made.manifest)
    assert text is not None
    words = shlex.split(text)
    assert words[:3] == ["datastill", "distill", "dm"]
    said = dict(itertools.pairwise(words))
    assert (said["--data"], said["--seed"], said["--debias"]) == (DATA, "3", WEIGHTS)
    assert DebiasedSurrogates.parse(said["--surrogates"]) == DebiasedSurrogates.parse(POOL)


def test_weights_of_ones_own_are_still_to_be_given(biased: RealSet) -> None:
    by_hand = datastill.distill("random", biased.with_weights(torch.linspace(0.1, 1, len(biased))), ipc=1, network=NET)
    assert "with_weights" in python_call(by_hand.manifest)
    assert command(by_hand.manifest) is None
    plain = datastill.distill("random", biased, ipc=1, network=NET)
    assert "debias" not in python_call(plain.manifest)
    assert "surrogates" not in python_call(plain.manifest)


def test_card_and_score_say_how_networks_were_trained(made: DistilledSet, biased: RealSet, tmp_path: Path) -> None:
    asked = {"protocol": "dc-v1", "networks": 2}
    scored = datastill.evaluate(made, biased, **asked, training="selecmix:steps=2,lr=0.005")
    assert 'training="selecmix:steps=2,lr=0.005"' in evaluate_call(scored.to_dict())
    assert scored.distilled.name == f"dm + {WEIGHTS} + dfa:steps=3,lr=0.002,count=2"
    assert "trained by selecmix" in scored.conditions
    assert "Random is drawn without weights" in write_report(tmp_path / "scored.html", made, scored).read_text()
    text = card(made, scored)
    for needed in (
        "trained by `selecmix:steps=2,lr=0.005`", 'training="selecmix:steps=2,lr=0.005"',
        f"weighted against a bias (`{WEIGHTS}`)", "trained to resist a bias (`dfa:", f'debias="{WEIGHTS}"',
    ):  # fmt: skip
        assert needed in text
    assert "after the last pass" not in text
    plain = datastill.distill("random", biased, ipc=1, network=NET)
    bare = card(plain, datastill.evaluate(plain, biased, **asked))
    assert "after the last pass" in bare
    assert "training=" not in bare
    assert "against a bias" not in bare


def test_an_estimate_counts_the_training_of_surrogates(biased: RealSet) -> None:
    asked = {"ipc": 1, "network": NET, "steps": 2, "real_batch": 8}
    few, many = (
        datastill.estimate("dm", biased, **asked, surrogates=f"dfa:count=2,steps={steps}") for steps in (600, 1200)
    )
    assert datastill.estimate("dm", biased, **asked).prepare_seconds == 0
    assert many.prepare_seconds > 1.8 * few.prepare_seconds
    assert few.prepare_seconds > 0
    assert few.paper_seconds > few.prepare_seconds
    with pytest.raises(InputError, match="fresh random networks"):
        datastill.estimate("dsa", biased, **asked, surrogates="dfa")


def test_commands_announce_it(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["dm", "--data", DATA, "--ipc", "1", "--network", NET, "--steps", "2", "--real-batch", "8"]
    words += ["--surrogates", "dfa:count=1,steps=3"]
    assert main(["estimate", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prepare_seconds"] > 0
    from datastill.distillation import budget as estimation

    seen = []
    estimate_job = estimation.estimate_job
    monkeypatch.setattr(estimation, "estimate_job", lambda *jobs: seen.extend(jobs) or estimate_job(*jobs))
    assert main(["distill", *words, "--profile", "--out", str(tmp_path / "run")]) == 0
    assert len(seen) == 2
    assert all([o.option for o in job.overrides] == ["surrogates"] for job in seen)


def test_a_comparison_takes_them_for_all_but_random(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compare", "--data", DATA, "--methods", "dm", "--seeds", "1", "--networks", "1", "--network", NET]
    asked += [
        "--protocol",
        "dc-v1",
        "--set",
        "dm.steps=2",
        "dm.real_batch=8",
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    changes = ["--debias", "oracle:draw=true", "--surrogates", "dfa:count=1,steps=3"]
    assert main([*asked, *changes]) == 0
    records = {r["method"]: r for r in map(load, sorted((tmp_path / "out" / "results").glob("*.json")))}
    assert "debias" not in records["random"]
    assert records["dm"]["debias"]["asked"] == "oracle:draw=true"
    assert records["dm"]["surrogates"] == {"how": "dfa", "steps": 3, "count": 1}
    assert records["dm"]["real"]["fingerprint"] == records["random"]["real"]["fingerprint"], "scored on the same set"
    one = datastill.load_distilled(tmp_path / "out" / "cells" / records["dm"]["cell"])
    alone = datastill.distill(
        "dm", DATA, ipc=1, network=NET, steps=2, real_batch=8, debias="oracle:draw=true",
        surrogates="dfa:count=1,steps=3",
    )  # fmt: skip
    assert torch.equal(one.images, alone.images)
    assert "oracle:draw=true, but for random" in (tmp_path / "out" / "report.html").read_text()
    assert (
        "--debias oracle:draw=true --surrogates dfa:count=1,steps=3" in load(tmp_path / "out" / "plan.json")["command"]
    )
    (entry,) = (e for e in read_ledger(tmp_path / "out")[0] if e.row.method == "dm")
    assert entry.row.cells[0]["hyper"]["surrogates"] == "dfa:steps=3,count=1"
    assert main([*asked, *changes]) == 0, "taken up again"
    assert main(asked) == 2, "another comparison"
    with pytest.raises(InputError, match="no option 'debais'"):
        datastill.compare("dm", DATA, ipc=1, debais="kde")


def test_the_report_shows_which_images_weights_took_for_odd(
    made: DistilledSet, biased: RealSet, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    title, shown = "Weights against a bias", "Lightest real images of each class"
    told = write_report(tmp_path / "report.html", made, real=biased).read_text()
    assert title in told
    assert shown in told
    assert f"weighted by <code>{WEIGHTS}</code>" in told
    assert "images count in effect" in told
    assert "Images against the bias have" in told
    assert "Random is drawn without weights" not in told, "nothing was scored"
    plain = datastill.distill("random", biased, ipc=1, network=NET)
    assert title not in write_report(tmp_path / "plain.html", plain, real=biased).read_text()
    monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path / "empty"))
    gone = write_report(tmp_path / "gone.html", made, real=biased).read_text()
    assert title in gone
    assert shown not in gone
    assert not (tmp_path / "empty").exists(), "nothing is trained for a picture"
    other = datastill.load_real(DATA.replace("ratio=0.1", "ratio=0.2"))
    known = datastill.distill("random", biased, ipc=1, network=NET, debias="oracle")
    assert shown not in write_report(tmp_path / "other.html", known, real=other).read_text(), "of other images"
    assert shown in write_report(tmp_path / "known.html", known, real=biased).read_text(), (
        "bias labels need no training"
    )


def test_the_report_says_why_damaged_weights_are_not_shown(
    made: DistilledSet, biased: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path))
    datastill.distill("random", biased, ipc=1, network=NET, seed=3, debias=WEIGHTS)
    (kept,) = (tmp_path / "weights").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:40])
    told = write_report(tmp_path / "report.html", made, real=biased).read_text()
    assert f"The weights by {WEIGHTS} cannot be shown" in told
    assert f"Remove {kept}" in told


def test_a_hold_out_says_that_it_has_the_bias_too(biased: RealSet, tmp_path: Path) -> None:
    """Its accuracy speaks against weights that help elsewhere."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 1, 8, 8, generator=generator), torch.arange(2).repeat_interleave(20)
    held = datastill.load_real((x, y))
    assert held.held_out
    assert not biased.held_out
    asked = {"ipc": 1, "network": NET, "seed": 0}
    weighted, plain = (datastill.distill("random", held, **asked, **more) for more in ({"debias": "loss:steps=5"}, {}))
    scored = [datastill.evaluate(one, held, protocol="dc-v1", networks=1, random=False) for one in (weighted, plain)]
    assert any("so they have its bias" in note for note in scored[0].notes)
    assert not any("its bias" in note for note in scored[1].notes)
    other = datastill.load_real(((x, y), (x, y)))
    assert not other.held_out


def test_weighted_sets_have_a_row_of_their_own_over_networks(biased: RealSet) -> None:
    asked = {"ipc": 1, "network": NET, "steps": 2, "real_batch": 8, "seed": 0}
    sets = [datastill.distill("dm", biased, **asked, **more) for more in ({"debias": "oracle"}, {})]
    matrix = cross_architecture(sets, biased, [NET], protocol="dc-v1", repeats=1, random=False)
    assert matrix.methods == ["dm + oracle", "dm"]
