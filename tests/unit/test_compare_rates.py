"""compare under a protocol of learned rates: the others get one that was chosen once, on training images alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import distill, load_real
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.evaluation import evaluate, metrics
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.rates import validation_of, with_rate
from datastill.experiments import CellsFailed, Comparison, compare, load_comparison
from datastill.experiments import rates as rates_module
from datastill.experiments.ledger import read_ledger
from datastill.experiments.tuning import RATES
from datastill.models import resolve_network
from datastill.sampling.inits import random_indices
from datastill.store.files import CHECKSUM
from datastill.surrogates.experts import train_experts

NETWORK = "convnet:width=8,depth=1"
LEARNED = Protocol("learned", "for tests", passes=6, drop_after=3, learned_lr=True)
METHODS = ["dm", "mtt"]


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def asked(digits: RealSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two seeds, two sizes, and experts to take."""
    factory = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))
    folder = tmp_path_factory.mktemp("experts") / "buffer"
    train_experts(digits, factory, folder, experts=2, epochs=3, policy="sgd:lr=0.05,batch=64")
    mtt = {"experts": str(folder), "steps": 3, "student_steps": 2, "max_start": 2, "student_lr": 0.05}
    return {
        "ipc": [1, 2],
        "seeds": 2,
        "networks": 2,
        "network": NETWORK,
        "protocol": LEARNED,
        "settings": {"dm": {"steps": 3, "real_batch": 4}, "mtt": mtt},
    }


@pytest.fixture(scope="module")
def done(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(METHODS, "digits", out=tmp_path_factory.mktemp("compare"), **asked)


def chosen(folder: Path | None) -> dict[int, dict[str, Any]]:
    """The rates that lie in a comparison's folder, by size; without the seconds that they took."""
    assert folder is not None
    found = [json.loads(path.read_text()) for path in (folder / "rates").glob("*.json")]
    for one in found:
        assert one.pop("seconds") >= 0
        assert one.pop(CHECKSUM)
    return {one["ipc"]: one for one in found}


def test_the_rate_is_the_best_of_random_on_images_held_back(done: Comparison, digits: RealSet) -> None:
    """The same by hand: Random of every seed, trained at every rate, scored on training images that it lacks."""
    assert sorted(chosen(done.folder)) == [1, 2], "once for each size"
    for ipc, record in chosen(done.folder).items():
        without = torch.cat([random_indices(digits, ipc, seed) for seed in (0, 1)])
        validation = validation_of(digits, without=without)
        assert record["images"] == len(validation.test)  # type: ignore[arg-type]
        by_hand = {}
        for rate in RATES:
            scores = [
                evaluate(
                    distill("random", digits, ipc=ipc, seed=seed),
                    validation,
                    protocol=with_rate(LEARNED, rate),
                    network=NETWORK,
                    networks=2,
                    seed=Rng(seed).derive("tuning"),
                    random=False,
                ).mean
                for seed in (0, 1)
            ]
            by_hand[f"{rate:g}"] = sum(scores) / 2
        assert record["lr_tried"] == pytest.approx(by_hand, abs=1e-6)
        assert by_hand[f"{record['lr']:g}"] == max(by_hand.values())


def test_who_is_trained_on_at_which_rate(done: Comparison, digits: RealSet) -> None:
    record = chosen(done.folder)[2]
    for method in ("random", "dm"):
        cell = done.row(method, ipc=2).cells[1]
        assert cell["lr"] == record["lr"]
        assert cell["lr_tried"] == record["lr_tried"]
        assert cell["protocol"] == "learned"
    learned = done.row("mtt", ipc=2).cells[1]
    assert "lr_tried" not in learned
    assert learned["lr"] not in RATES
    random = distill("random", digits, ipc=2, seed=1)
    at = with_rate(LEARNED, record["lr"])
    alone = evaluate(random, digits, protocol=at, network=NETWORK, networks=2, seed=1, random=False)
    assert done.row("random", ipc=2).cells[1]["accuracies"] == pytest.approx(alone.distilled.accuracies[0].tolist())


def test_the_table_and_the_ledger_tell(done: Comparison) -> None:
    one, two = (chosen(done.folder)[ipc]["lr"] for ipc in (1, 2))
    assert f"{one:g} (digits, ipc 1)" in done.table()
    assert f"{two:g} (digits, ipc 2)" in done.table()
    assert done.folder is not None
    entries, others, _ = read_ledger(done.folder)
    assert [e.row.method for e in entries] == ["random", "dm", "mtt"] * 2
    assert all(e.row.paired is not None for e in entries if e.row.method != "random"), "the rates differ, Random is one"
    assert not others, "the rates belong to it"


def test_no_test_image_is_read_before_the_rate_is_chosen(
    asked: dict[str, Any], digits: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = metrics.TestSplit.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        metrics.TestSplit, "of", classmethod(lambda cls, real: (read.append(len(real.test)), whole(cls, real))[1])
    )
    compare("random", digits, out=tmp_path, **{**asked, "ipc": 1, "seeds": 1, "settings": None})
    held = chosen(tmp_path)[1]["images"]
    assert read == [held] * len(RATES) + [len(digits.test)]  # type: ignore[arg-type]


def test_it_is_taken_up_again(
    done: Comparison, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison whose rates are there chooses none; one in a pool chooses the same."""
    assert done.folder is not None
    before = chosen(done.folder)
    lost = sorted((done.folder / "results").glob("*random*"))[0]
    kept = json.loads(lost.read_text())
    lost.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(rates_module, "tune", None)
        compare(METHODS, "digits", out=done.folder, **asked)
    again = json.loads(lost.read_text())
    for record in (again, kept):
        del record["cost"], record[CHECKSUM]
    assert again == kept
    compare(METHODS, "digits", out=tmp_path, workers=2, **asked)
    assert chosen(tmp_path) == before
    assert [r.mean for r in load_comparison(tmp_path).rows] == [r.mean for r in load_comparison(done.folder).rows]


def test_a_damaged_rate_is_named_and_costs_those_that_need_it(asked: dict[str, Any], tmp_path: Path) -> None:
    small = {**asked, "ipc": 1, "seeds": 1}
    compare(METHODS, "digits", out=tmp_path, **small)
    (path,) = (tmp_path / "rates").glob("*.json")
    path.write_text("{}")
    for cell in (tmp_path / "results").glob("*.json"):
        cell.unlink()
    with pytest.raises(CellsFailed, match="remove it to choose one again") as caught:
        compare(METHODS, "digits", out=tmp_path, **small)
    assert [row.method for row in caught.value.comparison.rows] == ["mtt"]
    path.unlink()
    assert len(compare(METHODS, "digits", out=tmp_path, **small).rows) == 3


def test_other_protocols_are_as_they_were(asked: dict[str, Any], tmp_path: Path) -> None:
    plain = {**asked, "ipc": 1, "seeds": 1, "protocol": replace(LEARNED, learned_lr=False)}
    result = compare(["dm"], "digits", out=tmp_path, **{**plain, "settings": {"dm": {"steps": 3, "real_batch": 4}}})
    assert not (tmp_path / "rates").exists()
    assert result.row("random").cells[0]["lr"] == 0.01
    assert "learning rate" not in result.table()


def test_a_comparison_from_before_is_not_mixed_with(asked: dict[str, Any], tmp_path: Path) -> None:
    small = {**asked, "ipc": 1, "seeds": 1, "settings": None}
    compare("random", "digits", out=tmp_path, **small)
    stored = json.loads((tmp_path / "plan.json").read_text())
    del stored["config"]["rates"]
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="it names no rates"):
        compare("random", "digits", out=tmp_path, **small)
