"""Accuracies over sets and networks, their spread, and the paired difference to Random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datastill.data.biased.groups import GroupAccuracy
    from datastill.evaluation.robustness import Robustness


def t_interval(values: Tensor, level: float = 0.95) -> float:
    """Half-width of the t-interval of the mean of `values` (n,); NaN below two values."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    n = len(values)
    if n < 2:
        return math.nan
    quantile = float(stdtrit(n - 1, 0.5 + level / 2))
    return quantile * float(values.double().std()) / math.sqrt(n)


def spread_over(accuracies: Tensor) -> tuple[Tensor, str]:
    """The values that an interval is taken over: means of three or more sets, else networks."""
    if len(accuracies) >= 3:
        return accuracies.mean(1), "sets"
    return accuracies.flatten(), "networks"


@dataclass(frozen=True)
class Groups:
    """Accuracies on a biased set's test images by their bias attribute, means over networks.

    Attributes:
        aligned: of the images whose bias is the one that most training images of their class have.
        conflicting: of the others.
        matrix: by class and bias value, (C, B); NaN where there are no test images.
    """

    aligned: float
    conflicting: float
    matrix: Tensor

    @classmethod
    def of(cls, found: Sequence[GroupAccuracy]) -> Groups:
        """The means over networks."""
        count = len(found)
        return cls(
            sum(one.aligned for one in found) / count,
            sum(one.conflicting for one in found) / count,
            torch.stack([one.matrix for one in found]).mean(0),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, NaN as None."""
        return {
            "aligned": _number(self.aligned),
            "conflicting": _number(self.conflicting),
            "matrix": [[_number(round(a, 4)) for a in row] for row in self.matrix.tolist()],
        }


@dataclass
class Arm:
    """One side of a comparison: the same protocol on one kind of set.

    Attributes:
        accuracies: test accuracy as a fraction, (sets, networks).
        per_class: mean test accuracy of each class, (C,); NaN for a class without test images.
        losses: mean training loss of each pass, averaged over all networks.
        compiled: whether compiled code did it.
        rates: learning rate of each set.
        tried: where the rate was chosen, the accuracy of every rate on real training images held back.
        groups: on a biased set, accuracies by the bias attribute of test images.
        recalls: on pairs, means of retrieval metrics by name; `accuracies` are then mean recalls.
    """

    name: str
    accuracies: Tensor
    per_class: Tensor
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    compiled: bool = False
    rates: list[float] = field(default_factory=list)
    tried: dict[float, float] = field(default_factory=dict)
    groups: Groups | None = None
    recalls: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Mean over sets and networks."""
        return float(self.accuracies.mean())

    @property
    def std_networks(self) -> float:
        """Mean over sets of the standard deviation over networks; NaN for one network."""
        return float(self.accuracies.std(1).mean()) if self.accuracies.shape[1] > 1 else math.nan

    @property
    def std_sets(self) -> float:
        """Standard deviation of the means of sets; NaN for one set."""
        return float(self.accuracies.mean(1).std()) if len(self.accuracies) > 1 else math.nan

    @property
    def interval(self) -> float:
        """Half-width of the 95 % t-interval of the mean, over sets (three or more) or networks."""
        return t_interval(spread_over(self.accuracies)[0])

    @property
    def interval_over(self) -> str:
        """What the interval is taken over: "sets" or "networks"."""
        return spread_over(self.accuracies)[1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, NaN as None."""
        return {
            "name": self.name,
            "mean": self.mean,
            "std_networks": _number(self.std_networks),
            "std_sets": _number(self.std_sets),
            "interval_95": _number(self.interval),
            "interval_over": self.interval_over,
            "accuracies": [[round(a, 6) for a in row] for row in self.accuracies.tolist()],
            "per_class": [_number(a) for a in self.per_class.tolist()],
            "seconds": round(self.seconds, 3),
            "lr": [float(rate) for rate in self.rates],
            **({"groups": self.groups.to_dict()} if self.groups is not None else {}),
            **({"recalls": {name: round(value, 6) for name, value in self.recalls.items()}} if self.recalls else {}),
            **({"lr_tried": {f"{rate:g}": round(a, 6) for rate, a in self.tried.items()}} if self.tried else {}),
        }


@dataclass
class Evaluation:
    """What `evaluate` returns. Accuracies are fractions."""

    distilled: Arm
    random: Arm | None
    ceiling: Arm | None
    protocol: str
    network: dict[str, Any]
    data: dict[str, Any]
    cost: dict[str, Any]
    seed: int = 0
    names: list[str] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)  #: how each set was made, from its manifest
    notes: list[str] = field(default_factory=list)
    training: dict[str, Any] | None = None  #: how networks were trained to resist a bias, where they were
    labels: str = ""  #: that networks were trained on: "hard", "soft" (one for each image) or "teacher"; "" is unknown
    optimizer: str = ""  #: that trained them, "" where it is unknown
    augmented: bool = True  #: False where the protocol's augmentation was left out
    robustness: Robustness | None = None  #: from `evaluate_robustness`
    chance: dict[str, float] = field(default_factory=dict)  #: on pairs, retrieval metrics of networks that say nothing

    @property
    def measure(self) -> str:
        """What networks are scored by: "test accuracy", or on pairs "mean recall"."""
        return "mean recall" if self.chance else "test accuracy"

    @property
    def conditions(self) -> str:
        """Protocol, kind of labels, optimizer or training against a bias, as far as they are known."""
        labels = f"{self.labels} labels" if self.labels else ""
        plain = "" if self.augmented else "no augmentation"
        against = f"trained by {self.training['how']}" if self.training else ""
        return ", ".join(filter(None, (self.protocol, labels, self.optimizer, against, plain)))

    def plot(self, kind: str = "") -> Figure:
        """Accuracies of all networks as a matplotlib figure, or what `kind` asks for; see `datastill.plot`."""
        import datastill

        return datastill.plot(self, kind)

    def _repr_html_(self) -> str:
        import datastill

        return datastill.as_html(self)

    @property
    def mean(self) -> float:
        """Mean test accuracy of the distilled sets."""
        return self.distilled.mean

    @property
    def std(self) -> float:
        """Standard deviation over all networks of all sets, as papers report it."""
        values = self.distilled.accuracies.flatten()
        return float(values.std()) if len(values) > 1 else math.nan

    @property
    def interval(self) -> float:
        """Half-width of the 95 % interval of the mean."""
        return self.distilled.interval

    @property
    def per_class(self) -> Tensor:
        """Mean test accuracy of each class, (C,)."""
        return self.distilled.per_class

    @property
    def differences(self) -> Tensor:
        """Distilled minus Random for each set and network, which share weights and orders; (sets, networks)."""
        if self.random is None:
            return torch.empty(0, 0)
        return self.distilled.accuracies - self.random.accuracies

    @property
    def difference(self) -> float:
        """Mean paired difference to Random; NaN without it."""
        return float(self.differences.mean()) if self.random is not None else math.nan

    @property
    def difference_interval(self) -> float:
        """Half-width of the 95 % interval of the paired difference."""
        return t_interval(spread_over(self.differences)[0]) if self.random is not None else math.nan

    @property
    def verdict(self) -> str:
        """One sentence: does it beat Random?"""
        if self.random is None:
            return "Nothing stands beside it: Random was left out."
        points, width = 100 * self.difference, 100 * self.difference_interval
        over = spread_over(self.differences)[1]
        if math.isnan(width):
            return f"{points:+.1f} points against Random, from one network: too few to say more."
        few = ": few" if over == "networks" and self.differences.numel() < 5 else ""
        count = len(self.differences) if over == "sets" else self.differences.numel()
        alone = "" if over == "sets" else "; it speaks for these images, not for the method"
        size = f"{points:+.1f} ± {width:.1f} points against Random (95 %, paired, over {count} {over}{few}{alone})"
        if width == 0 and points:
            return f"{points:+.1f} points against Random in all {count} {over}: too coarse a test for an interval."
        if points - width > 0:
            return f"Beats Random: {size}."
        if points + width < 0:
            return f"Worse than Random: {size}."
        return f"No significant difference from random selection: {size}."

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "protocol": self.protocol,
            **({"labels": self.labels} if self.labels else {}),
            **({"optimizer": self.optimizer} if self.optimizer else {}),
            **({} if self.augmented else {"augmented": False}),
            **({"robustness": self.robustness.to_dict()} if self.robustness is not None else {}),
            **({"training": self.training} if self.training is not None else {}),
            "network": self.network,
            "seed": self.seed,
            "data": self.data,
            "sets": self.names,
            "made": self.made,
            "distilled": self.distilled.to_dict(),
            "random": self.random.to_dict() if self.random else None,
            "ceiling": self.ceiling.to_dict() if self.ceiling else None,
            **({"chance": {name: round(value, 6) for name, value in self.chance.items()}} if self.chance else {}),
            "difference": _number(self.difference),
            "difference_interval_95": _number(self.difference_interval),
            "verdict": self.verdict,
            "cost": self.cost,
            "notes": self.notes,
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
