"""Datastill: dataset distillation under one contract."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from datastill._version import __version__

_LAZY = {
    "InputError": "datastill.core.errors",
    "load_real": "datastill.data",
    "distill": "datastill.run",
    "compare": "datastill.comparison",
    "estimate": "datastill.estimation",
    "evaluate": "datastill.evaluation",
    "import_released": "datastill.importers",
    "load_distilled": "datastill.core.artifact",
    "methods": "datastill.core.registry",
    "protocols": "datastill.evaluation.protocols",
}

if TYPE_CHECKING:
    from datastill.comparison import compare
    from datastill.core.artifact import load_distilled
    from datastill.core.errors import InputError
    from datastill.core.registry import methods
    from datastill.data import load_real
    from datastill.estimation import estimate
    from datastill.evaluation.evaluate import evaluate
    from datastill.evaluation.protocols import protocols
    from datastill.importers import import_released
    from datastill.run import distill

__all__ = [
    "InputError",
    "__version__",
    "compare",
    "distill",
    "estimate",
    "evaluate",
    "import_released",
    "load_distilled",
    "load_real",
    "methods",
    "protocols",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line must answer `--help` without importing torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'datastill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
