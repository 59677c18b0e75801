"""Scores that take labels and augmentation out of an accuracy: LRS and ARS of DD-Ranking, and their parts.

Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025 (arXiv:2505.13300).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.ranges import Probability, checked
from datastill.evaluation.conditions import nominal_training
from datastill.evaluation.evaluate import evaluate
from datastill.evaluation.inputs import Distilled, load_sets, network_for, real_for
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.scores import spread_over, t_interval
from datastill.evaluation.settled import protocol_of, regime_of

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.scores import Evaluation
    from datastill.store.artifact import DistilledSet

#: What accuracies are counted in: fractions, which keep scores in [0, 1], or percent, as the released package does.
Arithmetic = Literal["fractions", "released"]
_SCALE = {"fractions": 1.0, "released": 100.0}


def score(balance: Tensor, arithmetic: Arithmetic = "fractions") -> Tensor:
    """(e^a - e^-1) / (e - e^-1): 0 at a = -1, about .27 at 0, 1 at 1.

    Args:
        balance: a, a weighted sum of differences of accuracies as fractions, in [-1, 1]; any shape.
        arithmetic: "fractions", or "released": a in percentage points, as the released package has it, whose scores
            leave [0, 1].
    """
    low, high = math.exp(-1), math.exp(1)
    return ((_SCALE[arithmetic] * balance).exp() - low) / (high - low)


@dataclass(frozen=True)
class Robustness:
    """What the images alone do, as differences of accuracies, fractions, for each set and network, (sets, networks).

    Attributes:
        improvement: over Random under the protocol and its labels (IOR).
        missing: accuracy of the whole real set that hard labels do not bring back (HLR); `whole` is that accuracy.
        augmented: improvement over Random with augmentation, `plain` without; None where the data take none.
        weight: of `improvement` in LRS, the rest is that of -`missing`; of `augmented` in ARS.
        arithmetic: see `score`.
    """

    improvement: Tensor
    missing: Tensor
    whole: float
    augmented: Tensor | None
    plain: Tensor | None
    weight: float = 0.5
    arithmetic: Arithmetic = "fractions"

    @property
    def share(self) -> Tensor:
        """Accuracy with hard labels as a share of the whole set's, 1 at most."""
        return (1 - self.missing / max(self.whole, 1e-12)).clamp(0, 1)

    @property
    def lrs(self) -> Tensor:
        """Label robustness score of each set and network."""
        return score(self.weight * self.improvement - (1 - self.weight) * self.missing, self.arithmetic)

    @property
    def ars(self) -> Tensor | None:
        """Augmentation robustness score of each set and network."""
        if self.augmented is None or self.plain is None:
            return None
        return score(self.weight * self.augmented + (1 - self.weight) * self.plain, self.arithmetic)

    def parts(self) -> dict[str, Tensor]:
        """Scores and parts by their names in results, those that there are."""
        named = {"lrs": self.lrs, "ior": self.improvement, "hlr": self.missing, "share_of_whole": self.share}
        named |= {"ars": self.ars, "ior_augmented": self.augmented, "ior_plain": self.plain}  # type: ignore[dict-item]
        return {name: value for name, value in named.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: of each score and part the mean and the half-width of its 95 % interval, None where there is none.

        All are fractions but the scores of the released arithmetic.
        """
        found: dict[str, Any] = {"weight": self.weight, "arithmetic": self.arithmetic, "whole_set": self.whole}
        for name, value in self.parts().items():
            width = t_interval(spread_over(value)[0])
            found[name] = float(value.mean())
            found[f"{name}_interval_95"] = None if math.isnan(width) else width
        return found


@checked
def evaluate_robustness(
    distilled: Distilled | Sequence[Distilled],
    real: Any = None,
    *,
    weight: Probability = 0.5,
    arithmetic: Arithmetic = "fractions",
    protocol: str | Protocol = "auto",
    **settings: Any,
) -> Evaluation:
    """As `evaluate`, with `robustness` in the result: what is left without the help of labels and augmentation.

    Besides the protocol as it is, networks are trained on the whole real set (cached), on hard labels where the
    protocol or the set has others, and without augmentation where it has one (with DSA where it has none). Weights and
    orders of networks are shared by all.

    Args:
        distilled, real, protocol: as for `evaluate`.
        weight: of the improvement over Random against what is missing to the whole set, and of the improvement with
            augmentation against that without.
        arithmetic: "fractions" keeps LRS and ARS in [0, 1]; "released" takes percentage points as the released package
            (ddranking 0.2.0) does.
        settings: further arguments of `evaluate`.

    Raises:
        InputError: labels that are no classes, or a setting that the scores settle themselves; see also `evaluate`.
    """
    fixed = sorted(settings.keys() & {"random", "ceiling", "augmented", "training"})
    if fixed:
        raise InputError(f"The scores settle {fixed[0]} themselves; leave it out.")
    sets = load_sets(distilled)
    known = protocol_of(sets[0], protocol)
    refuse_unscored(sets[0].label_kind, sets[0].name, known)
    data = real_for(sets[0], real)

    main = evaluate(sets, data, protocol=known, **settings, ceiling=True)
    assert main.ceiling is not None
    mine, random = measure_apart(main, sets, data, known, settings)
    assert random is not None
    return replace(main, robustness=robustness_of(mine, random, main.ceiling.mean, weight, arithmetic))


def refuse_unscored(label_kind: str, name: str, protocol: Protocol) -> None:
    """Refuse labels that are no classes, and a protocol that trains in a way of its own.

    Raises:
        InputError: there are no scores of such.
    """
    if label_kind not in ("classes", "probabilities", "logits"):
        raise InputError(
            f"LRS and ARS are scores of classes; the labels of {name} are {label_kind}; leave --scores out."
        )
    protocol.check_own_way("its augmentation")


def apart_seconds(
    sets: Sequence[DistilledSet],
    real: RealSet,
    protocol: Protocol,
    network: Any,
    networks: int,
    labels: str,
    device: str,
) -> float:
    """What scores take besides the evaluation and the whole real set, at the nominal speed of a device.

    Args:
        sets, real, protocol, network, networks, labels: as for `evaluate`, the protocol itself.
        device: its type.
    """
    factory = network_for(sets[0], real, network)
    test = 0 if real.test is None else len(real.test)
    mine, random = [len(one.targets) for one in sets], [len(one.labels) for one in sets]
    sizes = [] if regime_of(sets[0], protocol, labels) == "hard" else mine
    if protocol.augments(real) or _with_dsa(protocol).augments(real):
        sizes = [*sizes, *mine, *random]
    return nominal_training(protocol, sizes, test, networks, factory.macs, device)


def _with_dsa(protocol: Protocol) -> Protocol:
    return replace(protocol, name=f"{protocol.name} with DSA", augment="auto")


@dataclass(frozen=True)
class Apart:
    """Accuracies of one arm with and without the help of labels and augmentation, (sets, networks).

    Attributes:
        usual: as the protocol has it.
        hard: on hard labels; None where nobody asked for them, as of Random.
        augmented: with augmentation, `bare` without; None where the data take none.
    """

    usual: Tensor
    hard: Tensor | None
    augmented: Tensor | None
    bare: Tensor | None


def robustness_of(
    mine: Apart, random: Apart, whole: float, weight: float = 0.5, arithmetic: Arithmetic = "fractions"
) -> Robustness:
    """Scores of one arm beside Random.

    Args:
        mine, random: accuracies of the same networks on both.
        whole: accuracy of the whole real set.
        weight, arithmetic: as for `evaluate_robustness`.
    """
    return Robustness(
        improvement=mine.usual - random.usual,
        missing=whole - _known(mine.hard),
        whole=whole,
        augmented=None if mine.augmented is None else mine.augmented - _known(random.augmented),
        plain=None if mine.bare is None else mine.bare - _known(random.bare),
        weight=weight,
        arithmetic=arithmetic,
    )


def _known(values: Tensor | None) -> Tensor:
    if values is None:
        raise InputError("The sets were not trained on as the Random beside them was; score both in one way.")
    return values


def measure_apart(
    main: Evaluation, sets: list[DistilledSet], real: Any, protocol: Protocol, settings: Mapping[str, Any]
) -> tuple[Apart, Apart | None]:
    """The sets, and the Random beside them, without the help of labels and augmentation.

    Args:
        main: their evaluation under `protocol`, with Random or without.
        sets, real, protocol: what was evaluated.
        settings: further arguments of that `evaluate`.
    """
    hard = _hard(sets, protocol, main, real, settings)
    settings = {**settings, "random": main.random is not None}
    pair: tuple[Evaluation | None, Evaluation | None] = (None, None)
    if protocol.augments(real):
        pair = main, evaluate(sets, real, protocol=protocol, **settings, augmented=False)
    elif (with_dsa := _with_dsa(protocol)).augments(real):
        pair = evaluate(sets, real, protocol=with_dsa, **settings), main
    found = Apart(main.distilled.accuracies, hard, *(_accuracies(one, "distilled") for one in pair))
    if main.random is None:
        return found, None
    return found, Apart(main.random.accuracies, None, *(_accuracies(one, "random") for one in pair))


def _accuracies(one: Evaluation | None, arm: Literal["distilled", "random"]) -> Tensor | None:
    if one is None:
        return None
    found = one.distilled if arm == "distilled" else one.random
    return None if found is None else found.accuracies


def _hard(sets: list[DistilledSet], protocol: Protocol, main: Evaluation, real: Any, settings: Any) -> Tensor:
    """Accuracies (sets, networks) of networks that are trained on hard labels, all else as in `main`."""
    if main.labels == "hard":
        return main.distilled.accuracies
    hard = [_hardened(one) for one in sets]
    rest = {name: value for name, value in settings.items() if name not in ("labels", "teacher", "teacher_network")}
    rest |= {"labels": "hard"} if protocol.soft else {}
    return evaluate(hard, real, protocol=protocol, **rest, random=False).distilled.accuracies


def _hardened(one: DistilledSet) -> DistilledSet:
    """The set with the class of each stored image in the place of its labels."""
    if one.labels.ndim == 1:
        return one
    classes = one.extra["classes"] if "classes" in one.extra else one.labels.argmax(1)
    return replace(one, labels=classes.to(torch.int64))
