"""Learning checks on real data against Random under the same protocol (minutes; `make slow`).

Thresholds are the specification's; measured lifts stand beside them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from datastill import distill, evaluate, load_real
from datastill.data import RealSet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def lift(method: str, real: RealSet, ipc: int, sets: int = 2, networks: int = 3, network=None, **hyper) -> float:
    """Points above Random: mean over sets and networks, dc-v1."""
    made = [distill(method, real, ipc=ipc, seed=s, network=network, **hyper) for s in range(sets)]
    return 100 * evaluate(made, real, networks=networks, protocol="dc-v1").difference


def test_dm_digits_one_image_per_class(digits: RealSet) -> None:
    assert lift("dm", digits, 1, sets=3, steps=300, real_batch=64) >= 12


def test_dm_digits_ten_images_per_class(digits: RealSet) -> None:
    assert lift("dm", digits, 10, steps=300, real_batch=64) >= 1.5


def test_dm_from_noise_learns(digits: RealSet) -> None:
    """From noise, to at least 30 points above that noise."""
    made = distill("dm", digits, ipc=1, steps=300, real_batch=64, init="noise")
    noise = distill("dm", digits, ipc=1, steps=1, real_batch=64, init="noise", image_lr=1e-9)
    after, before = (evaluate(s, digits, networks=3, protocol="dc-v1", random=False).mean for s in (made, noise))
    assert after - before >= 0.3


def test_herding_digits(digits: RealSet) -> None:
    assert lift("herding", digits, 1, sets=3, feature_passes=20) >= 5


@pytest.fixture(scope="module")
def fashion(real_data: Path) -> RealSet:
    return load_real("fashion_mnist", limit=500)


def test_dm_fashion(fashion: RealSet) -> None:
    """FashionMNIST, 5,000 training images, width 32. Ten images per class are measured on digits."""
    assert len(fashion) == 5000
    assert lift("dm", fashion, 1, network="convnet:width=32,depth=3", steps=150, real_batch=64, augment="none") >= 8
