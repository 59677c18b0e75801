"""The trainings of an architecture search: a network on a proxy or on the whole set, each a unit of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.apps.kept import plain
from datastill.augment.strategies import strategy_for
from datastill.core.errors import Diverged
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.distillation.distill import distill
from datastill.models import resolve_network
from datastill.models.factory import NetworkFactory
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.files import read_json, write_json
from datastill.store.manifest import MANIFEST
from datastill.store.schema import Fraction, Record, Seconds
from datastill.training.hard import Schedule, predict, train

#: The two references beside the proxies.
WHOLE, EARLY = "whole set", "early stopping"


class Trained(Record):
    """One network's accuracy, and the processor seconds of its training."""

    accuracy: Fraction
    seconds: Seconds


Work = tuple[Callable[[Tensor], Tensor] | Tensor, Tensor, Schedule]


@dataclass(frozen=True)
class Trainings:
    """What networks are trained on; it can be pickled.

    Attributes:
        real: with a test split.
        ipc, passes, whole_passes: see `Search`.
        settings: arguments of `distill` by method.
        network: to distill with; a ConvNet that fits if None.
        sets: the folder of the distilled sets; a set that is there is not made again.
    """

    real: RealSet
    ipc: int
    passes: int
    whole_passes: int
    settings: Mapping[str, Mapping[str, Any]]
    network: str | None
    seed: int
    device: str
    precision: str
    sets: Path

    def make(self, method: str, before: Callable[[], None] = lambda: None) -> DistilledSet:
        """The proxy of a method: read, or distilled and kept.

        Args:
            method: by name or file.
            before: called before a new set is written, so that its folder says what it is of.

        Raises:
            InputError: what `distill` refuses.
        """
        place = self.sets / plain(method)
        if (place / MANIFEST).is_file():
            return load_distilled(place)
        own = {"device": self.device, "precision": self.precision, **self.settings.get(method, {})}
        made = distill(method, self.real, ipc=self.ipc, network=self.network, seed=self.seed, **own)
        before()
        made.save(place)
        return made

    def work(self, proxy: str) -> Work:
        """Images, labels and schedule of a proxy, of the whole set, or of as many steps on it as on a proxy."""
        real, augment = self.real, strategy_for(self.real.name, self.real.shape)
        if proxy == WHOLE:
            return lambda index: real.batch(index).x, real.labels, Schedule(self.whole_passes, augment=augment)
        schedule = Schedule(self.passes, augment=augment)
        if proxy != EARLY:
            made = self.make(proxy)
            return made.images, made.targets, schedule
        size = self.ipc * real.classes
        seen = self.passes * (-(-size // schedule.batch)) * schedule.batch
        order = torch.randperm(len(real), generator=Rng(self.seed).generator("early"))
        part = order[:seen] if seen <= len(real) else order
        short = Schedule(max(1, round(seen / len(real))), augment=augment)
        return lambda index: real.batch(part[index]).x, real.labels[part], short

    def factory(self, name: str) -> NetworkFactory:
        """Of a network of the grid."""
        real = self.real
        return resolve_network(name, channels=real.shape[0], classes=real.classes, size=real.shape[1:])


def train_one(trainings: Trainings, proxy: str, name: str, target: Path) -> None:
    """Train a network of the grid on a proxy and score it; one that diverges has the accuracy of guessing nothing.

    Args:
        trainings: all of them.
        proxy: a method, `EARLY` or `WHOLE`.
        name: of the network.
        target: where accuracy and processor seconds are written.
    """
    x, y, schedule = trainings.work(proxy)
    runtime, factory = Runtime.of(trainings.device, trainings.precision), trainings.factory(name)
    network = factory(Rng(trainings.seed).derive("search", name)).to(runtime.device)
    started, right = time.process_time(), 0.0
    try:
        with runtime.computing(factory.macs):
            train(network, x, y, schedule, Rng(trainings.seed).child("search"), device=runtime.device)
            seconds = time.process_time() - started
            test = trainings.real.known_test
            logits = predict(network, lambda index: test.batch(index).x, len(test), device=runtime.device)
        right = float((logits.argmax(1).cpu() == test.labels).double().mean())
    except Diverged:
        seconds = time.process_time() - started
    write_json(target, {"accuracy": right, "seconds": round(seconds, 3)})


def read_one(target: Path) -> dict[str, float]:
    """What `train_one` wrote."""
    found: dict[str, float] = read_json(target, Trained)
    return found
