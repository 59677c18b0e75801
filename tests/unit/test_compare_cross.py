"""Over networks: the matrix is what evaluate gives, rates are tuned on training images, agreement is by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datastill import distill, load_real
from datastill.core.errors import InputError
from datastill.data.real import RealSet
from datastill.evaluation import evaluate, metrics
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.experiments import CrossMatrix, cross_architecture
from datastill.experiments.tuning import RATES, tune, validation_of, with_rate
from datastill.store.artifact import DistilledSet

pytestmark = pytest.mark.usefixtures("short_protocols")

NETWORKS = ["convnet:width=8,depth=1", "mlp"]
QUICK = Protocol("quick", "for tests", passes=20, drop_after=15)


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def sets(digits: RealSet) -> list[DistilledSet]:
    return [
        distill("dm", digits, ipc=1, steps=5, real_batch=8, seed=seed, network=NETWORKS[0]) for seed in (3, 4)
    ]  # fmt: skip


def test_the_matrix_is_what_evaluate_gives(digits: RealSet, sets: list[DistilledSet]) -> None:
    told: list[tuple[str, int, int]] = []
    matrix = cross_architecture(
        sets, digits, NETWORKS, protocol=QUICK, repeats=2, progress=lambda *a: told.append(a)
    )  # fmt: skip
    assert list(matrix.methods) == ["random", "dm"]
    assert matrix.means.shape == (2, 2)
    for network in NETWORKS:
        for k, one in enumerate(sets):
            alone = evaluate(one, digits, protocol=QUICK, network=network, networks=2, seed=3 + k)
            assert matrix.accuracies["dm", network][k].tolist() == alone.distilled.accuracies[0].tolist()
            assert alone.random is not None
            assert matrix.accuracies["random", network][k].tolist() == alone.random.accuracies[0].tolist()
    difference, _ = matrix.difference("dm", NETWORKS[1])
    by_hand = matrix.accuracies["dm", NETWORKS[1]] - matrix.accuracies["random", NETWORKS[1]]
    assert difference == pytest.approx(float(by_hand.mean()))
    assert set(matrix.rates.values()) == {0.01}
    assert told[-1][1:] == (4, 4)
    json.dumps(matrix.to_dict(), allow_nan=False)
    assert "| random |" in matrix.table()


def hand_made(columns: list[list[float]]) -> CrossMatrix:
    methods, networks = [f"m{k}" for k in range(len(columns[0]))], [f"n{k}" for k in range(len(columns))]
    accuracies = {(m, n): torch.tensor([[c[i]]]) for n, c in zip(networks, columns) for i, m in enumerate(methods)}
    return CrossMatrix(
        methods, networks, accuracies, {m: [0] for m in methods}, dict.fromkeys(accuracies, 0.01), "p", "fixed", "d", 1
    )


def test_rank_agreement_by_hand() -> None:
    matrix = hand_made([[0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.6, 0.8], [0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.5, 0.5]])
    # of the six pairs, one is swapped: (5 - 1) / 6; the squared rank differences sum to 2: 1 - 6 * 2 / (4 * 15)
    assert matrix.kendall[0, 1] == pytest.approx(4 / 6)
    assert matrix.spearman[0, 1] == pytest.approx(0.8)
    assert matrix.kendall[0, 2] == pytest.approx(-1)
    assert matrix.kendall[1, 1] == pytest.approx(1)
    assert math.isnan(matrix.spearman[0, 3]), "a network on which all are equal ranks nothing"
    assert math.isnan(hand_made([[0.5], [0.6]]).kendall[0, 1])
    assert matrix.to_dict()["kendall"][0][3] is None


def test_rates_are_tuned_on_training_images_alone(
    digits: RealSet, sets: list[DistilledSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = validation_of(digits)
    assert validation.test is not None
    assert len(validation) + len(validation.test) == len(digits)
    rows = {image.numpy().tobytes() for image in digits.pixels(torch.arange(len(digits)))}
    held = validation.test.pixels(torch.arange(len(validation.test)))
    assert all(image.numpy().tobytes() in rows for image in held)
    assert int(validation.test.counts.min()) > 10
    read: list[int] = []
    whole = metrics.TestSplit.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        metrics.TestSplit, "of", classmethod(lambda cls, real: (read.append(len(real.test)), whole(cls, real))[1])
    )
    rate, tried = tune(sets[:1], validation, QUICK, NETWORKS[0], 0.02)
    assert set(tried) == {*RATES, 0.02}
    assert tried[rate] == max(tried.values())
    assert set(read) == {len(validation.test)}, "the test split was read while a rate was chosen"
    read.clear()
    matrix = cross_architecture(
        sets[:1], digits, NETWORKS[:1], protocol=QUICK, repeats=1, learning_rates="tuned", random=False
    )
    assert read.count(len(digits.test)) == 1, "once, for the rate that was chosen"  # type: ignore[arg-type]
    chosen = matrix.rates["dm", NETWORKS[0]]
    assert f"({chosen:g})" in matrix.table()
    again = evaluate(
        sets[0], digits, protocol=with_rate(QUICK, chosen), network=NETWORKS[0], networks=1, seed=3, random=False
    )
    assert matrix.means[0, 0] == pytest.approx(again.mean)


def test_a_rate_has_a_name_of_its_own_and_diverged_ones_are_out(
    digits: RealSet, sets: list[DistilledSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = get_protocol("dc-v1")
    assert with_rate(protocol, 0.01) is protocol
    assert with_rate(protocol, 0.1).name == "dc-v1, lr 0.1"
    assert with_rate(protocol, 0.1).lr == 0.1
    monkeypatch.setattr("datastill.experiments.tuning.RATES", (0.01, 1e30))
    _, tried = tune(sets[:1], validation_of(digits), QUICK, NETWORKS[0], 0.01)
    assert set(tried) == {0.01}


def test_a_rate_that_sets_learned_is_theirs(digits: RealSet, sets: list[DistilledSet]) -> None:
    own = replace(sets[0], manifest={**sets[0].manifest, "student": {"protocol": "dc-v1", "lr": 0.05}})
    matrix = cross_architecture([own], digits, NETWORKS[:1], protocol=QUICK, repeats=1)
    assert matrix.rates["dm", NETWORKS[0]] == 0.05
    assert matrix.rates["random", NETWORKS[0]] == 0.01


def test_bad_input(digits: RealSet, sets: list[DistilledSet], tmp_path: Path) -> None:
    other = distill("random", digits, ipc=2, network=NETWORKS[0])
    for given, change, words in (
        ([], {}, "no distilled set"),
        ([*sets, other], {}, "one size"),
        ([sets[0], sets[0]], {}, "same seed"),
        (sets, {"learning_rates": "best"}, "fixed"),
        (sets, {"networks": []}, "one or more"),
        (sets, {"networks": ["convnett"]}, "convnett"),
        (sets, {"protocol": "dc-v2"}, "dc-v1"),
        (sets, {"repeats": 0}, "at least 1"),
        ([tmp_path / "nowhere"], {}, "no distilled set"),
    ):
        with pytest.raises(InputError, match=words):
            cross_architecture(given, digits, **{"networks": NETWORKS[:1], "protocol": QUICK, **change})
