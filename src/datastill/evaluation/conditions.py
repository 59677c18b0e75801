"""One condition of a comparison: train several networks on several sets, and score each on the test split."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from datastill.core import compilation
from datastill.core.registry import NOMINAL_STEP_SECONDS, nominal_speed
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.core.usercode import blaming
from datastill.evaluation.metrics import Accuracy, Metric, TestSplit
from datastill.evaluation.scores import Arm, Groups
from datastill.training.trainers import Labeled, Trained, Trainer

if TYPE_CHECKING:
    from datastill.evaluation.protocols import Protocol
    from datastill.models.factory import NetworkFactory


@dataclass(frozen=True)
class Setup:
    """What the conditions of an evaluation share.

    The weights and orders of network k on set s depend on (seed, s, k) alone, so that conditions pair.

    Attributes:
        test: what networks are scored on; None where they are only trained.
        networks: fresh networks per set.
        seed: of their weights, orders and augmentations.
    """

    factory: NetworkFactory
    test: TestSplit | None
    networks: int
    seed: int
    runtime: Runtime
    metric: Metric = field(default_factory=Accuracy)

    def train(self, trainer: Trainer, data: Labeled, s: int, name: str, sets: int) -> Trained:
        """The networks of set s; `name` and the number of sets are told to whoever watches."""
        total, reached = sets * self.networks, [0.0]

        def told(done: float, numbers: dict[str, float]) -> None:
            reached[0] = done
            self.runtime.progress(name, s * self.networks + done, total, numbers)

        def when() -> str:
            k, share = divmod(reached[0], 1)
            return f"in the training on {name}, {share:.0%} into network {int(k) + 1} of {self.networks}"

        rngs = [Rng(self.seed).child("evaluation", s, k) for k in range(self.networks)]
        with self.runtime.computing(self.factory.macs), blaming(when, lambda: self.factory(0)):
            return trainer.train(self.factory, data, rngs, self.runtime, told)

    def run(self, name: str, sets: Sequence[Labeled], trainers: Sequence[Trainer]) -> Arm:
        """Train on each set by its trainer, and score the networks after the last pass."""
        assert self.test is not None
        started, fallbacks = time.perf_counter(), compilation.fallbacks()
        accuracies = torch.zeros(len(sets), self.networks, dtype=torch.double)
        per_class, groups, losses = [], [], list[list[float]]()
        recalls: list[dict[str, float]] = []
        for s, (data, trainer) in enumerate(zip(sets, trainers, strict=True)):
            made, curves = self.train(trainer, data, s, name, len(sets))
            losses += curves
            for k, network in enumerate(made):
                with self.runtime.computing(self.factory.macs), blaming(lambda: f"in the test of {name}"):
                    score = self.metric.score(network, self.test, self.runtime)
                accuracies[s, k] = score.accuracy
                per_class.append(score.per_class)
                groups += [score.groups] if score.groups is not None else []
                recalls += [score.recalls] if score.recalls is not None else []
            done, total = (s + 1) * self.networks, len(sets) * self.networks
            self.runtime.progress(name, done, total, {self.metric.name: float(accuracies[s].mean())})
        return Arm(
            name,
            accuracies,
            torch.stack(per_class).mean(0),
            torch.tensor(losses).mean(0).tolist() if losses else [],
            time.perf_counter() - started,
            self.runtime.compiled and compilation.fallbacks() == fallbacks,
            [trainer.lr for trainer in trainers],
            groups=Groups.of(groups) if groups else None,
            recalls={name: sum(one[name] for one in recalls) / len(recalls) for name in recalls[0]} if recalls else {},
        )


def macs_of(sizes: Sequence[int], test: int, passes: int, networks: int, macs: float) -> float:
    """Multiply-accumulates of training `networks` networks on each set, about three passes an image, and of scoring.

    Args:
        sizes: images of each set.
        test: test images.
        passes: passes over a set.
        networks: fresh networks per set.
        macs: multiply-accumulates of one image through one network.
    """
    return macs * networks * sum(3.0 * passes * size + test for size in sizes)


def nominal_training(
    protocol: Protocol, sizes: Sequence[int], test: int, networks: int, macs: float, device: str
) -> float:
    """Seconds of training and scoring at the nominal speed of a device, small networks one by one.

    Args:
        protocol: that networks are trained under.
        sizes, test, networks, macs: as for `macs_of`.
        device: its type.
    """
    steps = networks * sum(protocol.passes * math.ceil(size / protocol.batch) for size in sizes)
    return NOMINAL_STEP_SECONDS * steps + macs_of(sizes, test, protocol.passes, networks, macs) / nominal_speed(device)
