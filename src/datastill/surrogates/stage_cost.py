"""What methods share that match on stages of trained networks: the experts, and what of them a time pays for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from datastill.core.ranges import Amount, AnyRate, Count, Few, Seed, Tiles, WidthOrNone
from datastill.core.registry import NOMINAL_STEP_SECONDS, Method, nominal_seconds, nominal_speed
from datastill.surrogates.expert_cost import coarse

if TYPE_CHECKING:
    from datastill.core.plan import Task
    from datastill.models.factory import NetworkFactory
    from datastill.surrogates.experts import ExpertsUnit

S = TypeVar("S", bound="Staged")

#: Of a time that does not pay for everything, what goes to the experts.
EXPERTS_SHARE = 0.6
#: Whoever says one of these has said which experts to train.
CHOSEN = frozenset({"experts", "expert_count", "expert_epochs", "expert_updates", "width"})
#: Updates of an expert, and channels, where not all that the method asks for can be paid.
_UPDATES, _FEWEST_UPDATES, _WIDTH, _LEAST_WIDTH = 1200, 150, 64, 32
#: Epochs into which short experts are cut, so that early snapshots are close to each other.
_EPOCHS = 12


@dataclass(frozen=True, kw_only=True)
class Staged(Method):
    """A method that matches on stages of networks which are trained on the real set before its steps."""

    voids: ClassVar[dict[str, tuple[str, ...]]] = {
        "experts": ("width", "expert_count", "expert_updates", "expert_lr", "expert_batch", "expert_seed"),
    }
    settled_by_budget: ClassVar[frozenset[str]] = frozenset(
        {"steps", "real_batch", "width", "expert_count", "expert_updates", "expert_epochs"}
    )

    factor: Tiles = 2  #: a stored image holds factor x factor smaller ones (multi-formation, arXiv:2205.14959)
    init: str = "mix"  #: start: every tile a real image ("mix"), whole ones ("real"), or "noise"
    width: WidthOrNone = 0  #: channels of the experts, where the network has a width; 0 keeps the network
    experts: str = ""  #: folder of expert trajectories (`datastill experts train`) to take; none trains them
    expert_count: Few = 20  #: networks to train on the real set
    expert_epochs: Few = 60  #: their epochs; each ends with a snapshot
    #: updates of each of them, in `expert_epochs` short epochs where those are shorter than whole ones; 0 trains for
    #: expert_epochs passes over the real set
    expert_updates: Amount = 0
    expert_lr: AnyRate = 0.01  #: their learning rate at the start
    expert_batch: Count = 64  #: real images per step of an expert
    expert_seed: Seed = 0  #: of the experts; not the run's, so that runs of all seeds share them
    real_batch: Count = 128  #: real images per class and step

    #: Schedule of the experts' rate and CutMix probability, see `policies.momentum`.
    expert_schedule: ClassVar[str] = "steps"
    expert_cutmix: ClassVar[float] = 0.5

    def network(self, task: Task) -> NetworkFactory:
        """The experts' network; as wide as they are, where they are given."""
        from datastill.models import narrowed

        return narrowed(task.network, self.width if not self.experts else _width_of(self.experts))

    def epochs_and_part(self, n: int) -> tuple[int, float]:
        """Epochs of an expert on n real images, and the part of them that an epoch passes over."""
        if not self.expert_updates:
            return self.expert_epochs, 1.0
        part = min(1.0, max(1, self.expert_updates // self.expert_epochs) * self.expert_batch / n)
        return max(1, round(self.expert_updates / math.ceil(part * n / self.expert_batch))), part

    def experts_unit(self, task: Task) -> ExpertsUnit:
        """The experts that are trained, or taken from their folder."""
        from datastill.surrogates.experts import ExpertsUnit
        from datastill.surrogates.experts.policies.momentum import MomentumSgd

        epochs, part = self.epochs_and_part(len(task.real))
        policy = MomentumSgd(
            lr=self.expert_lr,
            batch=self.expert_batch,
            part=part,
            schedule=self.expert_schedule,  # type: ignore[arg-type]
            cutmix=self.expert_cutmix,
        )
        return ExpertsUnit(
            experts=self.expert_count,
            epochs=epochs,
            policy=policy,
            seed=self.expert_seed,
            span=1,
            path=self.experts or None,
            network=self.network(task),
        )

    def last_epoch(self, task: Task) -> int:
        """The last snapshot of the experts: as given, or of their folder."""
        last, _ = self.epochs_and_part(len(task.real))
        if not self.experts:
            return last
        from datastill.surrogates.experts import open_buffer

        return min(last, open_buffer(self.experts).epochs)

    def tiles(self, task: Task) -> int:
        """Tiles along each side of a stored image."""
        return self.factor

    def decoded(self, task: Task) -> int:
        """Images that a step renders."""
        return len(task.labels) * self.tiles(task) ** 2

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image of a batch; forward and backward to the pixels, about three, per rendered one."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        return self.network(task).macs * (real + 3 * self.decoded(task))

    def scaled(self, task: Task, seconds: float) -> Self:
        """Fewer, shorter, narrower experts for three fifths of the time, and as many steps as the rest pays for."""
        return affordable(self, task, seconds, 1.0, 1.0)

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> Self:
        """As `scaled`, where each nominal second of experts and of steps takes so many."""
        return affordable(self, task, seconds, preparation, step)

    def with_part_of_statistics(self, part: float) -> Self:
        """This method with a part of the real images that are looked at once, before its steps."""
        return self

    def with_cheap_preparation(self, task: Task, seconds: float, given: Collection[str]) -> Self:
        """Short, narrow experts where all would take more than `seconds`; not where `given` names which to train."""
        if CHOSEN & set(given) or expert_seconds(self, task) <= seconds:
            return self
        return with_short_experts(self, task, seconds)

    def nominal_preparation(self, task: Task) -> float:
        """Seconds of all experts, and of the statistics on their stages, at the nominal speed."""
        return expert_seconds(self, task) + statistics_seconds(self, task)

    def stand_in(self, experts: str) -> Self:
        """This method on other experts, of which the first epoch alone is used: its steps cost what they will."""
        return dataclasses.replace(self, experts=experts, expert_epochs=1, expert_updates=0)

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """This method on experts that are good for timing its steps alone, and the seconds that its own would take.

        What is given is not trained; some updates of one are timed all the same, for the pace of the statistics.
        """
        unit = dataclasses.replace(self.experts_unit(task), path=None)
        with unit.rehearse(task) as (path, seconds):
            width = int(self.network(task).options.get("width", 0))
            pace = seconds / max(1e-9, expert_seconds(dataclasses.replace(self, experts="", width=width), task))
            statistics = pace * statistics_seconds(self, task)
            given = bool(self.experts)
            yield self.stand_in(self.experts if given else str(path)), statistics + (0.0 if given else seconds)


def _width_of(experts: str) -> int:
    """Channels of the networks in a folder; 0 where they have no width."""
    from datastill.surrogates.experts.store import read_meta

    width = read_meta(Path(experts).expanduser())["config"]["network"].get("options", {}).get("width", 0)
    return width if isinstance(width, int) else 0


def expert_seconds(method: Staged, task: Task) -> float:
    """Of all experts at the nominal speed, with what a step costs beside its arithmetic; 0 where they are given."""
    if method.experts:
        return 0.0
    epochs, part = method.epochs_and_part(len(task.real))
    images = part * len(task.real)
    work = 3.0 * images * method.network(task).macs / nominal_speed(task.device.type)
    return method.expert_count * epochs * (work + math.ceil(images / method.expert_batch) * NOMINAL_STEP_SECONDS)


def statistics_seconds(method: Staged, task: Task) -> float:
    """Of the statistics that are taken once, and of choosing the start, at the nominal speed."""
    from datastill.surrogates.stage_starts import HerdedTiles

    plan = method.build(task)
    macs = sum(unit.macs(task) for unit in plan.prepare if unit.name != "experts")
    if isinstance(plan.init, HerdedTiles):
        macs += plan.init.macs(task)
    return macs / nominal_speed(task.device.type)


def step_seconds(method: Staged, task: Task) -> float:
    """Of an image update, at the nominal speed."""
    return nominal_seconds(method.macs_per_step(task), task.device.type)


def affordable(method: S, task: Task, seconds: float, preparation: float, step: float) -> S:
    """The method within a time, where each nominal second of experts and of steps takes so many."""
    whole = preparation * method.nominal_preparation(task) + method.steps * step * step_seconds(method, task)
    if whole <= seconds:
        return method
    cheap: Any = dataclasses.replace(method, real_batch=min(method.real_batch, 32))
    cheap = cheap if cheap.macs_per_step(task) < method.macs_per_step(task) else method
    cheap = with_short_experts(cheap, task, EXPERTS_SHARE * seconds / preparation)
    left = seconds - preparation * cheap.nominal_preparation(task)
    steps = int(max(left, (1 - EXPERTS_SHARE) * seconds / 2) / (step * step_seconds(cheap, task)))
    found: S = dataclasses.replace(cheap, steps=max(20, min(method.steps, steps)))
    return found


def with_short_experts(method: S, task: Task, seconds: float) -> S:
    """Narrow experts of up to 1,200 updates, at least two and as many as the time pays for.

    Where it does not pay for two, they are narrower still, then have fewer updates and statistics of fewer images.
    """
    if method.experts:
        return method
    least, most = min(2, method.expert_count), min(method.expert_updates or _UPDATES, _UPDATES)

    def of(count: int, part: float, width: int) -> Any:
        return dataclasses.replace(
            method.with_part_of_statistics(part),
            width=width,
            expert_count=count,
            expert_updates=max(min(_FEWEST_UPDATES, most), int(most * part)),
            expert_epochs=min(method.expert_epochs, _EPOCHS),
        )

    widest = min(method.width or _WIDTH, _WIDTH)
    for width in sorted({widest, min(widest, _LEAST_WIDTH)}, reverse=True):
        one = of(1, 1.0, width).nominal_preparation(task)
        if seconds >= least * one:
            return of(min(method.expert_count, int(seconds / one)), 1.0, width)
    return of(least, 1 / coarse(least * one / max(seconds, 1e-9)), width)
