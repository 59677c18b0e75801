"""One arm of a comparison: train several networks on several sets, and score each on the test split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from datastill.core import compilation
from datastill.core.plan import Progress, chunk_for, silent
from datastill.core.rng import Rng
from datastill.data.biased.groups import GroupAccuracy, group_accuracy
from datastill.evaluation.scores import Arm, Groups
from datastill.training.hard import Images, Schedule, predict
from datastill.training.soft import SoftSchedule, train_soft
from datastill.training.stacked import train_many

if TYPE_CHECKING:
    from collections.abc import Callable

    from datastill.data.real import RealSet
    from datastill.evaluation.soft import Labelling
    from datastill.models import Network
    from datastill.models.factory import NetworkFactory
    from datastill.training.debiased import DebiasedTraining

#: Test sets up to this many bytes as float32 are encoded once and kept.
_KEEP_BYTES = 2**30


@dataclass(frozen=True)
class TestSplit:
    """The test images in the Space of a distilled set, and their labels."""

    __test__ = False

    x: Images
    y: Tensor
    classes: int
    bias: Tensor | None = None  #: bias attribute of each image, where the set was made biased

    @classmethod
    def of(cls, real: RealSet) -> TestSplit:
        """The test split of a real set; this is the only place that reads it."""
        test = real.test
        assert test is not None
        count, (c, h, w) = len(test), test.shape
        if 4 * count * c * h * w <= _KEEP_BYTES:
            return cls(test.batch(torch.arange(count)).x, test.labels, real.classes, test.bias)
        return cls(lambda index: test.batch(index).x, test.labels, real.classes, test.bias)

    def score(self, network: torch.nn.Module, device: torch.device, compiled: bool = False) -> Score:
        """One network's accuracy."""
        logits = predict(network, self.x, len(self.y), device=device, compiled=compiled)
        predicted = logits.argmax(1).cpu()
        correct = (predicted == self.y).double()
        count = torch.bincount(self.y, minlength=self.classes).double()
        right = torch.zeros(self.classes, dtype=torch.double).index_add_(0, self.y, correct)
        groups = None
        if self.bias is not None:
            values = max(self.classes, int(self.bias.max()) + 1)
            groups = group_accuracy(predicted, self.y, self.bias, self.classes, values)
        return Score(float(correct.mean()), right / count, groups)


class Score(NamedTuple):
    """What a network is right on: of all test images; of each class (C,), NaN without images; of groups by bias."""

    accuracy: float
    per_class: Tensor
    groups: GroupAccuracy | None


def arm_macs(sizes: Sequence[int], test: int, passes: int, networks: int, macs: float) -> float:
    """Multiply-accumulates of training `networks` networks on each set, about three passes an image, and of scoring.

    Args:
        sizes: images of each set.
        test: test images.
        passes: passes over a set.
        networks: fresh networks per set.
        macs: multiply-accumulates of one image through one network.
    """
    return macs * networks * sum(3.0 * passes * size + test for size in sizes)


def run_arm(
    name: str,
    sets: Sequence[tuple[Images, Tensor]],
    test: TestSplit,
    schedule: Schedule | Sequence[Schedule | SoftSchedule],
    factory: NetworkFactory,
    *,
    networks: int,
    seed: int,
    device: torch.device,
    progress: Progress = silent,
    stacked: bool | None = None,
    compiled: bool = False,
    labelling: Labelling | None = None,
    training: DebiasedTraining | None = None,
) -> Arm:
    """Train `networks` fresh networks on each set and score them after the last pass.

    The weights and orders of network k on set s depend on (seed, s, k) alone, so arms pair. `schedule` is one for all
    sets, or one for each, of as many passes. `compiled` runs compiled code, unless layers couple samples. `labelling`
    says who labels where schedules are soft. `training` takes the place of the schedules but for their augmentation.
    """
    schedules = list(schedule) if isinstance(schedule, Sequence) else [schedule] * len(sets)
    first = schedules[0]
    passes = first.epochs if isinstance(first, SoftSchedule) else first.passes
    started = time.perf_counter()
    compiled = compiled and not factory.couples_samples
    fallbacks = compilation.fallbacks()
    chunk = chunk_for(factory.macs, device)
    accuracies = torch.zeros(len(sets), networks, dtype=torch.double)
    per_class: list[Tensor] = []
    groups: list[GroupAccuracy] = []
    losses: list[list[float]] = []
    total = len(sets) * networks
    done = 0

    def on_pass(k: int, p: int, loss: Tensor) -> None:
        nonlocal done
        done += 1
        if done % 10 == 0:
            progress(name, done / passes, total, {"loss": float(loss.mean())})

    for s, ((x, y), how) in enumerate(zip(sets, schedules, strict=True)):
        rngs = [Rng(seed).child("evaluation", s, k) for k in range(networks)]
        if training is not None:
            assert isinstance(how, Schedule)
            done = s * networks
            made = _train_debiased(training, factory, x, y, how, rngs, device, partial(progress, name), done, total)
        elif isinstance(how, SoftSchedule):
            assert isinstance(x, Tensor)
            made = [factory(rng.derive("network")) for rng in rngs]
            losses += _train_softly(made, x, y, how, rngs, labelling, s, device, on_pass)
        else:
            made = [factory(rng.derive("network")) for rng in rngs]
            losses += train_many(
                made, x, y, how, rngs, device=device, stacked=stacked, on_pass=on_pass, compiled=compiled, chunk=chunk
            )
        for k, network in enumerate(made):
            score = test.score(network, device, compiled)
            accuracies[s, k] = score.accuracy
            per_class.append(score.per_class)
            groups += [score.groups] if score.groups is not None else []
        done = (s + 1) * networks * passes
        progress(name, (s + 1) * networks, total, {"accuracy": float(accuracies[s].mean())})

    curve = torch.tensor(losses).mean(0).tolist() if losses else []
    compiled = compiled and compilation.fallbacks() == fallbacks
    return Arm(
        name,
        accuracies,
        torch.stack(per_class).mean(0),
        curve,
        time.perf_counter() - started,
        compiled,
        [one.lr if training is None else training.lr for one in schedules],
        groups=Groups.of(groups) if groups else None,
    )


def _train_debiased(
    training: DebiasedTraining,
    factory: NetworkFactory,
    x: Images,
    y: Tensor,
    how: Schedule,
    rngs: Sequence[Rng],
    device: torch.device,
    progress: Callable[[float, float, dict[str, float]], None],
    done: int,
    total: int,
) -> list[Network]:
    """Networks that were trained on a set so that they resist its bias, under the protocol's augmentation."""
    training = training.with_defaults(augment=how.augment)
    steps = training.steps(len(y))
    return [
        training(
            factory,
            x,
            y,
            rng=rng,
            device=device,
            on_step=lambda step, k=k: progress(done + k + (step + 1) / steps, total, {}),  # type: ignore[misc]
        )
        for k, rng in enumerate(rngs)
    ]


def _train_softly(
    made: Sequence[torch.nn.Module],
    x: Tensor,
    y: Tensor,
    how: SoftSchedule,
    rngs: Sequence[Rng],
    labelling: Labelling | None,
    s: int,
    device: torch.device,
    on_pass: Callable[[int, int, Tensor], None],
) -> list[list[float]]:
    """Train the networks of set s one after the other on the labels of its teacher or bank, or on hard ones."""
    labeller = bank = None
    if labelling is not None:
        bank = labelling.banks[s]
        labeller = labelling.labellers[s] if bank is None else None
    return [
        train_soft(
            network,
            x,
            y,
            how,
            rng,
            labeller=labeller,
            bank=bank,
            device=device,
            on_pass=lambda p, loss, k=k: on_pass(k, p, loss),  # type: ignore[misc]
        )
        for k, (network, rng) in enumerate(zip(made, rngs, strict=True))
    ]
