"""All checks of a set that may tell of a trigger, on networks that are trained on it once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datastill.apps.backdoor.inversion import NAMED, Inversion, inversion_of
from datastill.apps.backdoor.signature import Signature, signature_of
from datastill.core.errors import InputError
from datastill.core.ranges import Few, Seed, checked
from datastill.data.real import RealSet
from datastill.evaluation.evaluate import trained
from datastill.models.resolve import NetworkSpec
from datastill.store.artifact import DistilledSet

HEADS = ["distilled from", "named by its signature", "named by trigger inversion"]
UNKNOWN = "cannot say"


@dataclass(frozen=True)
class Checks:
    """Of one set; None where a check says nothing of sets like it."""

    signature: Signature | None
    inversion: Inversion | None

    def row(self, names: tuple[str, ...]) -> list[str]:
        """Of the table, after the set's name."""
        return [
            UNKNOWN if one is None else ", ".join(names[c] for c in one.suspected) or "none"
            for one in (self.signature, self.inversion)
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told: dict[str, Any] = {"signature": None, "inversion": None}
        if self.signature is not None:
            told["signature"] = {"suspected": self.signature.suspected, "deviations": self.signature.deviations}
        if self.inversion is not None:
            one = self.inversion
            told["inversion"] = {
                "suspected": one.suspected, "ratios": one.ratios, "pixels": one.sizes, "bound": NAMED
            }  # fmt: skip
        return told


@checked
def checks(
    sets: Mapping[str, DistilledSet], real: RealSet, *, networks: Few = 3, network: NetworkSpec = None, seed: Seed = 0
) -> dict[str, Checks]:
    """Look at sets, such as a poisoned one and a clean one; a check that says nothing of them is left out.

    Args:
        sets: by name.
        real: with a test split.
        networks: that are trained on each set.
        network: their architecture; None takes the one that a set was distilled with.
        seed: of networks and draws.
    """
    found: dict[str, Checks] = {}
    for name, made in sets.items():
        signed = inverted = None
        learners = trained(made, real, networks=networks, network=network, seed=seed)
        with contextlib.suppress(InputError):
            signed = signature_of(learners, made)
        with contextlib.suppress(InputError):
            inverted = inversion_of(learners, real.known_test, seed=seed)
        found[name] = Checks(signed, inverted)
    return found
