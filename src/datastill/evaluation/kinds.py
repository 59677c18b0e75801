"""Kinds of labels that networks are trained on."""

from __future__ import annotations

from datastill.evaluation.protocols import protocols

#: Classes; probabilities, one for each image; a teacher's, for each view at training time.
REGIMES = ("hard", "soft", "teacher")


def other_labels(name: str, labels: str) -> str:
    """The kind of labels, where it is not the one that a built-in protocol trains on; else ""."""
    known = protocols().get(name)
    return labels if known is not None and known.soft and labels in ("hard", "soft") else ""
