"""What an attack must find, and what it must not: an over-fitted network, and a set that was learned from noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datastill import distill, load_real
from datastill.apps.privacy.audit import audit
from datastill.data.real import RealSet
from datastill.evaluation import protocols
from datastill.evaluation.protocols import Protocol, register_protocol

pytestmark = pytest.mark.slow

NETWORK = "convnet:width=16,depth=2"


@pytest.fixture(autouse=True)
def _long_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol of these tests alone: it is forgotten after each."""
    monkeypatch.setattr(protocols, "_REGISTERED", dict(protocols._REGISTERED))
    register_protocol(Protocol("over-fitted-v1", "Until the training images are known by heart.", passes=40, batch=32))


def sides(size: int) -> tuple[RealSet, RealSet]:
    """Equally many members and others, each class alike."""
    real = load_real("fashion_mnist")
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(5))
    chosen = [order[real.labels[order] == c][: 2 * size // 10] for c in range(10)]
    return tuple(real.subset(torch.cat([part.chunk(2)[k] for part in chosen])) for k in (0, 1))  # type: ignore[return-value]


def test_an_over_fitted_network_is_found(real_data: Path) -> None:
    """Positive control: the set is all of its 200 members."""
    members, others = sides(200)
    made = distill("random", members, ipc=20, network=NETWORK, device="cpu")
    found = audit(made, members=members, others=others, networks=1, protocol="over-fitted-v1", shadows=8, device="cpu")
    assert found.membership.advantages["calibration"] > 20
    assert max(one.tpr[0.05] for one in found.lira.values()) > 0.10
    assert found.visual[0].copies == 200
    assert "leaks" in found.verdict


def test_a_set_that_was_learned_from_noise_is_not(real_data: Path) -> None:
    """Negative control: the same network and members, and five images of each class by DM from noise."""
    members, others = sides(200)
    made = distill("dm", members, ipc=5, init="noise", steps=150, network=NETWORK, device="cpu", real_batch=20)
    found = audit(made, members=members, others=others, networks=1, protocol="over-fitted-v1", device="cpu")
    assert found.accuracy > 0.45
    assert abs(found.membership.advantages["calibration"]) < 8
    assert found.visual[0].copies == 0
    assert 0.95 < found.visual[0].ratio < 1.05
    assert not found.leaks
