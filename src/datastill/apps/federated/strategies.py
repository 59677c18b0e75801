"""The strategies by name."""

from __future__ import annotations

from typing import Any

from datastill.apps.federated.averaging import FedAvg, FedProx
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.fedmk import FedMK
from datastill.core.errors import InputError, nearest

STRATEGIES: dict[str, type[Any]] = {kind.name: kind for kind in (FedDM, FedMK, FedAvg, FedProx)}


def get_strategy(name: str) -> type[Any]:
    """The strategy of a name.

    Raises:
        InputError: there is none.
    """
    if name not in STRATEGIES:
        raise InputError(f"There is no federated strategy {name!r}. {nearest(name, STRATEGIES)}")
    return STRATEGIES[name]
