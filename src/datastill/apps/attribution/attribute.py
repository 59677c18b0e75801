"""Attributions against distilled images of the coarse class, beside the usual baselines.

A network learns the fine classes. What of an image tells its class from the others of its family is asked against an
image that stands for the family alone: one that was distilled from the coarse labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from datastill.apps.attribution.coarse import coarse, families
from datastill.apps.attribution.gradients import completeness, integrated_gradients, score
from datastill.apps.attribution.quality import area, curve, undecided
from datastill.core.plan import Task
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.distillation.distill import distill
from datastill.models import resolve_network
from datastill.models.resolve import NetworkSpec
from datastill.store.outputs import Kind
from datastill.training.feature_network import FeatureNetwork, load_weights

ATTRIBUTION = Kind("attribution", "attribution.json", ("config", "quality"))
HEADS = ["baseline", "deletion (lower is better)", "insertion (higher)", "undecided at it", "completeness gap %"]
#: What tells of an image that is no baseline of its own.
DISTILLED, WRONG = "distilled, own family", "distilled, another family"


@dataclass(frozen=True)
class Quality:
    """Of one baseline, over all images."""

    deletion: float  #: area under the probability of the class while its highest pixels are replaced
    insertion: float  #: area while they alone are shown
    undecided: float  #: entropy of the network at the baseline over that of guessing
    gap: float  #: median completeness gap, 0 for an exact integral


@dataclass(frozen=True)
class Attributions:
    """Attributions of test images by baseline.

    Attributes:
        images: pixels (n, c, h, w) in [0, 1].
        target: the fine class that is explained, (n,): the network's answer.
        maps: by baseline, (n, c, h, w) in the data's Space.
        baselines: by name, pixels in [0, 1], (1 or n, c, h, w).
        quality: by baseline.
        accuracy: of the network on the test split.
        config: what was asked.
    """

    images: Tensor
    target: Tensor
    maps: Mapping[str, Tensor]
    baselines: Mapping[str, Tensor]
    quality: Mapping[str, Quality]
    accuracy: float
    class_names: tuple[str, ...]
    config: dict[str, Any]

    @property
    def verdict(self) -> str:
        """Which baseline's attributions name the pixels that count, in words."""
        best = min(self.quality, key=lambda name: self.quality[name].deletion)
        own, wrong = self.quality[DISTILLED], self.quality[WRONG]
        beside = "below" if own.deletion < wrong.deletion else "not below"
        return (
            f"Replacing the highest pixels lowers the class most for the baseline '{best}' (area "
            f"{self.quality[best].deletion:.3f}). Distilled images of the own family: {own.deletion:.3f}, {beside} "
            f"those of another family ({wrong.deletion:.3f})."
        )

    def rows(self) -> list[list[str]]:
        """Of the table, a baseline each."""
        return [
            [name, f"{q.deletion:.3f}", f"{q.insertion:.3f}", f"{q.undecided:.2f}", f"{100 * q.gap:.2f}"]
            for name, q in self.quality.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every number, no pixels."""
        quality = {name: asdict(q) for name, q in self.quality.items()}
        return {"config": self.config, "accuracy": self.accuracy, "quality": quality, "verdict": self.verdict}


def attribute(
    real: RealSet,
    method: Any = "dm",
    *,
    groups: str = "auto",
    ipc: int = 1,
    network: NetworkSpec = None,
    images: int = 100,
    nodes: int = 50,
    passes: int = 3,
    explained: str = "logit",
    seed: int = 0,
    progress: Callable[[str, float, float, dict[str, float]], None] = lambda *told: None,
    callbacks: Any = (),
    **options: Any,
) -> Attributions:
    """Distill the families of classes, train a network on the classes, explain it.

    Args:
        real: with fine classes and a test split.
        method: of distillation: a name, or a method of one's own.
        groups: families of classes, see `families`.
        ipc: distilled images of each family; of several, attributions are averaged.
        network: that is explained, and distilled with; a ConvNet that fits if None.
        images: test images at most.
        nodes: of the integral.
        passes: of the network's training over the real set.
        explained: "logit" or "log-probability".
        seed: of all draws.
        progress, callbacks: as for `distill`.
        options: further arguments of `distill`.

    Raises:
        InputError: no test split, families that do not cover the classes, or what `distill` refuses.
    """
    test = real.known_test
    names, of_class = families(real, groups)
    options = {"budget": 60.0, **options} if not {"steps", "recipe", "budget"} & set(options) else options
    made = distill(method, coarse(real, names, of_class), ipc=ipc, network=network, seed=seed, progress=progress,
                   callbacks=callbacks, **options)  # fmt: skip
    learner = trained(real, network, passes, seed, progress)
    rng = Rng(seed)
    chosen = torch.randperm(len(test), generator=rng.generator("attribution", "images"))[:images]
    x, y = test.batch(chosen).x, test.labels[chosen]
    with torch.no_grad():
        target = learner(x).argmax(1)
    stored = torch.stack([made.images[made.hard_labels == k] for k in range(len(names))], dim=1)  # (ipc, families, ...)
    baselines = baselines_of(real, x, stored, of_class[target], rng.generator("attribution", "noise"))
    fill = real.space.encode(mean_image(real).mean((2, 3), keepdim=True).expand(1, *real.shape))  # of no baseline
    maps, quality = {}, {}
    for k, (name, one) in enumerate(baselines.items()):
        progress("attributions", k, len(baselines), {})
        maps[name], quality[name] = explained_by(learner, x, target, one, fill, nodes, explained)
    progress("attributions", len(baselines), len(baselines), {})
    pixels = {n: real.space.decode(b if b.ndim == 4 else b[0]).clamp(0, 1) for n, b in baselines.items()}
    config = {"data": real.name, "method": made.record.method, "families": list(names), "ipc": ipc, "images": len(x),
              "nodes": nodes, "passes": passes, "explained": explained, "seed": seed,
              "network": made.record.network.spec if made.record.network else ""}  # fmt: skip
    right = float((target == y).double().mean())
    shown = test.pixels(chosen)
    return Attributions(shown, target, maps, pixels, quality, right, tuple(real.class_names), config)


def explained_by(
    learner: nn.Module, x: Tensor, target: Tensor, baseline: Tensor, fill: Tensor, nodes: int, explained: str
) -> tuple[Tensor, Quality]:
    """Attributions against one baseline, and how good they are."""
    scores = score(learner, explained)
    several = baseline if baseline.ndim == x.ndim + 1 else baseline[None]
    each = [integrated_gradients(scores, x, one, target, nodes) for one in several]
    found = torch.stack(each).mean(0)
    gap = completeness(scores, x, several[0], target, each[0]).median()
    areas = [area(curve(learner, x, target, found, fill, insert=insert)) for insert in (False, True)]
    return found, Quality(areas[0], areas[1], undecided(learner, several.flatten(0, 1)), float(gap))


def baselines_of(
    real: RealSet, x: Tensor, stored: Tensor, family: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Baselines for images (n, c, h, w) by name, in the data's Space.

    Args:
        real: whose pixels they are.
        x: the images, in the Space.
        stored: distilled images (m, families, c, h, w).
        family: of every image, (n,).
        generator: of the noise.
    """
    mean, pixels = mean_image(real), real.space.decode(x)
    side = 2 * (min(x.shape[2:]) // 8) + 1
    blurred = pixels
    for _ in range(3):  # nearly a Gaussian
        blurred = avg_pool2d(blurred, side, stride=1, padding=side // 2, count_include_pad=False)
    noise = torch.rand(pixels.shape, generator=generator)
    other = (family + 1) % stored.shape[1]
    encode = real.space.encode
    return {
        "black": encode(torch.zeros_like(mean)),
        "mean image": encode(mean),
        "blurred": encode(blurred),
        "uniform noise": encode(noise),
        DISTILLED: stored[:, family],
        WRONG: stored[:, other],
    }


def mean_image(real: RealSet) -> Tensor:
    """Of 2,000 training images, pixels (1, c, h, w)."""
    few = torch.linspace(0, len(real) - 1, min(len(real), 2000)).long()
    return real.pixels(few).mean(0, keepdim=True)


def trained(real: RealSet, network: NetworkSpec, passes: int, seed: int, progress: Any) -> nn.Module:
    """A network trained on the real set with its fine classes, in evaluation mode."""
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    task = Task(real, 1, factory, seed=seed, runtime=Runtime(progress=progress))
    unit = FeatureNetwork(passes)
    learner = factory(0)
    load_weights(learner, unit.run(task))
    return learner.eval().requires_grad_(False)
