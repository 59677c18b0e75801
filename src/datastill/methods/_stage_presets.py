"""What DANCE, TGDD and NCFM share: tiles of pixels in [0, 1], fresh real batches, siamese augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datastill.core.ranges import Momentum, RateOrAuto, Weight
from datastill.surrogates.stage_cost import Staged

if TYPE_CHECKING:
    from typing import Self

    from datastill.core.plan import Plan, Task, UpdateRule
    from datastill.objectives.stage_match import StageMatch
    from datastill.surrogates.experts import ExpertsUnit
    from datastill.surrogates.stages import Stages


@dataclass(frozen=True, kw_only=True)
class StagePreset(Staged):
    """A published method of the family."""

    alpha: Weight = 1.0  #: weight of the cross-entropy
    #: SGD learning rate of the pixels in [0, 1]; 0 is .01 * ipc, from 128 pixels on .1 * ipc
    image_lr: RateOrAuto = 0.0
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels, class after class
    augment: str = "auto"  #: operations of both sides, "none", or "auto": color, crop and cutout

    def for_task(self, task: Task) -> Self:
        """The learning rate of the pixels, which follows images per class and image size."""
        from dataclasses import replace

        base = 0.1 if max(task.real.shape[1:]) >= 128 else 0.01
        return replace(self, image_lr=self.image_lr or base * task.ipc)

    def stages(self, unit: ExpertsUnit, last: int) -> Stages:
        """Which stages are drawn."""
        raise NotImplementedError

    def objective(self) -> StageMatch:
        """What is matched on them."""
        raise NotImplementedError

    def rule(self, task: Task) -> UpdateRule:
        """How the pixels move."""
        from datastill.core.update import SequentialSgd
        from datastill.core.wrapped import Steady

        return Steady(SequentialSgd(self.image_lr, self.image_momentum, rows=task.labels))

    def more(self) -> dict[str, Any]:
        """Further axes of the plan."""
        return {}

    def build(self, task: Task) -> Plan:
        """Stages of experts, fresh batches, tiles of pixels."""
        from datastill.augment.dsa import Dsa
        from datastill.augment.strategies import composite_strategy
        from datastill.core.plan import Plan
        from datastill.decoders.multi_formation import bounded
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches

        strategy = composite_strategy(self.augment, task.real.name, task.real.shape)
        unit, more = self.experts_unit(task), self.more()
        return Plan(
            init=make_init(self.init, factor=self.factor, pixels=True),
            decoder=bounded(self.factor, task.real.space, clamp_every=1),
            objective=self.objective(),
            surrogates=self.stages(unit, self.last_epoch(task)),
            sampler=ClassBatches(self.real_batch),
            augment=None if strategy == "none" else Dsa(strategy, mode="composite"),
            update={"images": self.rule(task), **more.pop("update", {})},
            steps=self.steps,
            prepare=[unit],
            network=self.network(task),
            **more,
        )
