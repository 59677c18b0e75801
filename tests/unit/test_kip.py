"""KIP: labels in closed form, what is refused and told, kernel ridge regression as a protocol."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import distill, evaluate, load_real
from datastill.core.errors import Diverged, InputError
from datastill.core.plan import Callback
from datastill.data import RealSet
from datastill.engines.kernels import DenseKernel, fit_ridge
from datastill.evaluation.metrics import TestSplit
from datastill.store.artifact import DistilledSet

NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def made(digits: RealSet, **options: object) -> DistilledSet:
    return distill("kip", digits, ipc=1, network=NETWORK, **{"steps": 3, "real_batch": 10, **options})


def right(one: DistilledSet, real: RealSet, y: torch.Tensor) -> float:
    """Accuracy of the regression on the test split, by hand."""
    test = TestSplit.of(real)
    predicted = fit_ridge(DenseKernel(), one.images, y, 1e-6)(test.x).argmax(1)
    return float((predicted == test.y).double().mean())


def test_the_protocol_is_the_regression_of_the_labels_that_it_comes_with(digits: RealSet) -> None:
    one = made(digits)
    found = evaluate(one, digits, networks=2, random=False)
    assert found.protocol == "krr-v1"
    assert found.distilled.accuracies.flatten().tolist() == [right(one, digits, one.labels)]
    assert "krr-v1 trains no network: there is one number for each set, whatever is asked for." in found.notes
    fixed = made(digits, target_labels="fixed")
    assert fixed.label_kind == "classes"
    by_hand = right(fixed, digits, torch.eye(10) - 0.1)
    assert evaluate(fixed, digits, networks=1, random=False).distilled.mean == pytest.approx(by_hand)


def test_the_protocol_refuses_labels_that_it_cannot_use(digits: RealSet) -> None:
    one = made(digits)
    soft = dataclasses.replace(
        one, labels=one.labels.softmax(1), manifest={**one.manifest, "label_kind": "probabilities"}
    )
    with pytest.raises(InputError, match=r"are probabilities, and krr-v1 trains on classes or regression; take dc-v1"):
        evaluate(soft, digits, protocol="krr-v1", networks=1)


def test_solved_labels_fit_better_than_classes(digits: RealSet) -> None:
    solved = made(digits, target_labels="solved", solve_images=50)
    assert solved.label_kind == "regression"
    assert right(solved, digits, solved.labels) > right(solved, digits, torch.eye(10) - 0.1)


def test_solved_labels_need_a_kernel_that_stays(digits: RealSet) -> None:
    with pytest.raises(InputError, match="need a kernel that stays"):
        made(digits, target_labels="solved", kernel="features")


def test_features_say_what_batch_norm_does(digits: RealSet) -> None:
    with_norm = distill("kip", digits, ipc=1, network=f"{NETWORK},norm=batch", steps=2, real_batch=5, kernel="features")
    assert any("batch norm was in training mode" in note for note in with_norm.manifest["notes"])
    assert made(digits, kernel="features").manifest["notes"] == []


def test_a_ridge_that_grew_is_noted(digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eigenvalue of - 3e-5 asks for a ridge of 1e-4."""
    whole = DenseKernel.gram

    def indefinite(kernel: DenseKernel, x: torch.Tensor) -> torch.Tensor:
        diagonal = torch.ones(len(x), dtype=torch.float64)
        diagonal[0] = -3e-5
        return 0 * whole(kernel, x) + diagonal.diag()

    monkeypatch.setattr(DenseKernel, "gram", indefinite)
    one = made(digits, ridge=1e-6, steps=1)
    assert one.manifest["notes"] == ["the ridge grew 100-fold where the kernel matrix could not be decomposed"]
    with pytest.raises(Diverged, match="raise the ridge"):
        made(digits, ridge=1e-14, steps=1)


def test_resume_is_bit_identical(digits: RealSet, tmp_path: Path) -> None:
    class Stop(Callback):
        def after_step(self, context: object) -> None:
            if context.step == 4:
                raise KeyboardInterrupt

    whole = made(digits, steps=6)
    options = {"network": NETWORK, "steps": 6, "real_batch": 10, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        distill("kip", digits, ipc=1, checkpoint_seconds=0.0, callbacks=[Stop()], **options)
    again = distill("kip", digits, ipc=1, resume=True, **options)
    assert torch.equal(again.labels, whole.labels)
    assert torch.equal(again.images, whole.images)


@pytest.mark.parametrize("settings", [{"steps": 100, "real_batch": 40}, {"steps": 20, "kernel": "conv-ntk"}])
def test_images_and_labels_that_were_learned_beat_random_by_far(digits: RealSet, settings: dict[str, Any]) -> None:
    """Each by the regression that the set asks for."""
    one = made(digits, **{"real_batch": 20, **settings})
    found = evaluate(one, digits, networks=1)
    assert found.distilled.mean - found.random.mean > 0.15
