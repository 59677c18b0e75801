"""Kinds of labels that networks are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datastill.evaluation.protocols import Protocol, protocols

#: Classes; probabilities, one for each image; a teacher's, for each view at training time.
REGIMES = ("hard", "soft", "teacher")


def other_labels(name: str, labels: str) -> str:
    """The kind of labels, where it is not the one that a built-in protocol trains on; else ""."""
    known = protocols().get(name)
    return labels if known is not None and known.soft and labels in ("hard", "soft") else ""


def other_ways(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `evaluate` that were not the protocol's, out of `Evaluation.to_dict()`."""
    name, found = str(evaluation["protocol"]), dict[str, Any]()
    if labels := other_labels(name, str(evaluation.get("labels", ""))):
        found["labels"] = labels
    optimizer, known = evaluation.get("optimizer"), protocols().get(name)
    free = known is not None and type(known).trainer is Protocol.trainer  # others have one of their own
    if optimizer and known is not None and free and optimizer != known.optimizer:
        found["optimizer"] = str(optimizer).lower()
    if evaluation.get("augmented") is False:
        found["augmented"] = False
    return found
