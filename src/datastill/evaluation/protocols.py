"""Evaluation recipes: frozen, named, versioned. A changed recipe gets a new name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from datastill.core.errors import InputError, nearest
from datastill.core.ranges import AnyRate, Count, Momentum, Probability, Weight, check_fields

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.evaluation.metrics import Metric
    from datastill.labels.bank import LabelBank
    from datastill.labels.labeler import Labeler
    from datastill.training.debiased import DebiasedTraining
    from datastill.training.few_steps import StepsOfSet
    from datastill.training.hard import Schedule
    from datastill.training.soft import SoftSchedule
    from datastill.training.trainers import Trainer


@dataclass(frozen=True)
class Extras:
    """What training on one set takes besides its protocol.

    Attributes:
        patches: patches along each axis that a stored image consists of (RDED): they are shuffled, and a crop is as
            large as one of them at least.
        labeler: the teacher that labels on line; `bank` holds labels that were stored, and goes first.
        fixed: whether the teacher labels each image once, before training.
        stacked: train networks side by side; None decides by device.
        training: a way that resists a bias, in the place of all but the protocol's augmentation.
        steps: order and sizes of the steps that the set learned with its images (DD).
        rate_text: learning rate of the text tower that a set of pairs learned.
        optimizer: "sgd", "adam" or "adamw" in the place of the protocol's, see `training.optimizers`; "auto" leaves it.
        augmented: False trains on images as they are, without the protocol's augmentation.
    """

    patches: int = 1
    labeler: Labeler | None = None
    bank: LabelBank | None = None
    fixed: bool = False
    stacked: bool | None = None
    training: DebiasedTraining | None = None
    steps: StepsOfSet | None = None
    rate_text: float | None = None
    optimizer: str = "auto"
    augmented: bool = True


@dataclass(frozen=True)
class Protocol:
    """How a network is trained on a distilled set, and what is read off.

    Accuracy is that of the last pass on the test split; nothing is selected.

    Raises:
        InputError: a number out of range.
    """

    #: Rates that Random tries beside sets that learned theirs; empty takes `evaluation.rates.RATES`.
    tries: ClassVar[tuple[float, ...]] = ()

    #: Whether an accuracy depends on drawn weights; where it does not, there is one for each set.
    drawn: ClassVar[bool] = True

    name: str
    summary: str
    passes: Count  #: passes over the distilled set
    drop_after: int | None = None  #: index of the pass after which lr falls to a tenth, where `drops` is empty
    augment: str = "none"  #: "none", "auto" (DSA as fits the data; no cutout beside CutMix) or a DSA strategy
    lr: AnyRate = 0.01
    momentum: Momentum = 0.9
    weight_decay: Weight = 5e-4
    batch: Count = 256
    drops: tuple[tuple[int, float], ...] = ()  #: (index of a pass, what lr is multiplied by after it)
    forget_momentum: bool = True  #: whether a drop also forgets the momentum
    augment_mode: str = "single"  #: operations per image: "single", "multiple" or "composite", see `Dsa`
    cutmix: Probability = 0.0  #: probability of CutMix for each batch; none where "auto" augments nothing
    soft: str = ""  #: a recipe of `training.soft`: train on a teacher's labels, with lr, batch and passes from here
    learned_lr: bool = False  #: whether a set that learned a learning rate is trained on at that rate instead of `lr`
    accepts: tuple[str, ...] = ("classes", "probabilities")  #: kinds of labels that it trains on

    def __post_init__(self) -> None:
        check_fields(self, "{name} of a protocol")

    @property
    def optimizer(self) -> str:
        """What trains the networks: it alone is worth some points."""
        from datastill.training.soft_schedule import optimizer_of

        return optimizer_of(self.soft)

    @property
    def metric(self) -> Metric:
        """What the networks are scored by."""
        from datastill.evaluation.metrics import Accuracy

        return Accuracy()

    def takes(self, kind: str) -> bool:
        """Whether it trains on labels of this kind; logits become probabilities by a softmax."""
        return kind in self.accepts or (kind == "logits" and "probabilities" in self.accepts)

    def check_takes(self, kind: str, whose: str) -> None:
        """Refuse labels that it does not train on.

        Args:
            kind: of the labels, see `core.plan.Labels`.
            whose: set or method, for the error.

        Raises:
            InputError: those that take them are named.
        """
        if self.takes(kind):
            return
        fitting = [name for name, other in protocols().items() if other.takes(kind)]
        remedy = f"take {' or '.join(fitting)}" if fitting else "name a protocol for them"
        raise InputError(
            f"The labels of {whose} are {kind}, and {self.name} trains on {' or '.join(self.accepts)}; {remedy} "
            "(--protocol)."
        )

    def trainer(self, real: RealSet, rate: float | None = None, extras: Extras | None = None) -> Trainer:
        """How networks are trained on a set that stands for `real`.

        A protocol of another kind is a subclass that gives another trainer.

        Args:
            rate: learning rate in the place of the protocol's.
        """
        from datastill.training.optimizers import hard_by, soft_by, unaugmented
        from datastill.training.trainers import CrossEntropy, Debiased, TeacherLabels

        extras = extras or Extras()
        if self.soft:
            soft = self.soft_schedule(real.name, real.shape, rate, extras.patches)
            schedule = soft_by(extras.optimizer, soft if extras.augmented else unaugmented(soft))
            return TeacherLabels(schedule, extras.labeler, extras.bank, extras.fixed)
        plain = hard_by(extras.optimizer, self.schedule(real.name, real.shape, rate))
        if not extras.augmented:
            plain = replace(plain, augment="none", cutmix=0.0)
        if extras.training is not None:
            return Debiased(extras.training, plain.augment)
        return CrossEntropy(plain, extras.stacked)

    def augments(self, real: RealSet) -> bool:
        """Whether networks see these images changed."""
        return bool(self.soft) or self._augmentation(real.name, real.shape) != ("none", 0.0)

    def check_own_way(self, what: str) -> None:
        """Refuse what changes the usual loops, where the protocol trains in a way of its own.

        Args:
            what: would be changed, for the error.

        Raises:
            InputError: it does.
        """
        if type(self).trainer is not Protocol.trainer:
            raise InputError(
                f"{self.name} trains in a way of its own, and {what} is part of it; take another protocol."
            )

    def check_any_set(self) -> None:
        """Refuse to compare sets of all methods, and Random, where a set must bring more than images and labels.

        Raises:
            InputError: it must.
        """
        if self.soft:
            raise InputError(
                f"{self.name} trains on a teacher's labels, and Random and other methods come without a teacher; score "
                "sets that have one with `datastill evaluate`, and compare under dc-v1 or dsa-quick-v1 (--protocol)."
            )

    def check_debiased(self) -> None:
        """Refuse what de-biased training cannot take over: more than a schedule and simple augmentation.

        Raises:
            InputError: the protocol trains on a teacher's labels, in a way of its own, or mixes images.
        """
        if type(self).trainer is not Protocol.trainer:
            raise InputError(f"{self.name} trains in a way of its own, which de-biased training would replace.")
        if self.soft:
            raise InputError(f"{self.name} trains on a teacher's labels; de-biased training takes a protocol without.")
        if self.cutmix or self.augment_mode != "single":
            raise InputError(
                f"{self.name} mixes images (CutMix) or takes several operations at once, which de-biased training does "
                "not; take dc-v1, dc-v1-dsa or dsa-quick-v1."
            )

    def soft_schedule(
        self, data_name: str, shape: tuple[int, int, int], lr: float | None = None, patches: int = 1
    ) -> SoftSchedule:
        """How a network is trained on a teacher's labels.

        Args:
            patches: patches along each axis that a stored image consists of (RDED): they are shuffled, and a crop is as
                large as one of them at least.
        """
        from datastill.augment.strategies import strategy_for
        from datastill.training.soft import SOFT_RECIPES

        recipe = SOFT_RECIPES[self.soft]
        trace = replace(recipe.trace, flip=recipe.trace.flip and "flip" in strategy_for(data_name, shape))
        if trace.shuffle > 1:  # made for patches: 1 is a whole image, neither cut up nor cropped
            trace = replace(trace, shuffle=patches, min_scale=1 / patches)
        elif patches > 1:
            trace = replace(trace, shuffle=patches, min_scale=max(trace.min_scale, 1 / patches))
        rate = self.lr if lr is None else lr
        return replace(recipe, epochs=self.passes, batch=self.batch, lr=rate, trace=trace)

    def schedule(self, data_name: str, shape: tuple[int, int, int], lr: float | None = None) -> Schedule:
        """The training schedule for a data set; `lr` stands in for the protocol's."""
        from datastill.training.hard import Schedule

        augment, cutmix = self._augmentation(data_name, shape)
        return Schedule(
            passes=self.passes,
            lr=self.lr if lr is None else lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch=self.batch,
            drop_after=self.drop_after,
            drops=self.drops,
            forget_momentum=self.forget_momentum,
            augment=augment,
            augment_mode=self.augment_mode,
            cutmix=cutmix,
        )

    def _augmentation(self, data_name: str, shape: tuple[int, int, int]) -> tuple[str, float]:
        """The DSA strategy for a data set, and the probability of CutMix."""
        from datastill.augment.strategies import strategy_for

        if self.augment != "auto":
            return self.augment, self.cutmix
        fitting = strategy_for(data_name, shape)
        if not self.cutmix or fitting == "none":
            return fitting, 0.0
        return "_".join(name for name in fitting.split("_") if name != "cutout"), self.cutmix


#: Protocols of the user's.
_REGISTERED: dict[str, Protocol] = {}


def protocols() -> dict[str, Protocol]:
    """All protocols by name."""
    from datastill.evaluation import own_protocols, pair_protocols, standard_protocols

    built_in = (*standard_protocols.PROTOCOLS, *own_protocols.PROTOCOLS, *pair_protocols.PROTOCOLS)
    return {**{p.name: p for p in built_in}, **_REGISTERED}


def register_protocol(protocol: Protocol) -> Protocol:
    """Make a protocol known by its name; returned as it is.

    Raises:
        InputError: another one has that name: results under one name must mean one thing.
    """
    if protocols().get(protocol.name, protocol) != protocol:
        raise InputError(f"There is another protocol {protocol.name!r}; a changed recipe gets a new name.")
    _REGISTERED[protocol.name] = protocol
    return protocol


def get_protocol(name: str) -> Protocol:
    """One protocol by name.

    Raises:
        InputError: unknown name; the nearest are named.
    """
    if name not in (known := protocols()):
        raise InputError(f"There is no protocol {name!r}. {nearest(name, known)}")
    return known[name]
