"""What trained networks are scored on: the test split, and metrics over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from datastill.core.runtime import Runtime
from datastill.data.biased.groups import GroupAccuracy, group_accuracy
from datastill.training.batches import Images
from datastill.training.hard import predict

if TYPE_CHECKING:
    from datastill.data.captions import Captions
    from datastill.data.real import RealSet

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
    captions: Captions | None = None  #: of pairs, whose labels are then vectors of sentences

    @classmethod
    def of(cls, real: RealSet) -> TestSplit:
        """The test split of a real set; this is the only place that reads it.

        Raises:
            InputError: there is none.
        """
        test = real.known_test
        count, (c, h, w) = len(test), test.shape
        if 4 * count * c * h * w <= _KEEP_BYTES:
            return cls(test.batch(torch.arange(count)).x, test.targets, real.classes, test.bias, test.captions)
        return cls(lambda index: test.batch(index).x, test.targets, real.classes, test.bias, test.captions)


class Score(NamedTuple):
    """What one network is right on: of all test images; of each class (C,), NaN without images; of groups by bias; of
    pairs, recalls by name."""

    accuracy: float
    per_class: Tensor
    groups: GroupAccuracy | None = None
    recalls: dict[str, float] | None = None


class Metric(Protocol):
    """How a trained network is scored; larger is better."""

    @property
    def name(self) -> str: ...

    def score(self, predictor: torch.nn.Module, test: TestSplit, runtime: Runtime) -> Score:
        """The score of one predictor: a network, or whatever else maps images (n, c, h, w) to (n, C)."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """The fraction of test images whose class has the largest output."""

    name: str = "accuracy"

    def score(self, predictor: torch.nn.Module, test: TestSplit, runtime: Runtime) -> Score:
        """One network's accuracy."""
        logits = predict(predictor, test.x, len(test.y), device=runtime.device, compiled=runtime.compiled)
        predicted = logits.argmax(1).cpu()
        correct = (predicted == test.y).double()
        count = torch.bincount(test.y, minlength=test.classes).double()
        right = torch.zeros(test.classes, dtype=torch.double).index_add_(0, test.y, correct)
        groups = None
        if test.bias is not None:
            values = max(test.classes, int(test.bias.max()) + 1)
            groups = group_accuracy(predicted, test.y, test.bias, test.classes, values)
        return Score(float(correct.mean()), right / count, groups)
