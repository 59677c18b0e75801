"""Datastill: dataset distillation under one contract."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from datastill._version import __version__

_LAZY = {
    "InputError": "datastill.core.errors",
    "Progress": "datastill.report.progress",
    "as_dataloader": "datastill.exchange.loaders",
    "as_html": "datastill.report.notebook",
    "load_pairs": "datastill.data",
    "load_real": "datastill.data",
    "diagnose": "datastill.report",
    "distill": "datastill.distillation.distill",
    "compare": "datastill.experiments",
    "estimate": "datastill.distillation.budget",
    "evaluate": "datastill.evaluation",
    "Exported": "datastill.exchange.export",
    "export": "datastill.exchange.export",
    "Pushed": "datastill.exchange.hub",
    "pull_from_hub": "datastill.exchange.hub",
    "push_to_hub": "datastill.exchange.hub",
    "import_released": "datastill.exchange",
    "load_distilled": "datastill.store.artifact",
    "methods": "datastill.core.registry",
    "plot": "datastill.report.notebook",
    "protocols": "datastill.evaluation.protocols",
}

if TYPE_CHECKING:
    from datastill.core.errors import InputError
    from datastill.core.registry import methods
    from datastill.data import load_pairs, load_real
    from datastill.distillation.budget import estimate
    from datastill.distillation.distill import distill
    from datastill.evaluation.evaluate import evaluate
    from datastill.evaluation.protocols import protocols
    from datastill.exchange import import_released
    from datastill.exchange.export import Exported, export
    from datastill.exchange.hub import Pushed, pull_from_hub, push_to_hub
    from datastill.exchange.loaders import as_dataloader
    from datastill.experiments import compare
    from datastill.report.diagnostics import diagnose
    from datastill.report.notebook import as_html, plot
    from datastill.report.progress import Progress
    from datastill.store.artifact import load_distilled

__all__ = [
    "Exported",
    "InputError",
    "Progress",
    "Pushed",
    "__version__",
    "as_dataloader",
    "as_html",
    "compare",
    "diagnose",
    "distill",
    "estimate",
    "evaluate",
    "export",
    "import_released",
    "load_distilled",
    "load_pairs",
    "load_real",
    "methods",
    "plot",
    "protocols",
    "pull_from_hub",
    "push_to_hub",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line must answer `--help` without importing torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'datastill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
