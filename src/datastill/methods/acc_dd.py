"""Accelerating Dataset Distillation via Model Augmentation (Acc-DD: Zhang et al., CVPR 2023, arXiv:2212.06152).

L as in IDC, on networks that do not begin at random: each is one of a few that were trained for a few epochs,
theta <- theta + a_1 d_1 + a_2 d_2, with Gaussian d_i of the norm of theta in every filter and |a_i| ~ U(0.01, 0.09).

- Needs: nothing but the real set and a network family; the few networks are trained first, once.
- Cost: as IDC, for a quarter of its steps; 3 * bank_networks * bank_epochs passes over the real set before.
- Departs: as IDC; two directions with signs of their own, as in the released code (the paper writes one).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from datastill.core.errors import InputError
from datastill.core.ranges import Amount, Count, Few, Rate, Seed, Share, Weight
from datastill.core.registry import NOMINAL_STEP_SECONDS, method, nominal_seconds, nominal_speed
from datastill.methods.idc import IDC

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Plan, Task
    from datastill.surrogates.early import EarlyNetwork
    from datastill.training.hard import Schedule

#: Of a time that does not pay for everything, what goes to the bank.
_SHARE = 0.25
#: Real images of a network of the bank, below which there are rather fewer networks.
_IMAGES_EACH = 2_000


@method("acc-dd", paper="arXiv:2212.06152", family="gradient")
@dataclass(frozen=True, kw_only=True)
class AccDD(IDC):
    """Match weight gradients through multi-formation, on perturbed networks from an early stage of training."""

    settled_by_budget: ClassVar[frozenset[str]] = frozenset(
        {"steps", "real_batch", "net_images", "outer", "image_lr", "bank_networks", "bank_epochs", "bank_part"}
    )

    steps: Count = 50_000  #: image updates of every class
    base_lr: Rate = 1e-2  #: see image_lr
    bank_networks: Few = 5  #: networks that are trained first, one of which each trajectory begins from
    bank_epochs: Amount = 2  #: epochs of each; the paper takes 10 on ImageNet subsets; 0 begins at random weights
    bank_part: Share = 1.0  #: part of the real images that makes an epoch, for each network another
    bank_seed: Seed = 0  #: of these networks; not the run's, so that runs of all seeds share them
    noise_low: Weight = 0.01  #: smallest size of a perturbation, in relation to the weights of each filter
    noise_high: Weight = 0.09  #: largest size of a perturbation

    def build(self, task: Task) -> Plan:
        """IDC's plan on networks of the bank."""
        from dataclasses import replace

        from datastill.surrogates.early import EarlyStage
        from datastill.surrogates.on_real import TrainedOnReal

        if self.noise_low > self.noise_high:
            raise InputError(f"noise_low is {self.noise_low:g}, above noise_high ({self.noise_high:g}); swap them.")
        plan = super().build(task)
        trained = plan.surrogates
        assert isinstance(trained, TrainedOnReal)
        bank = self._bank(trained.schedule)
        surrogates = EarlyStage(trained, bank, self.noise_low, self.noise_high)
        return replace(plan, surrogates=surrogates, prepare=[*plan.prepare, *bank])

    def scaled(self, task: Task, seconds: float) -> Self:
        """A smaller bank for a quarter of the time, and IDC's cheaper steps for the rest."""
        return self._within(task, seconds, 1.0, 1.0)

    def with_cheap_preparation(self, task: Task, seconds: float, given: Collection[str]) -> Self:
        """A bank of `seconds`, where the caller has not said which networks it is to have."""
        if {"bank_networks", "bank_epochs", "bank_part"} & set(given):
            return self
        return self._with_bank(task, seconds)

    def nominal_preparation(self, task: Task) -> float:
        """Seconds of the bank at the nominal speed, with what a step costs beside its arithmetic."""
        images = self.bank_part * len(task.real)
        work = 3 * images * task.network.macs / nominal_speed(task.device.type)
        beside = math.ceil(images / self.real_batch) * NOMINAL_STEP_SECONDS
        return self.bank_networks * self.bank_epochs * (work + beside)

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """This method without a bank, whose steps cost the same, and the seconds that the bank would take."""
        from datastill.surrogates.early import EarlyNetwork

        units = self.build(task).prepare
        seconds = sum(unit.seconds(task) for unit in units[:1] if isinstance(unit, EarlyNetwork)) * len(units)
        yield replace(self, bank_epochs=0), seconds

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """As `scaled`, where each nominal second of the bank and of the steps takes so many."""
        return self._within(task, seconds, preparation, step)

    def _within(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        a_step = step * nominal_seconds(self.macs_per_step(task), task.device.type)
        if preparation * self.nominal_preparation(task) + self.steps * a_step <= seconds:
            return self
        found = self._with_bank(task, _SHARE * seconds / preparation)
        left = seconds - preparation * found.nominal_preparation(task)
        return super(AccDD, found).scaled(task, max(0.0, left) / step)

    def _with_bank(self, task: Task, seconds: float) -> Self:
        """Fewer epochs, then shorter ones of fewer networks: a bank of `seconds` at the nominal speed."""
        whole = self.nominal_preparation(task)
        if whole <= seconds:
            return self
        once = replace(self, bank_epochs=1, bank_part=1.0)
        epochs = seconds / once.nominal_preparation(task)
        if epochs >= 1:
            return replace(self, bank_epochs=min(self.bank_epochs, int(epochs)))
        images = epochs * self.bank_networks * len(task.real)
        networks = max(1, min(self.bank_networks, int(images / _IMAGES_EACH)))
        part = min(1.0, max(images / networks, self.real_batch) / len(task.real))
        return replace(once, bank_networks=networks, bank_part=min(self.bank_part, part))

    def _bank(self, schedule: Schedule) -> list[EarlyNetwork]:
        """The units that train it, as networks train between two matches."""
        from datastill.surrogates.early import EarlyNetwork

        if not self.bank_epochs:
            return []
        schedule = replace(schedule, passes=self.bank_epochs)
        return [EarlyNetwork(k, schedule, self.bank_part, self.bank_seed) for k in range(self.bank_networks)]
