"""The whole state of a block between two steps, and who keeps it; `store.checkpoint` keeps it in files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass
class Snapshot:
    """What a checkpoint holds: groups of named tensors and a few plain numbers."""

    groups: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Collection[str]] = field(default_factory=dict)  #: of groups, see `Parted`

    def group(self, name: str) -> dict[str, Tensor]:
        """A group's tensors; empty when nothing was stored."""
        return self.groups.get(name, {})


@runtime_checkable
class Parted(Protocol):
    """Surrogates of whose state most stays as it is from one step to the next: a pool of networks."""

    @property
    def parts(self) -> Collection[str]:
        """First words of names in `state`, up to a slash. What stands under one never changes and is written once."""
        ...


class Checkpoints(Protocol):
    """Where the loop keeps snapshots of its blocks."""

    def due(self, step: int) -> bool:
        """Whether a snapshot is wanted after this step."""
        ...

    def write(self, block: int, snapshot: Snapshot) -> None: ...

    def read(self, block: int) -> Snapshot | None:
        """A block's last snapshot, or None."""
        ...
