"""Kills of experts in training, in one process and in pools, at any moment: the bytes of an undisturbed run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("test_experts", Path(__file__).parents[1] / "unit" / "test_experts.py")
assert SPEC is not None
assert SPEC.loader is not None
common = importlib.util.module_from_spec(SPEC)
sys.modules.setdefault("test_experts", common)  # its dataclasses look their module up
SPEC.loader.exec_module(common)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 10), (2, 3), (3, 2)])
def test_kills(tmp_path: Path, workers: int, kills: int) -> None:
    common.check_kills(tmp_path, kills=kills, workers=workers, seed=10 + workers)
