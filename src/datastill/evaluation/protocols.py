"""Evaluation recipes: frozen, named, versioned. A changed recipe gets a new name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datastill.core.errors import InputError, nearest

if TYPE_CHECKING:
    from datastill.engines.training import Schedule


@dataclass(frozen=True)
class Protocol:
    """How a network is trained on a distilled set, and what is read off.

    Accuracy is that of the last pass on the test split; nothing is selected.
    """

    name: str
    summary: str
    passes: int  #: passes over the distilled set
    drop_after: int  #: index of the pass after which lr is multiplied by 0.1 and momentum forgotten
    augment: str = "none"  #: "none", "auto" (DSA as fits the data) or a DSA strategy
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 256

    def schedule(self, data_name: str, shape: tuple[int, int, int]) -> Schedule:
        """The training schedule for a data set."""
        from datastill.augment.strategies import strategy_for
        from datastill.engines.training import Schedule

        augment = strategy_for(data_name, shape) if self.augment == "auto" else self.augment
        return Schedule(
            passes=self.passes,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch=self.batch,
            drop_after=self.drop_after,
            augment=augment,
        )


def _dc(name: str, summary: str, epochs: int, augment: str) -> Protocol:
    """The published loop: epochs + 1 passes, one drop after pass index epochs // 2 + 1."""
    return Protocol(name, summary, passes=epochs + 1, drop_after=epochs // 2 + 1, augment=augment)


_PROTOCOLS = {
    p.name: p
    for p in (
        _dc("dc-v1", "the DC protocol: 301 passes, no augmentation", 300, "none"),
        _dc("dc-v1-dsa", "the DC protocol with DSA: 1001 passes", 1000, "auto"),
        Protocol(
            "dsa-quick-v1",
            "100 passes with DSA, else as dc-v1-dsa",
            passes=100,
            drop_after=51,
            augment="auto",
        ),
        Protocol(
            "ceiling-v1",
            "the whole real set: 30 passes, batch 128",
            passes=30,
            drop_after=15,
            augment="auto",
            batch=128,
        ),
    )
}


def protocols() -> dict[str, Protocol]:
    """All protocols by name."""
    return dict(_PROTOCOLS)


def get_protocol(name: str) -> Protocol:
    """One protocol by name.

    Raises:
        InputError: unknown name; the nearest are named.
    """
    if name not in _PROTOCOLS:
        raise InputError(f"There is no protocol {name!r}. {nearest(name, _PROTOCOLS)}")
    return _PROTOCOLS[name]
