"""Weights by density against a bias, end to end on colored digits (spec 6.7 and 6.8, smaller): a minute on a CPU.

Those of the bias labels are measured in test_debias_gap.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import datastill
from datastill.data.real import RealSet

NETWORK = "convnet:width=16,depth=2"


@pytest.fixture(scope="module")
def colored(real_data: Path) -> RealSet:
    return datastill.load_real("cmnist:ratio=0.05,train=6000,test=2000")


def accuracy(real: RealSet, debias: str) -> tuple[float, float, float]:
    """Of all, aligned and conflicting test images."""
    made = datastill.distill(
        "dm", real, ipc=10, network=NETWORK, steps=300, real_batch=64, image_lr=10.0, augment="none", debias=debias
    )
    arm = datastill.evaluate(made, real, networks=1, protocol="dc-v1", random=False).distilled
    assert arm.groups is not None
    return arm.mean, arm.groups.aligned, arm.groups.conflicting


@pytest.mark.slow
def test_weights_undo_the_bias_that_distillation_keeps(colored: RealSet) -> None:
    plain, aligned, conflicting = accuracy(colored, "none")
    kde, _, _ = accuracy(colored, "kde:draw=true")
    assert aligned > 0.93
    assert conflicting < 0.45
    assert kde - plain >= 0.2
