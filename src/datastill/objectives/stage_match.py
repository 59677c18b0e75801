"""Match class statistics of features on a stage of a trained network, with a cross-entropy beside it.

L_c = dist({f_w(A x)}_{x in B_c}, {f_w(A s)}_{s in S_c}) + alpha * mean_{s in S_c} CE(h_w'(A s), c)

DANCE, TGDD, NCFM and the amortized version of ours differ in which stages are drawn (`surrogates.stages`), the
distance, alpha, and where the real side comes from: a batch of each step, or statistics that were taken once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.context import Context, class_means
from datastill.core.plan import Grads
from datastill.engines.features import features_of
from datastill.models import couples_samples
from datastill.objectives.moments import Moment, Reference, distance, statistic, within_variance
from datastill.objectives.siamese import augmented, draw_siamese
from datastill.objectives.sides import most_in_a_group, synthetic_side

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord
    from datastill.models.base import Network
    from datastill.surrogates.stages import Stage

#: The leaf that scales frequencies, one number for each `PER_SCALE` of them (psi of NCFM, a scale mixture of normals).
PSI, PER_SCALE = "psi", 16


class Amortized(Protocol):
    """Statistics of the real side that were prepared for every stage."""

    def of(self, prepared: Mapping[str, Mapping[str, Tensor]], stage: Stage) -> Reference:
        """Those of a stage."""
        ...


@dataclass(frozen=True)
class StageMatch:
    """Loss per class of the block, and its gradient for every synthetic image, in groups of classes.

    Args:
        moment: what is compared.
        alpha: weight of the cross-entropy.
        kept: statistics of the real side that were prepared; None takes the sampler's batch of each step.
        siamese: one augmentation per class and step, on fresh batches the same for both sides; else one per image.
        standardized: whether squared differences are divided by the variance within classes, and averaged.
        frequencies: of characteristic functions on fresh batches.
        scale: of the distance.
    """

    moment: Moment = "means"
    alpha: float = 0.0
    kept: Amortized | None = None
    siamese: bool = True
    standardized: bool = False
    frequencies: int = 4096
    scale: float = 1.0

    @property
    def reduces(self) -> bool:
        """Whether all it takes of real images goes through `context.reduce`."""
        return self.kept is None and self.moment == "means" and not self.standardized

    def __call__(self, context: Context) -> Grads:
        """Loss per class of the block, and its gradient for every synthetic image and for psi, where there is one."""
        stage = cast("Stage", context.surrogate)
        shared = draw_siamese(context) if self.siamese else None
        real = self.kept.of(context.prepared, stage) if self.kept else self._fresh(context, stage.network, shared)
        assert context.synthetic is not None
        record = shared if self.siamese else self._record(context, len(context.synthetic.x))
        psi = {PSI: context.codes[PSI]} if PSI in context.codes else {}
        joint = bool(psi) or couples_samples(stage.network)
        size = 0 if joint or not context.task.compile else most_in_a_group(context.synthetic.y, context.chunk)

        def loss(x: Tensor, y: Tensor, group: Tensor) -> Tensor:
            return self._loss(stage, x, y, group, real, size)

        return synthetic_side(context, record, joint, loss, per_image=not self.siamese, leaves=psi)

    def _loss(self, stage: Stage, images: Tensor, y: Tensor, group: Tensor, real: Reference, size: int) -> Tensor:
        """Of the classes in `group`, (g,)."""
        classes = len(real.values)
        features = features_of(stage.network, images, size)
        loss = self.scale * distance(self.moment, real, statistic(self.moment, features, y, classes, t=real.t), group)
        if not self.alpha or stage.classifier is None:
            return loss
        same = stage.classifier is stage.network
        logits = stage.classifier.classify(features) if same else stage.classifier(images)
        each = F.cross_entropy(logits.float(), y, reduction="none")
        return loss + self.alpha * class_means(each[:, None], y, classes)[group, 0]

    def _fresh(self, context: Context, network: Network, shared: DsaRecord | None) -> Reference:
        """The statistics of this step's real batch."""
        batch = context.real_batch()
        record = shared if self.siamese else self._record(context, len(batch), "augment-real")
        size = len(batch) if couples_samples(network) else context.chunk
        with torch.no_grad():
            features = torch.cat(
                [
                    features_of(network, augmented(batch.x[k], batch.y[k] if self.siamese else k, context, record))
                    for k in torch.arange(len(batch), device=batch.x.device).split(size)
                ]
            )
        classes, t = context.task.classes, None
        variance = within_variance(features, batch.y, classes, batch.weight) if self.standardized else None
        if self.moment == "means":
            return Reference(context.reduce(features, batch.y, batch.weight), variance)
        if self.moment == "cf":
            t = self._frequencies(context, features.shape[1])
        return Reference(statistic(self.moment, features, batch.y, classes, batch.weight, t), variance, t)

    def _frequencies(self, context: Context, d: int) -> Tensor:
        """t ~ N(0, I), (F, d), scaled by exp(psi) where psi is learned, with its graph."""
        t = torch.randn(self.frequencies, d, generator=context.generator("frequencies")).to(context.device)
        psi = context.codes.get(PSI)
        return t if psi is None else t * psi.exp().repeat_interleave(PER_SCALE)[: len(t), None]

    def _record(self, context: Context, rows: int, purpose: str = "augment") -> DsaRecord | None:
        augment = context.plan.augment
        return None if augment is None else augment.draw(rows, context.task.real.shape, context.generator(purpose))
