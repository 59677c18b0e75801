"""What releases cost in differential privacy: the accountant of opacus, or the stated bound without it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datastill.core.errors import InputError, MissingExtra

#: Orders of Renyi divergence that the stated bound looks at.
ORDERS = [1 + k / 20 for k in range(1, 400)] + [float(a) for a in range(22, 2049)]


@dataclass(frozen=True)
class Releases:
    """Gaussian mechanisms of one kind.

    Attributes:
        sigma: noise multiplier.
        rate: probability with which an image takes part in one.
        steps: how many.
    """

    sigma: float
    rate: float
    steps: int


@dataclass(frozen=True)
class Spent:
    """An (epsilon, delta) guarantee for one image of one client.

    Attributes:
        by: who reckoned it.
        releases: what was reckoned.
    """

    epsilon: float
    delta: float
    by: str
    releases: tuple[Releases, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; an epsilon that is infinite is None."""
        kinds = [vars(r) for r in self.releases]
        epsilon = self.epsilon if math.isfinite(self.epsilon) else None
        return {"epsilon": epsilon, "delta": self.delta, "by": self.by, "releases": kinds}


def spent(releases: Sequence[Releases], delta: float) -> Spent:
    """What releases on one set of images cost together.

    Args:
        releases: with their noise and sampling.
        delta: of the guarantee.

    Raises:
        InputError: delta is not between 0 and 1.
        MissingExtra: images are sampled, and opacus is not installed.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta must lie between 0 and 1, far below one over the number of images, not {delta!r}.")
    kinds = tuple(r for r in releases if r.steps)
    if any(r.sigma <= 0 for r in kinds):
        return Spent(math.inf, delta, "no noise bounds nothing", kinds)
    if not kinds:
        return Spent(0.0, delta, "nothing was released", kinds)
    accountant = _accountant()
    if accountant is not None:
        accountant.history = [(r.sigma, r.rate, r.steps) for r in kinds]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of orders beyond those that it looks at: the bound holds without them
            epsilon = max(0.0, float(accountant.get_epsilon(delta)))  # by its formula below 0 for a large delta
        return Spent(epsilon, delta, "RDP accountant of opacus", kinds)
    if any(r.rate < 1 for r in kinds):
        raise MissingExtra(
            "Epsilon of sampled releases needs the accountant of opacus: pip install 'datastill[dp]'. Without it only "
            "releases of all images (--sample-rate 1) can be bounded."
        )
    return Spent(stated_bound(kinds, delta), delta, "stated bound, an upper one (opacus is not installed)", kinds)


def stated_bound(releases: Sequence[Releases], delta: float) -> float:
    """min over a of sum T a / (2 sigma^2) + log(1 / delta) / (a - 1), for releases of all images."""
    slope = sum(r.steps / (2 * r.sigma**2) for r in releases)
    best = 1 + math.sqrt(math.log(1 / delta) / slope)  # where the derivative is 0
    return min(slope * a + math.log(1 / delta) / (a - 1) for a in (*ORDERS, best))


def sigma_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The smallest noise multiplier, to opacus' tolerance, with which so many releases cost at most epsilon.

    Raises:
        MissingExtra: opacus is not installed.
        InputError: none does, or a number is out of its range.
    """
    if not (epsilon > 0 and 0 < delta < 1 and 0 < rate <= 1 and steps >= 1):
        raise InputError(
            f"Noise is found for epsilon above 0, delta between 0 and 1, a rate above 0 up to 1 and a release or more, "
            f"not epsilon {epsilon:g}, delta {delta:g}, rate {rate:g} and {steps} releases."
        )
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise MissingExtra("Noise for an epsilon needs opacus: pip install 'datastill[dp]'.") from error
    try:
        return float(
            get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
            )
        )
    except ValueError as error:
        raise InputError(f"No noise gives epsilon {epsilon:g} over {steps} releases ({error}).") from error


def _accountant() -> Any:
    """One of opacus, or None where that is not installed."""
    from datastill.core.rng import undisturbed

    try:
        with undisturbed():
            from opacus.accountants import RDPAccountant
    except ImportError:
        return None
    return RDPAccountant()
