"""Kinds of labels: what networks are trained on under each, and how tables and files tell it."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill.cli import main
from datastill.cli.tables import evaluation_table, regimes_table
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.evaluation import Evaluation, evaluate_regimes
from datastill.evaluation.kinds import other_labels, other_ways
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.soft import bank_of, relabel, schedule_of
from datastill.experiments.ledger import _protocol_of
from datastill.labels.labeler import Labeler
from datastill.report.reproduce import evaluate_call
from datastill.sampling.inits import random_indices
from datastill.training.soft import SOFT_RECIPES, train_soft
from datastill.training.trainers import Labeled, TeacherLabels, fixed_labels
from decoupled_data import NETWORK, digits, task_of, teacher

PROTOCOL = Protocol("few-passes", "a few", passes=3, soft="small", lr=2e-3, batch=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> datastill.DistilledSet:
    folder = tmp_path_factory.mktemp("regimes") / "run"
    datastill.distill("rded", digits(), ipc=1, teacher=teacher(), network=NETWORK, candidates=10, out=folder)
    return datastill.load_distilled(folder)


@pytest.fixture(scope="module")
def found(made: datastill.DistilledSet) -> dict[str, Evaluation]:
    return evaluate_regimes(made, digits(), protocol=PROTOCOL, networks=1)


def test_each_kind_is_scored_with_random_under_the_same(found: dict[str, Evaluation], made: Any) -> None:
    assert list(found) == ["hard", "soft", "teacher"]
    for name, one in found.items():
        assert (one.labels, one.optimizer, one.protocol) == (name, "AdamW", "few-passes")
        assert one.random is not None
        alone = datastill.evaluate(made, digits(), protocol=PROTOCOL, networks=1, labels=name)
        assert torch.equal(alone.distilled.accuracies, one.distilled.accuracies)
        assert alone.random is not None
        assert torch.equal(alone.random.accuracies, one.random.accuracies)
    losses = {tuple(one.distilled.losses) for one in found.values()}
    assert len(losses) == 3, "three ways to train"


def test_soft_labels_are_the_teachers_of_the_stored_image_for_both_arms(made: Any) -> None:
    """By hand: probabilities of the images as they are, mixed as classes would be, without a teacher in training."""
    labeler, schedule = Labeler([teacher().network]), PROTOCOL.soft_schedule("digits", (1, 8, 8))
    random = digits().batch(random_indices(digits(), 1, 0))
    for x, y in ((made.images, made.labels), (random.x, random.y)):
        labels = teacher().network(x).softmax(1)
        assert torch.allclose(fixed_labels(Labeled(x, y), labeler, torch.device("cpu")), labels, atol=1e-6)
        rng, factory = Rng(3), task_of(digits()).network
        by_hand = factory(rng.derive("network"))
        train_soft(by_hand, x, labels, schedule, rng)
        trainer = TeacherLabels(schedule, labeler, fixed=True)
        trained = trainer.train(factory, Labeled(x, y), [rng], Runtime.of("cpu"), lambda done, numbers: None)
        one, other = (network.state_dict() for network in (by_hand, trained.networks[0]))
        assert all(torch.allclose(one[n].float(), other[n].float(), atol=1e-6) for n in one)
    own = torch.full((2, 10), 0.1)
    assert fixed_labels(Labeled(made.images[:2], own), labeler, torch.device("cpu")) is own


def test_tables_reports_and_files_name_labels_and_optimizer(found: dict[str, Evaluation]) -> None:
    assert str(evaluation_table(found["soft"]).title).endswith("protocol few-passes, soft labels, AdamW")
    table = regimes_table(found)
    assert table.row_count == 3
    assert str(table.title).endswith("protocol few-passes, AdamW")
    stored = found["hard"].to_dict()
    assert (stored["labels"], stored["optimizer"]) == ("hard", "AdamW")
    plain = datastill.evaluate(
        datastill.distill("random", digits(), ipc=1, network=NETWORK), digits(), networks=1, protocol=Protocol(
            "plain", "plain", passes=1
        ),
    )  # fmt: skip
    assert (plain.labels, plain.optimizer) == ("hard", "SGD")


def test_a_kind_that_is_not_the_protocols_own_is_kept_apart_and_said_again(found: dict[str, Evaluation]) -> None:
    assert [other_labels("rded-v1", one) for one in ("hard", "soft", "teacher", "")] == ["hard", "soft", "", ""]
    assert other_labels("dc-v1", "soft") == ""
    stored = {**found["hard"].to_dict(), "protocol": "rded-v1"}
    assert _protocol_of(stored) == "rded-v1, hard labels"
    assert _protocol_of({**stored, "labels": "teacher"}) == "rded-v1"
    assert "labels='hard'" in evaluate_call(stored).replace('"', "'")
    assert "labels" not in evaluate_call({**stored, "labels": "teacher"})


def test_adam_is_adamw_without_decay() -> None:
    assert [SOFT_RECIPES[name].optimizer_name for name in ("rd3", "rded", "tiny_sgd")] == ["Adam", "AdamW", "SGD"]
    assert datastill.protocols()["rd3-v1"].optimizer == "Adam"
    rd3 = SOFT_RECIPES["rd3"]
    assert (rd3.epochs, rd3.batch, rd3.lr, rd3.curve, rd3.trace.mix) == (400, 50, 1e-3, "half-cosine", "cutmix")
    assert rd3.factor(rd3.epochs) == pytest.approx(0.5)  # ED-3


def test_bad_kinds_are_told_in_a_sentence(made: Any) -> None:
    with pytest.raises(InputError, match="no labels 'mild'"):
        evaluate_regimes(made, digits(), regimes=["mild"])
    with pytest.raises(InputError, match="each once"):
        evaluate_regimes(made, digits(), regimes=["hard", "hard"])
    with pytest.raises(InputError, match="regimes="):
        evaluate_regimes(made, digits(), labels="hard")
    with pytest.raises(InputError, match="name a protocol on a teacher's labels"):
        evaluate_regimes(made, digits(), protocol="dc-v1")
    plain = datastill.distill("random", digits(), ipc=1, network=NETWORK)
    with pytest.raises(InputError, match="comes without a teacher"):
        evaluate_regimes(plain, digits(), regimes=["soft"], protocol=PROTOCOL)


def test_the_command_writes_one_table_and_one_file(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = made.folder
    few = ["--networks", "1", "--regimes", "hard", "soft", "--quiet"]
    assert main(["evaluate", str(folder), "--labels", "soft", *few]) == 2
    assert "--regimes" in capsys.readouterr().err
    assert main(["evaluate", str(folder), *few]) == 0
    printed = capsys.readouterr().out
    assert "labels" in printed
    stored = json.loads((folder / "regimes.json").read_text(encoding="utf-8"))
    assert list(stored["regimes"]) == ["hard", "soft"]
    assert stored["regimes"]["soft"]["labels"] == "soft"
    assert not (folder / "evaluation.json").exists()


def test_a_bank_without_its_teacher_scores_the_set_alone(tmp_path: Path) -> None:
    datastill.distill("rded", digits(), ipc=1, teacher=teacher(), network=NETWORK, candidates=10, out=tmp_path / "run")
    loaded = datastill.load_distilled(tmp_path / "run")
    relabel(loaded, digits(), PROTOCOL)
    asked: dict[str, Any] = {"protocol": PROTOCOL, "networks": 1}
    both = datastill.evaluate(loaded, digits(), **asked)
    assert not any("left aside" in note for note in both.notes)
    fewer = dataclasses.replace(PROTOCOL, name="fewer", batch=4)
    other = datastill.evaluate(loaded, digits(), protocol=fewer, networks=1)
    told = "The stored labels beside the set are left aside: they were made for another protocol."
    assert told in other.notes
    shutil.rmtree(tmp_path / "run" / "teacher")
    bare = datastill.load_distilled(tmp_path / "run")
    with pytest.raises(InputError, match="--no-random"):
        datastill.evaluate(bare, digits(), **asked)
    alone = datastill.evaluate(bare, digits(), random=False, **asked)
    assert torch.equal(alone.distilled.accuracies, both.distilled.accuracies)
    assert alone.labels == "teacher"
    shutil.rmtree(tmp_path / "run" / "labels")
    with pytest.raises(InputError, match="comes without a teacher"):
        datastill.evaluate(datastill.load_distilled(tmp_path / "run"), digits(), random=False, **asked)


def test_a_bank_of_another_teacher_is_refused_where_random_would_have_the_sets_own(tmp_path: Path) -> None:
    datastill.distill("rded", digits(), ipc=1, teacher=teacher(), network=NETWORK, candidates=10, out=tmp_path / "run")
    loaded = datastill.load_distilled(tmp_path / "run")
    other = copy.deepcopy(teacher())
    with torch.no_grad():
        next(other.network.parameters()).add_(0.01)
    relabel(loaded, digits(), PROTOCOL, teacher=other)
    with pytest.raises(InputError, match="not of the teacher that comes with it"):
        datastill.evaluate(loaded, digits(), protocol=PROTOCOL, networks=1)
    assert datastill.evaluate(loaded, digits(), protocol=PROTOCOL, networks=1, teacher=other).random is not None


def test_a_bank_is_labeled_in_the_mode_of_its_protocol_and_taken_up(tmp_path: Path) -> None:
    datastill.distill("rded", digits(), ipc=2, teacher=teacher(), network=NETWORK, candidates=10, out=tmp_path / "run")
    loaded = datastill.load_distilled(tmp_path / "run")
    bank = relabel(loaded, digits(), "sre2l-plus-v1", passes=2)
    assert bank.mode == "batch"
    assert bank_of(loaded, schedule_of(loaded, get_protocol("sre2l-plus-v1"), digits())) is not None


@pytest.mark.parametrize(("name", "told"), [("frepo-quick-v1", "Adam"), ("krr-v1", ""), ("dc-v1", "SGD")])
def test_the_optimizer_that_is_told_is_the_one_that_trains(name: str, told: str) -> None:
    assert get_protocol(name).optimizer == told
    assert "optimizer" not in other_ways({"protocol": name, "optimizer": "SGD"})  # as earlier files have it
