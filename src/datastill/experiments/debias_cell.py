"""A cell of a de-biasing study: one set, and one way to train on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One set, and one way to train on it."""

    method: str
    debias: str
    init: str
    surrogates: str
    training: str
    ipc: int
    seed: int
    hyper: str  #: values of the method, as JSON
    recipe: str
    network: str | None
    protocol: str
    networks: int

    @property
    def values(self) -> dict[str, Any]:
        """Values of the method that were given."""
        found: dict[str, Any] = json.loads(self.hyper)
        return found

    @property
    def own_surrogates(self) -> str:
        """What `distill` is to take; the experts of methods that follow some are among their values."""
        return "method" if "expert_policy" in self.values else self.surrogates

    @property
    def record(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {**asdict(self), "hyper": self.values}

    @property
    def making(self) -> dict[str, Any]:
        """What the set depends on."""
        return {n: v for n, v in self.record.items() if n not in ("training", "protocol", "networks")}

    @property
    def set_name(self) -> str:
        """Readable, and the same for every way to train on the set."""
        parts = (self.method, self.debias, self.init, *(p for p in (self.surrogates,) if p != "method"))
        return "-".join([*(_plain(p) for p in parts), f"ipc{self.ipc}", f"seed{self.seed}"])

    @property
    def name(self) -> str:
        """Readable."""
        return self.set_name + ("" if self.training == "plain" else f"-{_plain(self.training)}")


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "" if c == "=" else "-" for c in text)
