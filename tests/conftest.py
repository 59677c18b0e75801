"""Shared fixtures: real data where it is at hand, and a guard that no test leaves the global generators changed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def data_root() -> Path | None:
    """Where the real benchmark sets are: DATASTILL_DATA, else ../shared/data beside the checkout."""
    given = os.environ.get("DATASTILL_DATA")
    root = Path(given) if given else SHARED
    return root if root.is_dir() else None


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of real data sets; skips where it is absent, fails where it is required."""
    root = data_root()
    if root is None:
        message = "no real data: set DATASTILL_DATA to a folder of Hub-style parquet sets"
        if os.environ.get("DATASTILL_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    os.environ["DATASTILL_DATA"] = str(root)
    return root


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never touch the user's cache; workers share one, so that real data are decoded once."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.setdefault("DATASTILL_CACHE", str(base / "cache"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(base / "hf"))
    torch.set_num_threads(1)


def of_ten_passes() -> Iterator[None]:
    """Evaluations of ten passes, in this process: for tests of what stands around a training, not of its result."""
    from datastill.evaluation import protocols
    from datastill.evaluation.pair_protocols import TrainsTowers

    with pytest.MonkeyPatch.context() as patch:
        for name, protocol in protocols.protocols().items():
            if type(protocol) in (protocols.Protocol, TrainsTowers):
                patch.setitem(protocols._REGISTERED, name, replace(protocol, passes=min(protocol.passes, 10)))
        yield


# A module's own fixtures may evaluate too: of a narrower scope, it would come after them.
short_protocols = pytest.fixture(of_ten_passes, scope="module", name="short_protocols")
short_protocols_of_class = pytest.fixture(of_ten_passes, scope="class", name="short_protocols_of_class")


@pytest.fixture
def same_weights() -> Iterator[None]:
    """Networks that a test builds of plain modules are made from a seed."""
    from datastill.core.rng import isolated

    with isolated(0):
        yield


@pytest.fixture(autouse=True)
def _global_generators_untouched():
    """No public call may change a global generator: checked around every test."""
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "the global torch generator was changed"
    assert (before[1] == np.random.get_state()[1]).all(), "the global numpy generator was changed"  # noqa: NPY002
    assert before[2] == random.getstate(), "the global python generator was changed"
