"""Trainers: how fresh networks are trained on one set. A protocol gives one; whoever needs networks may call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from datastill.core.plan import chunk_for
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.training.batches import Images
from datastill.training.debiased import DebiasedTraining
from datastill.training.hard import Schedule
from datastill.training.soft import SoftSchedule, train_soft
from datastill.training.stacked import train_many

if TYPE_CHECKING:
    from datastill.labels.bank import LabelBank
    from datastill.labels.labeler import Labeler
    from datastill.models import Network
    from datastill.models.factory import NetworkFactory

#: Images that a teacher labels at a time.
_AT_ONCE = 256
#: Told how many networks are done, fractions included, and numbers worth showing.
Told = Callable[[float, dict[str, float]], None]


class Labeled(NamedTuple):
    """What is trained on.

    Attributes:
        x: images in the set's Space (n, c, h, w), or a function from positions to images.
        y: class positions (n,) int64, probabilities (n, C), or what else the trainer takes.
    """

    x: Images
    y: Tensor


class Trained(NamedTuple):
    """Networks as they are after the last step, and for each the mean loss of every pass (empty where untold)."""

    networks: list[Network]
    losses: list[list[float]]


class Trainer(Protocol):
    """How fresh networks are trained on one set."""

    @property
    def lr(self) -> float:
        """The learning rate, for tables."""
        ...

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """One network for each family of generators.

        Network k has the weights of `factory(rngs[k].derive("network"))` at its start, and draws from rngs[k] alone, so
        that two sets which are trained on with the same generators can be compared in pairs.

        Raises:
            Diverged: a loss is not finite.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """SGD on the cross-entropy with the set's own labels; networks side by side where that is faster."""

    schedule: Schedule
    stacked: bool | None = None

    @property
    def lr(self) -> float:
        """That of the schedule."""
        return self.schedule.lr

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`."""
        made = [factory(rng.derive("network")) for rng in rngs]
        losses = train_many(
            made,
            data.x,
            data.y,
            self.schedule,
            rngs,
            device=runtime.device,
            stacked=self.stacked,
            on_pass=_by_passes(self.schedule.passes, told),
            compiled=runtime.compiled,
            chunk=chunk_for(factory.macs, runtime.device),
        )
        return Trained(made, losses)


@dataclass(frozen=True)
class TeacherLabels:
    """Training on the labels of a teacher, on line or from a bank; with neither, in the same way on hard labels.

    With `fixed` the teacher labels each image once, as it is stored, by its probabilities; a set's own stay.
    """

    schedule: SoftSchedule
    labeler: Labeler | None = None
    bank: LabelBank | None = None
    fixed: bool = False

    @property
    def lr(self) -> float:
        """That of the schedule."""
        return self.schedule.lr

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`."""
        assert isinstance(data.x, Tensor)
        y, labeler = data.y, None if self.bank is not None else self.labeler
        if self.fixed and labeler is not None:
            y, labeler = fixed_labels(data, labeler, runtime.device), None
        made, on_pass = [factory(rng.derive("network")) for rng in rngs], _by_passes(self.schedule.epochs, told)
        losses = [
            train_soft(
                network,
                data.x,
                y,
                self.schedule,
                rng,
                labeler=labeler,
                bank=self.bank,
                device=runtime.device,
                on_pass=lambda p, loss, k=k: on_pass(k, p, loss),  # type: ignore[misc]
            )
            for k, (network, rng) in enumerate(zip(made, rngs, strict=True))
        ]
        return Trained(made, losses)


@dataclass(frozen=True)
class Debiased:
    """Training that resists a bias of the set, under an augmentation (a DSA strategy)."""

    training: DebiasedTraining
    augment: str = "none"

    @property
    def lr(self) -> float:
        """That of the network."""
        return self.training.lr

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`; losses are not told."""
        training = self.training.with_defaults(augment=self.augment)
        steps = training.steps(len(data.y))
        made = [
            training(
                factory,
                data.x,
                data.y,
                rng=rng,
                device=runtime.device,
                on_step=lambda step, k=k: told(k + (step + 1) / steps, {}),  # type: ignore[misc]
            )
            for k, rng in enumerate(rngs)
        ]
        return Trained(made, [])


def fixed_labels(data: Labeled, labeler: Labeler, device: torch.device) -> Tensor:
    """Probabilities (n, C) of each image as it is stored; those that a set has are taken as they are."""
    if data.y.ndim == 2:
        return data.y
    assert isinstance(data.x, Tensor)
    return torch.cat([labeler(part.to(device)).softmax(1).cpu() for part in data.x.split(_AT_ONCE)])


def _by_passes(passes: int, told: Told) -> Callable[[int, int, Tensor], None]:
    """Counts the passes of all networks, and tells of every tenth."""
    done = 0

    def on_pass(k: int, p: int, loss: torch.Tensor) -> None:
        nonlocal done
        done += 1
        if done % 10 == 0:
            told(done / passes, {"loss": float(loss.mean())})

    return on_pass
