"""Kills, in one process and in pools, at any moment: the numbers of an undisturbed comparison."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from datastill.experiments import compare

SPEC = importlib.util.spec_from_file_location("compare_tests", Path(__file__).parents[1] / "unit" / "test_compare.py")
assert SPEC is not None
assert SPEC.loader is not None
common = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(common)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [([1], 5), ([1, 2], 4)])
def test_kills(tmp_path: Path, workers: list[int], kills: int) -> None:
    done = compare(common.METHODS, "digits", out=tmp_path / "serial", **common.SMALL)
    hit = common.kill_and_resume(tmp_path / "killed", kills, workers=workers, seed=kills)
    assert hit >= 3
    common.assert_same(tmp_path / "killed", done)


@pytest.mark.slow
def test_a_pool_on_fashion_mnist_gives_what_one_process_gives(real_data: Path, tmp_path: Path) -> None:
    """The network of the field at its full width, where threads would matter."""
    asked = {"ipc": 1, "seeds": 1, "networks": 1, "protocol": "dsa-quick-v1"}
    asked |= {"settings": {"dm": {"steps": 3, "real_batch": 8}}}
    done = compare(["dm"], "fashion_mnist", out=tmp_path / "serial", **asked)
    compare(["dm"], "fashion_mnist", out=tmp_path / "pool", workers=2, **asked)
    assert common.records(tmp_path / "pool") == common.records(done.folder)
