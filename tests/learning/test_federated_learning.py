"""Federated distillation learns: more than averaging at equal rounds, and less the more noise there is."""

from __future__ import annotations

import pytest

from datastill.apps.federated.averaging import FedAvg
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.runner import federated

pytestmark = pytest.mark.slow

COMMON = {"clients": 4, "network": "convnet:width=16,depth=2,padding=1", "device": "cpu"}


def test_feddm_is_ahead_of_fedavg_at_equal_rounds() -> None:
    options = {**COMMON, "partition": "dirichlet:0.1", "rounds": 3}
    ours = federated(FedDM(ipc=5, steps=60), "digits", **options)
    theirs = federated(FedAvg(), "digits", **options)
    assert ours.accuracy > 0.7
    assert ours.accuracy > theirs.accuracy + 0.1


def test_accuracy_falls_with_noise() -> None:
    """Far too much of it leaves chance."""
    found = []
    for sigma in (0.0, 2.0, 50.0):
        strategy = FedDM(ipc=2, steps=40, mechanism="embedding", sigma=sigma, sample_rate=1.0, updates=4)
        found.append(federated(strategy, "digits", **COMMON, partition="iid", rounds=1).accuracy)
    assert found[0] > found[1] + 0.05
    assert found[1] > found[2] + 0.05
    assert found[2] < 0.25
