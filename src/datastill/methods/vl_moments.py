"""Vision-language distillation by moments: means, covariances and cross-covariance of two random towers' embeddings.

L = sum over towers |m - m'|^2 / tr C + |C - C'|^2 / |C|^2  +  w |X - X'|^2 / |X|^2
with m, C the mean and covariance of a tower's embeddings of real pairs, X the cross-covariance between the towers, m',
C', X' those of the synthetic pairs, under a new random pair of towers every step. DM (arXiv:2110.04181) for pairs.

- Needs: nothing but the real set of pairs and a network family.
- Cost: real_batch forward + 3 * pairs passes of the image network a step; no experts, and memory of one step.
- Departs: from vl-mtt in that nothing is trained beforehand and no student is unrolled; no learning rate is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from datastill.core.ranges import AdamRate, Count, Weight
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@method("vl-moments", paper="ours", family="vision-language")
@dataclass(frozen=True, kw_only=True)
class VLMoments(Method):
    """Match first and second moments of both towers' embeddings, and their cross-covariance."""

    takes: ClassVar[tuple[str, ...]] = ("pairs",)
    compiles: ClassVar[bool] = False

    steps: Count = 2_000  #: updates of the pairs
    real_batch: Count = 256  #: real pairs per step
    image_lr: AdamRate = 0.03  #: learning rate of the pixels, Adam
    text_lr: AdamRate = 0.005  #: learning rate of the sentences' vectors, Adam
    cross: Weight = 1.0  #: w, weight of the cross-covariance, which alone tells what belongs together
    decay: Literal["none", "cosine"] = "cosine"  #: how both learning rates fall over the steps
    init: str = "real"  #: start from distinct "real" pairs or from "noise"

    def usual_network(self) -> str:
        """A small image tower: pairs are learned from scratch, and towers of other widths learn them too."""
        return "convnet:width=32,norm=group"

    def build(self, task: Task) -> Plan:
        """Fresh towers, their moments, pixels and vectors of sentences."""
        from datastill.core.plan import Plan
        from datastill.core.update import Adam, cosine
        from datastill.decoders.pixels import Pixels
        from datastill.labels.sentences import SentenceVectors
        from datastill.objectives.pair_moments import MatchPairMoments
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.fresh import Fresh

        schedule = cosine if self.decay == "cosine" else None
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=MatchPairMoments(self.cross),
            surrogates=Fresh(task.network),
            sampler=ClassBatches(self.real_batch),
            labels=SentenceVectors(),
            update={
                "images": Adam(lr=self.image_lr, schedule=schedule),
                "labels": Adam(lr=self.text_lr, schedule=schedule),
            },
            steps=self.steps,
            network=task.network,
        )

    def macs_per_step(self, task: Task) -> float:
        """One pass per real image; forward and backward to the pixels, about three, per synthetic one."""
        return task.network.macs * (min(self.real_batch, len(task.real)) + 3.0 * len(task.labels))
