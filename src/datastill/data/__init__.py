"""Where real sets come from: `load_real`, the `RealSet` it returns, and how its images are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datastill.data.load import load_real
    from datastill.data.pairs import load_pairs
    from datastill.data.real import RealSet, check_ipc

__all__ = ["RealSet", "check_ipc", "load_pairs", "load_real"]


def __getattr__(name: str) -> Any:
    if name == "load_real":
        from datastill.data.load import load_real

        return load_real
    if name == "load_pairs":
        from datastill.data.pairs import load_pairs

        return load_pairs
    if name in ("RealSet", "check_ipc"):
        from datastill.data import real

        return getattr(real, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
