"""Another optimizer in the place of a protocol's: how much of a result is the images', and how much the optimizer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datastill.core.errors import InputError, nearest

if TYPE_CHECKING:
    from datastill.training.hard import Schedule
    from datastill.training.soft import SoftSchedule


@dataclass(frozen=True)
class Usual:
    """An optimizer at its usual settings; all else is the protocol's.

    Attributes:
        called: its name in tables.
        lr: learning rate, on classes and on a teacher's labels.
        decay: weight decay, on both.
    """

    called: str
    lr: tuple[float, float]
    decay: tuple[float, float]


#: SGD on a teacher's labels as DWA has it for Tiny-ImageNet (arXiv:2409.17612); Adam and AdamW as torch has them.
OPTIMIZERS = {
    "sgd": Usual("SGD", (0.01, 0.2), (5e-4, 1e-4)),
    "adam": Usual("Adam", (1e-3, 1e-3), (0.0, 0.0)),
    "adamw": Usual("AdamW", (1e-3, 1e-3), (0.01, 0.01)),
}


def usual(name: str) -> Usual:
    """An optimizer by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"There is no optimizer {name!r}. {nearest(name, OPTIMIZERS)} (--optimizer)")
    return OPTIMIZERS[name]


def hard_by(name: str, schedule: Schedule) -> Schedule:
    """A schedule on a set's own labels by another optimizer; "auto" leaves it."""
    if name == "auto":
        return schedule
    found = usual(name)
    return replace(schedule, optimizer=name, lr=found.lr[0], weight_decay=found.decay[0])  # type: ignore[arg-type]


def values_by(name: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What `hard_by` makes of a protocol's values, by name; momentum is left out where the optimizer takes none."""
    if name == "auto":
        return dict(protocol)
    found = usual(name)
    own = {"optimizer": found.called, "lr": found.lr[0], "weight_decay": found.decay[0], "learned_lr": False}
    return own | {k: v for k, v in protocol.items() if k not in own and (name == "sgd" or k != "momentum")}


def soft_by(name: str, schedule: SoftSchedule) -> SoftSchedule:
    """A schedule on a teacher's labels by another optimizer; "auto" leaves it. SGD takes the loss times tau squared."""
    if name == "auto":
        return schedule
    found, sgd = usual(name), name == "sgd"
    how = "sgd" if sgd else "adamw"  # AdamW without decay is Adam
    return replace(schedule, optimizer=how, lr=found.lr[1], weight_decay=found.decay[1], tau2=schedule.tau2 or sgd)


def unaugmented(schedule: SoftSchedule) -> SoftSchedule:
    """The schedule on images as they are: not cropped, mirrored, mixed or shuffled."""
    from datastill.augment.trace import TraceSpec

    return replace(schedule, trace=TraceSpec(flip=False))
