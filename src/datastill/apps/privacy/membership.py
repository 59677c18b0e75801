"""Membership inference by a loss threshold: a sample is said to be a member where its loss is below.

Advantage = 2 * ((members below + others not below) / all - 1/2), in percent: 0 for a coin, 100 where every answer is
right, -100 where every one is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng

#: False-positive rates at which the true-positive rate is told.
RATES = (0.001, 0.01, 0.05)


@dataclass(frozen=True)
class Membership:
    """What an attack by scores found; larger scores say "member".

    Attributes:
        members, others: scores of each sample (n,), (m,).
        advantages: in percent, by how the threshold was found: "calibration" was chosen on one half of the samples and
            is told of the other, "oracle" was chosen on those that it is told of, which is an upper bound; "train_mean"
            is the mean score of known training samples, where these were given.
        auc: area under the ROC curve.
        tpr: true-positive rate by the false-positive rate that is allowed.
    """

    members: Tensor
    others: Tensor
    advantages: Mapping[str, float]
    auc: float
    tpr: Mapping[float, float]

    @property
    def auc_error(self) -> float:
        """Standard deviation of the area under scores that tell nothing."""
        n, m = len(self.members), len(self.others)
        return math.sqrt((n + m + 1) / (12 * n * m))

    @property
    def found(self) -> bool:
        """Whether the area is three standard deviations from that of a coin, on either side."""
        return abs(self.auc - 0.5) > 3 * self.auc_error

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the scores of samples."""
        return {
            "members": len(self.members),
            "others": len(self.others),
            "advantage_percent": dict(self.advantages),
            "auc": self.auc,
            "auc_error": self.auc_error,
            "tpr_at_fpr": {f"{rate:g}": value for rate, value in self.tpr.items()},
            "found": self.found,
        }


def advantage(members: Tensor, others: Tensor, threshold: float, *, strict: bool = True) -> float:
    """Advantage in percent of saying "member" where the loss is below a threshold; ties say "other".

    Args:
        members, others: losses, (n,) each.
        threshold: fixed beforehand.
        strict: refuse unequal numbers, for which the formula is not made; otherwise both sides count a half.

    Raises:
        InputError: no samples, or unequal numbers where that is refused.
    """
    _refuse_none(members, others)
    if strict and len(members) != len(others):
        raise InputError(
            f"There are {len(members)} members and {len(others)} others, and the advantage is defined for equal "
            "numbers; give as many of each, or take strict=False, which weighs both sides alike."
        )
    right = (members < threshold).double().mean() + (others >= threshold).double().mean()
    return 100 * (float(right) - 1)


def best_threshold(members: Tensor, others: Tensor) -> float:
    """A threshold with the largest advantage on these samples; where several have it, the lowest."""
    values = torch.cat([members, others]).double().unique()
    candidates = torch.cat([values[:1], (values[1:] + values[:-1]) / 2, values.new_tensor([math.inf])])
    below = torch.searchsorted(members.double().sort().values, candidates) / len(members)
    wrong = torch.searchsorted(others.double().sort().values, candidates) / len(others)
    return float(candidates[int((below - wrong).argmax())])


def calibrated_advantage(members: Tensor, others: Tensor, seed: int = 0, *, strict: bool = True) -> float:
    """Advantage of a threshold that is best on one half of the samples, on the other; the mean of both ways."""
    _refuse_none(members, others)
    if min(len(members), len(others)) < 2:
        raise InputError("A threshold is chosen on one half of the samples; give at least two of each kind.")
    rng, found = Rng(seed), []
    split = [side[torch.randperm(len(side), generator=rng.generator("calibration", name))].tensor_split(2)
             for name, side in (("members", members), ("others", others))]  # fmt: skip
    for k in (0, 1):
        threshold = best_threshold(split[0][k], split[1][k])
        found.append(advantage(split[0][1 - k], split[1][1 - k], threshold, strict=strict))
    return sum(found) / 2


def membership(
    members: Tensor, others: Tensor, *, seed: int = 0, train_mean: float | None = None, strict: bool = True
) -> Membership:
    """What losses tell of membership.

    Args:
        members, others: losses (n,), (m,), lower for what was learned.
        seed: of the halves of the calibration.
        train_mean: mean loss of known training samples, a threshold that was fixed beforehand.
        strict: as of `advantage`.

    Raises:
        InputError: see `advantage`.
    """
    found = {
        "calibration": calibrated_advantage(members, others, seed, strict=strict),
        "oracle": advantage(members, others, best_threshold(members, others), strict=strict),
    }
    if train_mean is not None:
        found["train_mean"] = advantage(members, others, train_mean, strict=strict)
    return attack(-members.double(), -others.double(), found)


def attack(members: Tensor, others: Tensor, advantages: Mapping[str, float] | None = None) -> Membership:
    """ROC of scores (n,), (m,) that are larger for members.

    Raises:
        InputError: no samples, or scores that are no numbers.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score, roc_curve

    _refuse_none(members, others)
    scores = torch.cat([members, others]).double()
    if not bool(torch.isfinite(scores).all()):
        raise InputError("Scores of samples are not finite, so there is no order of them; look at the network's loss.")
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    false, true, _ = roc_curve(truth, scores.numpy(), drop_intermediate=False)
    tpr = {rate: float(true[false <= rate].max(initial=0.0)) for rate in RATES}
    return Membership(members, others, dict(advantages or {}), float(roc_auc_score(truth, scores.numpy())), tpr)


def _refuse_none(members: Tensor, others: Tensor) -> None:
    if not len(members) or not len(others):
        raise InputError("Membership is told from members and others; one side has no samples.")
