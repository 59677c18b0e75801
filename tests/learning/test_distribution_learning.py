"""IDM, CAFE and DataDAM learn: points above Random on digits (`make slow`)."""

from __future__ import annotations

from typing import Any

import pytest

from datastill import distill, evaluate, load_real
from datastill.data import RealSet

pytestmark = pytest.mark.slow

#: Cheap steps of each method. Tiles of 4 x 4 pixels hold too little of a digit, so IDM takes whole images.
CHEAP: dict[str, dict[str, Any]] = {
    "datadam": {"steps": 300, "real_batch": 64},
    "cafe": {"steps": 150, "real_batch": 64, "query": 16, "inner": 10, "init": "real"},
    "idm": {"steps": 300, "real_batch": 64, "net_steps": 2, "net_batch": 64, "pool": 10, "factor": 1},
}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def lift(method: str, real: RealSet, ipc: int, **hyper: Any) -> float:
    """Points above Random: mean over two sets and three networks, dc-v1."""
    made = [distill(method, real, ipc=ipc, seed=s, **{**CHEAP[method], **hyper}) for s in range(2)]
    return 100 * evaluate(made, real, networks=3, protocol="dc-v1").difference


@pytest.mark.parametrize("method", CHEAP)
def test_digits_one_image_per_class(method: str, digits: RealSet) -> None:
    """Measured +19.4 (datadam), +18.5 (cafe), +19.5 (idm); dm has +20.5. Random is at 66.8."""
    assert lift(method, digits, 1) >= 12


@pytest.mark.parametrize(("method", "hyper"), [("datadam", {}), ("cafe", {}), ("idm", {"ce_weight": 0.0})])
def test_digits_ten_images_per_class(method: str, hyper: dict[str, Any], digits: RealSet) -> None:
    """Near the ceiling of this data: measured +1.3, +1.8 and +2.2. With labels IDM does harm here: -6.7."""
    assert lift(method, digits, 10, **hyper) >= 0
