"""What real images look like inside a backbone, measured in one pass: the targets that batch norm does not keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datastill.augment.strategies import strategy_for
from datastill.augment.trace import TraceSpec
from datastill.core.plan import Task
from datastill.core.rng import Rng
from datastill.engines.layer_statistics import has_targets, matched_layers, moments_of, moments_per_image, watching
from datastill.surrogates.teachers import TeacherSource

#: Images of one batch, whose mean and variance are averaged with those of the others.
BATCH = 256


@dataclass(frozen=True, eq=False)
class LayerTargets:
    """A prepared unit: `layer/{j}/{i}`, statistic i of layer j over all images; `class/{j}/{i}` (C, d) of each class.

    The statistics are those of `engines.layer_statistics.moments_of`. Over all images they are means over batches, by
    their size, of the batches' means and biased variances, and of convolutions only; of a class, means over its images
    of each image's own, and with `total` the variance of the images' means is added to that within them.

    Args:
        source: the backbone.
        per_class: real images of each class; all of a class that has fewer.
        classes: whether statistics of each class are measured too.
        total: see above.
        seed: of choice and augmentation; not the run's, so that runs of all seeds share it.
    """

    source: TeacherSource
    per_class: int
    classes: bool = False
    total: bool = True
    seed: int = 0

    @property
    def name(self) -> str:
        """One file for each backbone."""
        return f"statistics-of-{self.source.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The backbone."""
        return (self.source.name,)

    def key(self, task: Task) -> dict[str, Any]:
        """What the statistics depend on besides the backbone."""
        return {
            "unit": "layer-targets",
            "per_class": self.per_class,
            "classes": self.classes,
            **({"total": self.total} if self.classes else {}),
            "seed": self.seed,
            "data": task.real.fingerprint,
            "space": task.real.space.id,
            "device": task.device.type,
            "precision": task.precision,
        }

    def macs(self, task: Task) -> float:
        """A pass for each image."""
        return float(sum(min(self.per_class, int(n)) for n in task.real.counts) * task.network.macs)

    def run(self, task: Task) -> dict[str, Tensor]:
        """Measure them."""
        prepared = dict(task.prepared[self.source.name])
        teacher = self.source.teacher(task, prepared)
        network = teacher.seen_from(task.real.space, task.real.class_names).to(task.device)
        layers = dict(enumerate(matched_layers(network)))
        rng = Rng(self.seed).child("layer-targets")
        chosen = [self._some(task.real.class_index(c), rng.generator("choice", c)) for c in range(task.classes)]
        order = torch.cat(chosen)
        order = order[torch.randperm(len(order), generator=rng.generator("order"))]
        sums, per_class = _Sums(), _ClassSums(task.classes)
        flip = "flip" in strategy_for(task.real.name, task.real.shape)
        spec = TraceSpec(crop="padded", pad=max(1, min(task.real.shape[1:]) // 8), flip=flip)
        parts = order.split(BATCH)
        for b, index in enumerate(parts):
            batch = task.real.batch(index)
            trace = spec.sample(rng.generator("augment", b), len(index), task.real.shape)
            self._measure(network, layers, trace.apply(batch.x).to(task.device), batch.y, (sums, per_class))
            task.progress(f"statistics of {self.source.name}", b + 1, len(parts), {})
        found = {f"layer/{name}": value for name, value in sums.means().items()}
        if self.classes:
            found |= {f"class/{name}": value for name, value in per_class.means(self.total).items()}
        return {"images": torch.tensor(len(order)), **found}

    def _some(self, members: Tensor, generator: torch.Generator) -> Tensor:
        if len(members) <= self.per_class:
            return members
        return members[torch.randperm(len(members), generator=generator)[: self.per_class]]

    def _measure(
        self,
        network: nn.Module,
        layers: Mapping[int, nn.Module],
        x: Tensor,
        y: Tensor,
        into: tuple[_Sums, _ClassSums],
    ) -> None:
        sums, per_class = into

        def note(j: int, given: Tensor) -> None:
            if not has_targets(layers[j]):
                sums.add(j, moments_of(layers[j], given), len(given))
            if self.classes:
                per_class.add(j, moments_per_image(layers[j], given), y)

        wanted = {j: layer for j, layer in layers.items() if self.classes or not has_targets(layer)}
        with torch.no_grad(), watching(wanted, note):
            network(x)


class _Sums:
    """Means over batches by their size."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[int, int] = {}

    def add(self, j: int, moments: tuple[Tensor, ...], count: int) -> None:
        self.counts[j] = self.counts.get(j, 0) + count
        for i, value in enumerate(moments):
            name, part = f"{j}/{i}", count * value.double().cpu()
            self.totals[name] = self.totals.get(name, torch.zeros_like(part)) + part

    def means(self) -> dict[str, Tensor]:
        return {name: (total / self.counts[int(name.split("/")[0])]).float() for name, total in self.totals.items()}


class _ClassSums:
    """Means over the images of each class, of each image's own statistics and of its squared means."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def add(self, j: int, moments: tuple[Tensor, ...], y: Tensor) -> None:
        self.counts[j] = self.counts.get(j, torch.zeros(self.classes)) + torch.bincount(y, minlength=self.classes)
        squares = {f"{j}/{i}/square": moments[i].double().square() for i in range(0, len(moments), 2)}
        for name, value in {**{f"{j}/{i}": m for i, m in enumerate(moments)}, **squares}.items():
            part = torch.zeros(self.classes, value.shape[1], dtype=torch.float64)
            part.index_add_(0, y.cpu(), value.double().cpu())
            self.totals[name] = self.totals.get(name, torch.zeros_like(part)) + part

    def means(self, total: bool) -> dict[str, Tensor]:
        each = {n: t / self.counts[int(n.split("/")[0])].clamp_min(1)[:, None] for n, t in self.totals.items()}
        found = {name: value for name, value in each.items() if not name.endswith("square")}
        if total:
            for name in [n for n in found if int(n.split("/")[1]) % 2]:  # variances follow their means
                j, i = (int(part) for part in name.split("/"))
                mean = each[f"{j}/{i - 1}"]
                found[name] = found[name] + (each[f"{j}/{i - 1}/square"] - mean.square()).clamp_min(0)
        return {name: value.float() for name, value in found.items()}
