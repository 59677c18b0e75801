"""matplotlib, imported without lines of its own."""

from __future__ import annotations

import importlib
import logging
from typing import Any


def plotting(module: str = "matplotlib.figure") -> Any:
    """matplotlib itself, once a module of it is imported.

    Where its folder of settings cannot be written it takes a temporary one, which it removes at the end; what it logs
    of that, and of fonts that it looks for, is kept from the user.

    Args:
        module: of matplotlib.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        importlib.import_module(module)
    finally:
        log.setLevel(level)
    return importlib.import_module("matplotlib")
