"""From what a caller asks of an evaluation to sets, data, network and one trainer for each set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.runtime import Runtime
from datastill.evaluation.inputs import Distilled, check_alike, check_fit, load_sets, network_for, real_for
from datastill.evaluation.kinds import REGIMES
from datastill.evaluation.protocols import Extras, Protocol, get_protocol
from datastill.evaluation.rates import learned_rate, rates_of
from datastill.evaluation.soft import labeling, patches_of, schedule_of
from datastill.models import NetworkFactory, is_built_in
from datastill.store.artifact import DistilledSet
from datastill.training.debiased import DebiasedTraining
from datastill.training.few_steps import StepsOfSet
from datastill.training.optimizers import unaugmented, usual
from datastill.training.trainers import Labeled, Trainer

if TYPE_CHECKING:
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class Variation:
    """What a caller changes in a protocol's training.

    Attributes:
        labels: where the protocol trains on a teacher's labels: "auto" or "teacher" take them at training time, "soft"
            takes one for each image; "hard" does without.
        teacher: who labels, a `Teacher` or its folder, instead of the one that comes with each set.
        teacher_network: what builds the teacher, where its network is not built in; None takes the evaluation's, if
            that is not built in either.
        training: "plain", or "dfa" or "selecmix" with options, see `training.debiased`.
        stacked: train the networks of a set side by side; None decides by device.
        optimizer: "sgd", "adam" or "adamw" at its usual rate in the place of the protocol's; "auto" leaves it.
        augmented: False leaves the protocol's augmentation out.
    """

    labels: str = "auto"
    teacher: Any = None
    teacher_network: Any = None
    training: str = "plain"
    stacked: bool | None = None
    optimizer: str = "auto"
    augmented: bool = True


@dataclass(frozen=True)
class Settled:
    """What is evaluated, on what, and how networks are trained on each set.

    Attributes:
        extras: what each set's trainer takes besides the protocol; Random's has no label bank and no patches.
        learned: the learning rates that sets learned and the protocol takes.
        training: how networks resist a bias, where they do.
    """

    sets: list[DistilledSet]
    data: RealSet
    protocol: Protocol
    factory: NetworkFactory
    rates: list[float]
    extras: list[Extras]
    notes: list[str]
    training: DebiasedTraining | None = None
    labels: str = "hard"  #: one of `REGIMES`
    optimizer: str = ""  #: that trains, in the place of the protocol's; "" is the protocol's

    @property
    def learned(self) -> list[float]:
        """Of the sets that have one."""
        if not self.protocol.learned_lr or self.optimizer:  # a rate is learned for the protocol's
            return []
        return [rate for one, rate in zip(self.sets, self.rates, strict=True) if learned_rate(one) is not None]

    @cached_property
    def labeled(self) -> list[Labeled]:
        """The images and labels of each set, rendered once."""
        return [Labeled(one.images, _trained_on(one)) for one in self.sets]

    @property
    def trainers(self) -> list[Trainer]:
        """How networks are trained on each set."""
        pairs = zip(self.rates, self.extras, strict=True)
        return [self.protocol.trainer(self.data, rate, extras) for rate, extras in pairs]

    def for_random(self, rate: float) -> list[Trainer]:
        """How they are trained on whole real images beside each set.

        By the same teacher, without a bank; by as many steps in the same order, all of one size.
        """
        whole = [
            replace(extras, bank=None, patches=1, rate_text=None, steps=extras.steps and extras.steps.at(rate))
            for extras in self.extras
        ]
        return [self.protocol.trainer(self.data, rate, extras) for extras in whole]


def settle(
    distilled: Distilled | Sequence[Distilled],
    real: Any,
    protocol: str | Protocol,
    network: Any,
    variation: Variation,
    runtime: Runtime,
) -> Settled:
    """Everything that an evaluation needs, checked.

    Raises:
        InputError: see `evaluate`.
    """
    sets = load_sets(distilled)
    first = sets[0]
    data = real_for(first, real).with_space(first.space)
    check_alike(sets)
    for one in sets:
        check_fit(one, data)
    recipe = protocol_of(first, protocol)
    factory = network_for(first, data, network)
    rates = rates_of(sets, recipe)
    training = DebiasedTraining.parse(variation.training)
    if training is not None:
        recipe.check_debiased()
    check_labels(sets, recipe, variation)
    optimizer = _optimizer(recipe, variation)
    extras = [
        Extras(
            patches_of(one),
            stacked=variation.stacked,
            training=training,
            steps=StepsOfSet.of(one.extra, one.name),
            rate_text=one.record.student.lr_text if recipe.learned_lr else None,
            optimizer=variation.optimizer,
            augmented=variation.augmented,
        )
        for one in sets
    ]
    notes: list[str] = []
    if recipe.soft:
        schedule = schedule_of(first, recipe, data, rates[0])
        schedule = schedule if variation.augmented else unaugmented(schedule)  # which stored labels do not fit
        own = factory if network is not None and not is_built_in(str(factory)) else None
        builder = own if variation.teacher_network is None else variation.teacher_network
        who = labeling(sets, recipe, schedule, variation.labels, variation.teacher, data, runtime.device, builder)
        by_set = zip(extras, who.labelers, who.banks, strict=True)
        extras = [replace(one, labeler=labeler, bank=bank, fixed=who.fixed) for one, labeler, bank in by_set]
        notes = who.notes
    return Settled(
        sets,
        data,
        recipe,
        factory,
        rates,
        extras,
        notes,
        training,
        regime_of(first, recipe, variation.labels),
        optimizer,
    )


def regime_of(first: DistilledSet, protocol: Protocol, labels: str) -> str:
    """What kind of labels networks are trained on: one of `REGIMES`.

    Args:
        first: of the sets.
        protocol: that they are trained on under.
        labels: what was asked for, see `Variation`.
    """
    if not protocol.soft:
        return "hard" if first.label_kind == "classes" else "soft"
    return "teacher" if labels == "auto" else labels


def _optimizer(protocol: Protocol, variation: Variation) -> str:
    """The name of another optimizer, or "".

    Raises:
        InputError: there is no such optimizer, or the training takes no other.
    """
    if variation.optimizer == "auto":
        return ""
    called = usual(variation.optimizer).called
    protocol.check_own_way("its optimizer")
    if variation.training != "plain":
        raise InputError(f"Training by {variation.training} has an optimizer of its own; leave --optimizer out.")
    return called


def _trained_on(one: DistilledSet) -> Tensor:
    """The set's labels as a loss takes them: classes, probabilities, which are the softmax of logits, or targets."""
    return one.targets.softmax(1) if one.label_kind == "logits" else one.targets


def protocol_of(first: DistilledSet, protocol: str | Protocol) -> Protocol:
    """The protocol itself; "auto" takes the one that the set asks for."""
    if protocol == "auto":
        protocol = first.record.student.protocol
    return get_protocol(protocol) if isinstance(protocol, str) else protocol


def check_labels(sets: Sequence[DistilledSet], protocol: Protocol, variation: Variation) -> None:
    """Labels are of a kind that the protocol trains on, and asked for as it has them.

    Raises:
        InputError: they are not.
    """
    if variation.labels not in ("auto", *REGIMES):
        raise InputError(
            f"Labels are auto, hard, soft (one for each image) or teacher (at training time), not {variation.labels!r} "
            "(--labels)."
        )
    if not protocol.soft and (
        variation.labels != "auto" or variation.teacher is not None or variation.teacher_network is not None
    ):
        raise InputError(
            f"{protocol.name} trains on the labels of the set; a teacher labels under protocols such as soft-quick-v1."
        )
    for one in sets:
        protocol.check_takes(one.label_kind, one.name)
