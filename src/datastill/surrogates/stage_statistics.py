"""Class statistics of real features on every stage of every expert, taken once: the real side of a step costs nothing.

Images are augmented as the synthetic ones are, one augmentation for each, so that both sides are means under one
distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.plan import Task, chunk_for
from datastill.core.precision import casting
from datastill.core.rng import Rng
from datastill.core.threads import threads_for
from datastill.engines.features import features_of
from datastill.models import couples_samples
from datastill.models.code import code_key
from datastill.objectives.moments import Moment, Reference, statistic, within_variance
from datastill.store.files import digest
from datastill.surrogates.stages import open_experts

if TYPE_CHECKING:
    from datastill.augment.dsa import Dsa
    from datastill.models.base import Network
    from datastill.surrogates.experts import ExpertsUnit
    from datastill.surrogates.stages import Stage


@dataclass(frozen=True)
class StageStatistics:
    """A prepared unit: `values` (E, S, C, k) and `variance` (E, S, d) for E experts and S snapshots.

    Args:
        unit: prepares the experts.
        epochs: the snapshots.
        per_class: real images of each class on each stage; all of a class that has fewer.
        augment: of each image, or None.
        moment: what is taken.
        frequencies: of characteristic functions, drawn once for each stage.
        seed: of every draw; not the run's, so that runs of all seeds share it.
    """

    unit: ExpertsUnit
    epochs: tuple[int, ...]
    per_class: int
    augment: Dsa | None
    moment: Moment = "means"
    frequencies: int = 1024
    seed: int = 0

    name = "stage-statistics"

    @property
    def needs(self) -> tuple[str, ...]:
        """The experts."""
        return (self.unit.name,)

    def key(self, task: Task) -> dict[str, Any]:
        """What the statistics depend on besides the experts."""
        factory = self.unit.network or task.network
        return {
            "unit": self.name,
            "epochs": list(self.epochs),
            "per_class": self.per_class,
            "augment": str(self.augment),
            "moment": self.moment,
            **({"frequencies": self.frequencies} if self.moment == "cf" else {}),
            "seed": self.seed,
            "network": factory.describe(),
            **code_key(factory),
            "data": task.real.fingerprint,
            "weights": None if task.real.weights is None else digest(task.real.weights),
            "space": task.real.space.id,
            "device": task.device.type,
            "precision": task.precision,
            **({"compile": True} if task.compile else {}),
        }

    def macs(self, task: Task) -> float:
        """One pass for each image and stage."""
        images = sum(min(self.per_class, int(n)) for n in task.real.counts)
        return float(self.unit.count * len(self.epochs) * images * (self.unit.network or task.network).macs)

    def run(self, task: Task) -> dict[str, Tensor]:
        """Take them."""
        factory = self.unit.network or task.network
        buffer = open_experts(self.unit, task, task.prepared[self.unit.name], self.epochs)
        network = factory(0).to(task.device).requires_grad_(False).eval()
        stages = [(k, s) for k in range(len(buffer)) for s in range(len(self.epochs))]
        values, variances = [], []
        with threads_for(factory.macs), torch.no_grad():
            for done, (k, s) in enumerate(stages):
                buffer.load(network, buffer.experts[k], self.epochs[s])
                found = self._on_stage(network, task, Rng(self.seed).child("stage", k, self.epochs[s]), (k, s))
                values.append(found.values)
                variances.append(found.variance)
                task.progress("statistics of stages", done + 1, len(stages), {})
        shape = (len(buffer), len(self.epochs))
        return {
            "values": torch.stack(values).view(*shape, *values[0].shape),
            "variance": torch.stack([v for v in variances if v is not None]).view(*shape, -1),
        }

    def of(self, prepared: Mapping[str, Mapping[str, Tensor]], stage: Stage) -> Reference:
        """The statistics of a stage, on the device of its network."""
        mine, device = prepared[self.name], next(stage.network.parameters()).device
        values, variance = (mine[name][stage.expert, stage.position].to(device) for name in ("values", "variance"))
        t = self._t((stage.expert, stage.position), variance.shape[0]) if self.moment == "cf" else None
        return Reference(values, variance, None if t is None else t.to(device))

    def _on_stage(self, network: Network, task: Task, rng: Rng, stage: tuple[int, int]) -> Reference:
        classes = task.classes
        rows: list[Tensor | None] = []
        variances = []
        for c in range(classes):
            batch = task.real.of_classes([c], self.per_class, rng.generator("real", c)).to(task.device)
            features = self._features(network, batch, task, rng.generator("augment", c))
            y = torch.zeros(len(features), dtype=torch.int64, device=features.device)
            if not len(features):
                rows.append(None)
                continue
            t = self._t(stage, features.shape[1]) if self.moment == "cf" else None
            rows.append(statistic(self.moment, features, y, 1, batch.weight, t)[0].cpu())
            variances.append(within_variance(features, y, 1, batch.weight).cpu())
        empty = torch.zeros_like(next(row for row in rows if row is not None))
        return Reference(torch.stack([empty if r is None else r for r in rows]), torch.stack(variances).mean(0))

    def _features(self, network: Network, batch: Batch, task: Task, generator: torch.Generator) -> Tensor:
        images = batch.x
        if self.augment is not None and len(images):
            images = self.augment.apply(images, self.augment.draw(len(images), task.real.shape, generator))
        return features_in_chunks(network, images, task, (self.unit.network or task.network).macs)

    def _t(self, stage: tuple[int, int], d: int) -> Tensor:
        generator = Rng(self.seed).generator("frequencies", *stage)
        return torch.randn(self.frequencies, d, generator=generator)


def features_in_chunks(network: Network, images: Tensor, task: Task, macs: float) -> Tensor:
    """Features (n, d) float32 of images of the task, at its precision and by compiled code where it asks for that.

    Args:
        network: in evaluation mode.
        images: (n, c, h, w).
        task: at work.
        macs: multiply-accumulates of the network for an image.
    """
    with casting(task.device, task.precision):
        if couples_samples(network) or not len(images):
            return features_of(network, images)
        size = chunk_for(macs, task.device)
        if task.compile:
            return features_of(network, images, size)
        return torch.cat([features_of(network, part) for part in images.split(size)])
