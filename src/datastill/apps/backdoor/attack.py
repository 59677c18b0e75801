"""A set distilled from poisoned images: is it as good on clean ones, and does the trigger work?"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datastill.apps.backdoor.doorping import DoorPing
from datastill.apps.backdoor.trigger import Trigger, poisoned
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.distillation.distill import distill
from datastill.distillation.job import prepare_job
from datastill.evaluation.evaluate import trained
from datastill.evaluation.protocols import get_protocol
from datastill.report.words import plural
from datastill.store.artifact import DistilledSet
from datastill.store.outputs import Kind
from datastill.training.hard import predict

BACKDOOR = Kind("backdoor", "backdoor.json", ("config", "arms"))
HEADS = ["distilled from", "clean accuracy %", "attack success %", "counted over all images %"]
CLEAN = "clean images"


@dataclass(frozen=True)
class Success:
    """Of networks trained on a set, means over networks in [0, 1]."""

    clean: float  #: accuracy on clean test images
    success: float  #: share of triggered test images of other classes that are taken for the target
    success_all: float  #: the same over all test images, those of the target too, as it was published


@dataclass(frozen=True)
class Backdoor:
    """Of the attack and of the clean set.

    Attributes:
        arms: by what the set was distilled from.
        sets: the distilled sets, alike.
        trigger: as it was at the end, which is scored.
    """

    arms: dict[str, Success]
    sets: dict[str, DistilledSet]
    trigger: Trigger
    config: dict[str, Any]

    def rows(self) -> list[list[str]]:
        """Of the table."""
        return [[name, *(f"{100 * v:.1f}" for v in asdict(one).values())] for name, one in self.arms.items()]

    @property
    def verdict(self) -> str:
        """In words."""
        bad, clean = self.arms[self.config["attack"]], self.arms[CLEAN]
        return (
            f"The trigger turns {100 * bad.success:.1f} % of other classes' test images into "
            f"{self.config['target']!r} (the same patch on networks of the clean set: {100 * clean.success:.1f} %), at "
            f"{100 * (bad.clean - clean.clean):+.1f} points of clean accuracy."
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"config": self.config, "arms": {k: asdict(v) for k, v in self.arms.items()}, "verdict": self.verdict}


def backdoor(
    real: RealSet,
    method: Any = "dm",
    attack: Literal["naive", "doorping"] = "doorping",
    *,
    target: int = 0,
    fraction: float = 0.01,
    size: int = 2,
    ipc: int = 10,
    network: str | None = None,
    networks: int = 3,
    protocol: str = "auto",
    every: int = 10,
    clamp: bool = True,
    clean: DistilledSet | None = None,
    seed: int = 0,
    progress: Callable[[str, float, float, dict[str, float]], None] = lambda *told: None,
    callbacks: Any = (),
    **options: Any,
) -> Backdoor:
    """Distill from a poisoned set and from the clean one, train on both, and try the trigger.

    Args:
        real: with a test split.
        method: of distillation: a name, or a method of one's own.
        attack: "naive" has a white square, "doorping" learns it along with the set.
        target: the class that triggered images are to be taken for, by position.
        fraction: of the training images that are poisoned.
        size: of the square, in pixels.
        ipc, network: as for `distill`.
        networks, protocol: fresh networks that are trained on each set, and how.
        every: steps between two updates of a trigger that is learned.
        clamp: whether it stays in the pixels' range; as published it does not.
        clean: the set from the clean images, where another attack has made it already.
        seed: of every random draw.
        progress, callbacks: as for `distill`.
        options: further arguments of `distill`.

    Raises:
        InputError: no test split, a trigger larger than the image, no such class, a fraction that leaves a class with
            fewer images than `ipc`, DoorPing with a method without surrogates, or what `distill` refuses.
    """
    _ = real.known_test
    if protocol != "auto":
        get_protocol(protocol)
    shape = real.shape
    naive = attack == "naive"
    trigger = Trigger.white(shape, size) if naive else Trigger.random(shape, size, Rng(seed).generator("backdoor"))
    bad, _ = poisoned(real, trigger, target, fraction, seed)
    _refuse_emptied(real, bad, ipc, fraction)
    shared: dict[str, Any] = {"ipc": ipc, "network": network, "seed": seed, "progress": progress}
    if not naive:
        _refuse_still(method, bad, shared, options)
    clean = clean or distill(method, real, callbacks=callbacks, **shared, **options)
    if "budget" in options:  # as many steps as on clean images, whatever the trigger takes beside them
        options = {k: v for k, v in options.items() if k != "budget"} | _steps_of(clean)
    door = None if naive else DoorPing(trigger, bad, every, clamp=clamp)
    hooks = [*callbacks, *([door] if door is not None else [])]
    sets: dict[str, DistilledSet] = {attack: distill(method, bad, callbacks=hooks, **shared, **options), CLEAN: clean}
    if door is not None and not door.updates:
        raise InputError(
            f"{sets[attack].record.method} made no update of the trigger: DoorPing follows the networks of a method "
            f"that draws one at each step, for {every} steps or more; take more steps, or --attack naive."
        )
    arms = {
        name: tried(made, real, trigger, target, networks=networks, protocol=protocol, network=network, seed=seed)
        for name, made in sets.items()
    }
    config = {
        "data": real.name, "method": sets[CLEAN].record.method, "attack": attack, "target": real.class_names[target],
        "fraction": fraction, "size": size, "ipc": ipc, "networks": networks, "seed": seed,
        "updates": 0 if door is None else door.updates, "clamp": clamp,
    }  # fmt: skip
    return Backdoor(arms, sets, trigger, config)


def _refuse_still(method: Any, real: RealSet, shared: dict[str, Any], options: dict[str, Any]) -> None:
    taken = inspect.signature(distill).parameters
    hyper = {name: value for name, value in options.items() if name == "recipe" or name not in taken}
    job = prepare_job(method, real, ipc=shared["ipc"], network=shared["network"], seed=shared["seed"], **hyper)
    if job.own_plan.surrogates is None:
        raise InputError(
            f"{job.method_name} draws no networks while images are learned, and DoorPing follows such; take dm, dc or "
            "dsa, or --attack naive."
        )


def _refuse_emptied(real: RealSet, bad: RealSet, ipc: int, fraction: float) -> None:
    left, had = (one.labels.bincount(minlength=real.classes).tolist() for one in (bad, real))
    short = next((c for c in range(real.classes) if left[c] < ipc <= had[c]), None)
    if short is not None:
        raise InputError(
            f"To poison a fraction of {fraction:g} leaves class {real.class_names[short]!r} with "
            f"{plural(left[short], 'image')}, fewer than --ipc {ipc}; poison fewer (--fraction)."
        )


def _steps_of(made: DistilledSet) -> dict[str, Any]:
    """What gives another run the same hyper-parameters; nothing where a method takes none."""
    return {**made.record.hyper, "recipe": "paper"} if made.record.hyper else {}


def tried(made: DistilledSet, real: RealSet, trigger: Trigger, target: int, **training: Any) -> Success:
    """Train on a set and try the trigger on test images; see `backdoor` for the arguments."""
    found = [rates(one, real, trigger, target) for one in trained(made, real, runtime=Runtime.of(), **training)]
    means = torch.tensor([[r.clean, r.success, r.success_all] for r in found], dtype=torch.float64).mean(0)
    return Success(*means.tolist())


def rates(network: nn.Module, real: RealSet, trigger: Trigger, target: int) -> Success:
    """Of one network."""
    test = real.known_test

    def answers(images: Callable[[Tensor], Tensor]) -> Tensor:
        return predict(network, images, len(test)).argmax(1).cpu()

    clean = answers(lambda index: test.batch(index).x)
    triggered = answers(lambda index: test.space.encode(trigger.on(test.pixels(index)))) == target
    others = test.labels != target
    right = float((clean == test.labels).double().mean())
    return Success(right, float(triggered[others].double().mean()), float(triggered.double().mean()))
