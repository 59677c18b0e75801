"""What methods share that recover from several trained networks by turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from datastill.core.ranges import AdamRate, Count, Momentum, Pixels, Share, Weight
from datastill.core.registry import nominal_speed
from datastill.methods._squeezed import Squeezed

if TYPE_CHECKING:
    from datastill.augment.recovery_views import RecoveryViews
    from datastill.core.plan import Init, Plan, Task
    from datastill.models.factory import NetworkFactory
    from datastill.objectives.layer_match import LayerMatch
    from datastill.surrogates.backbones import Backbone
    from datastill.surrogates.layer_targets import LayerTargets


@dataclass(frozen=True, kw_only=True)
class Backbones(Squeezed):
    """Statistics of several networks, which label the set together."""

    #: networks beside the first, which --network or --teacher gives: names or folders of teachers with "+" between
    #: them, "none", or "auto": a narrower ConvNet with other pools
    backbones: str = "auto"
    #: what is done with a network whose normalization keeps no statistics: refuse it, or match its convolutions alone
    without_bn: Literal["refuse", "convolutions"] = "refuse"
    steps: Count = 4_000  #: image updates of every block, the networks by turns
    image_lr: AdamRate = 0.05  #: Adam's learning rate of the pixels, which falls to 0 along a cosine
    r_statistics: Weight | Literal["auto"] = "auto"  #: weight of the statistics; auto finds one for each network
    first_layer: Weight = 10.0  #: weight of the first layer's statistics; the others have 1
    ema: Momentum = 0.8  #: of the moving averages of the statistics; 0.4 on ImageNet-1K
    ema_start: Literal["first", "zero"] = "first"  #: begin them at the first statistic, or at zero as released
    statistics_images: Count = 10_000  #: real images of each class on which statistics are measured
    block_images: Count = 100  #: images of a block, which holds all images of a class
    crop: bool = False  #: random resized crops in recovery, as published at 224 pixels
    low_scale: Share = 0.08  #: smallest share of the image in a crop
    jitter: Pixels = 4  #: circular shift by up to so many pixels; the released scripts have 32 at every size
    #: end as 8-bit pixels, rounded or cut off (floor, as released), so that labels are those of what a file keeps
    quantize: Literal["none", "round", "floor"] = "none"

    voids: ClassVar[dict[str, tuple[str, ...]]] = {}
    combine: ClassVar[str] = "mean"  #: how the networks' labels are combined
    categories: ClassVar[bool] = False  #: whether statistics of each class are matched
    matches_statistics: ClassVar[bool] = False  #: asked of each backbone, which may do without

    def build(self, task: Task) -> Plan:
        """Backbones and their targets, class-major blocks of pixels kept inside the valid range."""
        from datastill.core.plan import ClassMajor, Plan
        from datastill.core.update import Adam, cosine
        from datastill.core.wrapped import Quantized
        from datastill.decoders.pixels import Pixels
        from datastill.surrogates.backbones import RoundRobin

        sources = self.sources(task)
        sources[0].refuse_without_statistics(task)
        targets = [self.targets(source) for source in sources]
        adam = Adam(lr=self.image_lr, betas=(0.5, 0.9), schedule=cosine)
        return Plan(
            init=self.start(sources[0]),
            decoder=Pixels(clamp=True),
            objective=self.objective(task, self.views(task), [unit.name for unit in targets]),
            surrogates=RoundRobin(sources),
            update={"images": Quantized(adam, task.real.space, self.quantize)},
            partition=ClassMajor(max(1, self.block_images // task.ipc)),
            steps=self.steps,
            prepare=(*sources, *targets),
            network=task.network,
            student=lambda shared: {"labels": "teacher", "combine": self.combine, **self.trained_on()},
            companions=lambda prepared: {s.name: s.teacher(task, prepared[s.name]) for s in sources},
        )

    def trained_on(self) -> dict[str, Any]:
        """What else the manifest says of how the set wants to be trained on."""
        return {}

    def start(self, source: Backbone) -> Init:
        """Where the images start."""
        raise NotImplementedError

    def objective(self, task: Task, views: RecoveryViews, units: list[str]) -> LayerMatch:
        """What is matched, with the names of the units that prepare the targets."""
        raise NotImplementedError

    def targets(self, source: Backbone) -> LayerTargets:
        """The targets of a backbone."""
        from datastill.surrogates.layer_targets import LayerTargets

        return LayerTargets(source, self.statistics_images, self.categories)

    def views(self, task: Task) -> RecoveryViews:
        """How a block is seen at a step."""
        from datastill.augment.recovery_views import EasyToHard, RecoveryViews
        from datastill.augment.strategies import strategy_for

        crop = EasyToHard(low=self.low_scale, milestone=0.0) if self.crop else None
        return RecoveryViews(crop, "flip" in strategy_for(task.real.name, task.real.shape), self.jitter)

    def further(self, task: Task) -> list[Any]:
        """The backbones beside the first: factories of those to train, and teachers that were brought.

        Raises:
            InputError: no such network, or one that does not take the images.
        """
        from datastill.models import default_options, resolve_network
        from datastill.surrogates.teachers import Teacher, as_teacher

        shape = task.real.shape
        shapes: dict[str, Any] = {"channels": shape[0], "classes": task.classes, "size": (shape[1], shape[2])}
        if self.backbones == "auto":
            usual = {**default_options(min(shape[1:])), "norm": "batch", "pool": "max"}
            usual["width"] = max(1, usual.get("width", 128) // 2)
            options = ",".join(f"{name}={value}" for name, value in usual.items())
            return [resolve_network(f"convnet:{options}", **shapes)]
        given: Any = self.backbones
        named = [] if given in ("", "none") else given.split("+") if isinstance(given, str) else list(given)
        found = []
        for one in named:
            brought = isinstance(one, Teacher) or (isinstance(one, str) and _holds_teacher(one.strip()))
            found.append(as_teacher(one, None, "--backbones") if brought else resolve_network(one, **shapes))
        return found

    def sources(self, task: Task) -> list[Backbone]:
        """All backbones, the first of which is the task's network or the teacher."""
        from datastill.surrogates.backbones import Backbone
        from datastill.surrogates.teachers import Brought, Squeeze, Teacher

        lenient = self.without_bn == "convolutions"
        squeeze = Squeeze(self.squeeze_passes, self.squeeze_lr, batch=self.squeeze_batch, statistics=False)
        found = [Backbone(self.source(task), convolutions=lenient)]
        for k, one in enumerate(self.further(task), start=1):
            if isinstance(one, Teacher):
                found.append(Backbone(Brought(one, False), f"teacher-{k}", convolutions=lenient))
            else:
                found.append(Backbone(squeeze, f"teacher-{k}", one, lenient))
        return found

    def squeezed(self, task: Task) -> list[NetworkFactory]:
        """Those of the backbones that are not brought."""
        from datastill.surrogates.teachers import Teacher

        return super().squeezed(task) + [one for one in self.further(task) if not isinstance(one, Teacher)]

    def macs_per_step(self, task: Task) -> float:
        """About three passes an image, on the mean of the backbones."""
        networks = self.squeezed(task) or [task.network]
        return 3.0 * sum(n.macs for n in networks) / len(networks) * len(task.labels)

    def selection_macs(self, task: Task) -> float:
        """A forward pass through every backbone for each image whose statistics are measured."""
        images = sum(min(self.statistics_images, int(n)) for n in task.real.counts)
        return float(images * sum(network.macs for network in self.squeezed(task) or [task.network]))

    def scaled(self, task: Task, seconds: float) -> Self:
        """Fewer images measured, half of the rest for the squeeze; a weight of the statistics for so few steps."""
        few = replace(self, statistics_images=min(self.statistics_images, 100), r_statistics="auto")
        cheap = few.at_pace(task, seconds, 1.0, 1.0)
        steps = cheap.affordable(task, seconds - cheap.nominal_preparation(task))
        return replace(cheap, steps=max(20, min(self.steps, steps)))

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Self, float]]:
        """This method on backbones that are good for timing its steps alone, and the seconds of its preparation."""
        from datastill.surrogates.teachers import Brought, Squeeze
        from datastill.surrogates.teachers.rehearse import rehearse

        stand_ins: list[Any] = []
        seconds = self.selection_macs(task) / nominal_speed(task.device.type)
        for backbone in self.sources(task):
            source = backbone.source
            if isinstance(source, Squeeze):
                made, taken = rehearse(source, replace(task, network=backbone.network or task.network))
                seconds += taken
            else:
                assert isinstance(source, Brought)
                made = source.given
            stand_ins.append(made)
        several: Any = stand_ins[1:]
        yield replace(self, teacher=stand_ins[0], backbones=several or "none", statistics_images=1), seconds


def _holds_teacher(folder: str) -> bool:
    from pathlib import Path

    from datastill.surrogates.teachers.teacher import RECORD

    return (Path(folder) / RECORD).is_file()
