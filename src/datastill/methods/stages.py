"""Stage matching: class statistics on early stages of a few networks that are trained on the real set.

L_c = mean_d (m_d(B_c) - m_d(S_c))^2 / v_d + alpha * mean_{s in S_c} CE(h_w(A s), c)
with m_d the mean of feature d over a class, v_d its variance within classes, and w a snapshot of an expert's training,
drawn at every step. The means of the real side are taken once for every snapshot, over many augmented images of each
class, so that a step costs the synthetic images alone.

- Needs: nothing but the real set and a network family; it trains a few narrow networks first, or takes some.
- Cost: 3 * ipc * factor^2 * C passes of a narrow network a step; before that expert_count * updates * expert_batch * 3
  passes for the experts, and one for each of statistics_images * C images and snapshot.
- Departs: a method of our own. DM (arXiv:2110.04181) matches on fresh networks; DANCE, TGDD and NCFM match on trained
  ones with a fresh real batch in every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from datastill.core.errors import InputError
from datastill.core.ranges import AdamRate, Amount, AnyRate, Count, Few, TilesOrAuto, Weight, WidthOrNone
from datastill.core.registry import method
from datastill.surrogates.stage_cost import CHOSEN, EXPERTS_SHARE, Staged, step_seconds

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Self

    from datastill.core.plan import Init, Plan, Task
    from datastill.surrogates.experts import ExpertsUnit
    from datastill.surrogates.stage_statistics import StageStatistics

#: Pixels of the shorter side from which images are tiled.
TILED_SIDE = 28
#: Color images of a class up to which a side is cut so often.
TILES = ((3, 4), (10, 3))
#: Networks, and updates of each, that a budget buys which pays for more than the defaults; beyond, nothing was won.
LONGER = ((2, 2400), (4, 2400), (4, 4800))
#: Passes over the real set up to which a longer training was tried.
LONGEST = 10


@method("stages", paper="ours, after arXiv:2406.01063", family="distribution")
@dataclass(frozen=True, kw_only=True)
class StageMatching(Staged):
    """Match class statistics on early stages of a few narrow networks, with the real side taken once."""

    settled_by_budget: ClassVar[frozenset[str]] = Staged.settled_by_budget | {"statistics_images"}
    expert_schedule: ClassVar[str] = "constant"
    expert_cutmix: ClassVar[float] = 0.0

    steps: Count = 300  #: image updates
    image_lr: AdamRate = 0.01  #: Adam learning rate of the images, which falls along a cosine
    #: a stored image holds factor x factor smaller ones; 0 takes what suits: 4 for up to 3 color images of a class, 3
    #: for up to 10, 2 for more and for gray ones, and whole images (1) below 28 pixels a side
    factor: TilesOrAuto = 0
    alpha: Weight = 0.03  #: weight of the cross-entropy on the drawn snapshot
    #: start: tiles of real images, "herded" to the means that are matched, or random ones ("mix"), or as in dance
    init: str = "herded"
    #: networks: "snapshots" of training, or "interpolated" between its beginning and its end, which takes fresh images
    law: Literal["snapshots", "interpolated"] = "snapshots"
    moment: Literal["means", "spreads", "cf"] = "means"  #: what is matched: means, standard deviations too, or CF
    snapshots: Few = 4  #: snapshots of each expert, the early ones dense
    #: real images of each class that are looked at once: augmented, on every snapshot; as they are, to choose the start
    statistics_images: Count = 1000
    statistics: Literal["amortized", "fresh"] = "amortized"  #: of real images: taken once, or of a batch in each step
    real_batch: Count = 128  #: real images per class and step where they are fresh
    augment: str = "auto"  #: DSA strategy of images and experts, "none", or "auto": all operations, no flip for digits
    width: WidthOrNone = 64  #: channels of the experts, where the network has a width; 0 keeps the network
    expert_count: Few = 2  #: networks to train on the real set
    expert_epochs: Few = 12  #: short epochs that their updates are cut into
    expert_updates: Amount = 1200  #: updates of each of them; 0 trains for expert_epochs passes over the real set
    expert_lr: AnyRate = 0.02  #: their learning rate, constant

    def tiles(self, task: Task) -> int:
        """As given, or what suits the images and how many there are."""
        if self.factor:
            return self.factor
        if min(task.real.shape[1:]) < TILED_SIDE:
            return 1
        if task.real.shape[0] != 3:
            return 2
        return next((factor for few, factor in TILES if task.ipc <= few), 2)

    def for_task(self, task: Task) -> Self:
        """The number of tiles."""
        return replace(self, factor=self.tiles(task))

    def with_part_of_statistics(self, part: float) -> Self:
        """Statistics of fewer images, and fewer candidates for the start."""
        return replace(
            self, statistics_images=max(min(100, self.statistics_images), int(part * self.statistics_images))
        )

    def with_more_preparation(
        self, task: Task, seconds: float, preparation: float, step: float, given: Collection[str]
    ) -> Self:
        """More and longer experts, for up to three fifths of a time that pays for these and all steps."""
        found = self
        if self.experts or CHOSEN & set(given):
            return found
        steps = self.steps * step * step_seconds(self, task)
        for count, updates in LONGER:
            longer = self._with_more_experts(count, min(updates, LONGEST * len(task.real) // self.expert_batch))
            if preparation * longer.nominal_preparation(task) <= min(EXPERTS_SHARE * seconds, seconds - steps):
                found = longer
        return found

    def _with_more_experts(self, count: int, updates: int) -> Self:
        """At least so many, of at least so many updates, in short epochs of the same length."""
        more = max(count, self.expert_count)
        if not 0 < self.expert_updates < updates:
            return replace(self, expert_count=more)
        epochs = round(self.expert_epochs * updates / self.expert_updates)
        return replace(self, expert_count=more, expert_updates=updates, expert_epochs=epochs)

    def stand_in(self, experts: str) -> Self:
        """On other experts, with statistics of a few images."""
        return replace(super().stand_in(experts), statistics_images=min(8, self.statistics_images))

    def build(self, task: Task) -> Plan:
        """Stages of experts, kept statistics, tiles."""
        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.core.update import Adam, cosine
        from datastill.decoders.multi_formation import MultiFormation
        from datastill.objectives.stage_match import StageMatch
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.stage_statistics import StageStatistics
        from datastill.surrogates.stages import Stages, spread_out

        if self.law == "interpolated" and self.statistics == "amortized":
            raise InputError(
                "Weights between two snapshots are new in every step, so nothing can be taken of them once: give "
                "statistics=fresh (--statistics fresh) with law=interpolated."
            )
        unit, augment = self.experts_unit(task), make_augment(self.augment, task.real.name, task.real.shape)
        epochs = spread_out(self.last_epoch(task), self.snapshots)
        kept = StageStatistics(unit, epochs, self.statistics_images, augment, self.moment, seed=self.expert_seed)
        fresh = self.statistics == "fresh"
        pad = 0.5 if task.real.space.kind == "raw" else 0.0
        return Plan(
            init=self._init(unit, kept, epochs, self.tiles(task)),
            decoder=MultiFormation(self.tiles(task), pad=pad),
            objective=StageMatch(
                self.moment, self.alpha, None if fresh else kept, siamese=False, standardized=True, frequencies=1024
            ),
            surrogates=Stages(unit, epochs, self.law, "same" if self.alpha else "none"),
            sampler=ClassBatches(self.real_batch) if fresh else None,
            augment=augment,
            update={"images": Adam(self.image_lr, schedule=cosine)},
            steps=self.steps,
            prepare=[unit] if fresh else [unit, kept],
            network=self.network(task),
        )

    def _init(self, unit: ExpertsUnit, kept: StageStatistics, epochs: tuple[int, ...], tiles: int) -> Init:
        """Herded on an early and on the last snapshot, or as it is called."""
        from datastill.sampling.inits import make_init
        from datastill.surrogates.stage_starts import HerdedTiles

        if self.init != "herded":
            return make_init(self.init, tiles, others=("herded",))
        positions = tuple(sorted({len(epochs) // 2 - 1, len(epochs) - 1} - {-1}))
        means = kept if self.statistics == "amortized" and self.moment != "cf" else None
        return HerdedTiles(unit, epochs, means, positions, tiles, self.statistics_images)

    def macs_per_step(self, task: Task) -> float:
        """Forward and backward to the pixels, about three passes, per rendered image; fresh real ones beside them."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts) if self.statistics == "fresh" else 0
        return self.network(task).macs * (real + 3 * self.decoded(task))
