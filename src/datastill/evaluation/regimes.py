"""One set under several kinds of labels: what of a result is the images', and what the labels'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datastill.core.errors import InputError, nearest
from datastill.evaluation.evaluate import evaluate
from datastill.evaluation.inputs import Distilled, load_sets
from datastill.evaluation.kinds import REGIMES
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.scores import Evaluation


def evaluate_regimes(
    distilled: Distilled | Sequence[Distilled],
    real: Any = None,
    *,
    regimes: Sequence[str] = REGIMES,
    protocol: str | Protocol = "auto",
    **settings: Any,
) -> dict[str, Evaluation]:
    """Score sets under each kind of labels, with Random under the same; all else is one protocol.

    Args:
        distilled, real, protocol: as for `evaluate`; the protocol is one on a teacher's labels.
        regimes: of "hard", "soft" (one for each image) and "teacher" (at training time), each once.
        settings: further arguments of `evaluate`.

    Returns:
        An evaluation for each, in the order that was asked for.

    Raises:
        InputError: an unknown kind of labels, or a protocol that has one kind only; see also `evaluate`.
    """
    unknown = [one for one in regimes if one not in REGIMES]
    if unknown:
        raise InputError(f"There are no labels {unknown[0]!r}. {nearest(str(unknown[0]), REGIMES)}")
    if not regimes or len(set(regimes)) < len(regimes):
        raise InputError(f"Name one or more kinds of labels ({', '.join(REGIMES)}), each once.")
    if "labels" in settings:
        raise InputError("Kinds of labels are named in regimes= here; leave labels= out.")
    sets = load_sets(distilled)
    asked = sets[0].record.student.protocol if protocol == "auto" else protocol
    known = get_protocol(asked) if isinstance(asked, str) else asked
    if not known.soft:
        raise InputError(
            f"{known.name} trains on the set's own labels alone; name a protocol on a teacher's labels (soft-quick-v1, "
            "rd3-v1), and a teacher where the set comes without one (--teacher FOLDER)."
        )
    return {one: evaluate(sets, real, protocol=known, labels=one, **settings) for one in regimes}
