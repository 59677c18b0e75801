"""Distilled sets that others released as `.pt` files: read without running anything in them, and made ours."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datastill.exchange.formats import Released, read_released
    from datastill.exchange.released import import_released

__all__ = ["Released", "import_released", "read_released"]

_WHERE = {"Released": "formats", "read_released": "formats", "import_released": "released"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"datastill.exchange.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
