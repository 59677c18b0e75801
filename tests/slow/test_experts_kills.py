"""Twenty kills of experts in training, in one process and in pools, at any moment: the bytes of an undisturbed run."""

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
@pytest.mark.parametrize(("workers", "seed"), [(1, 11), (1, 12), (2, 13), (3, 14)])
def test_twenty_kills(tmp_path: Path, workers: int, seed: int) -> None:
    common.check_kills(tmp_path, kills=5, workers=workers, seed=seed)
