"""Retrieval over pairs: recall at k from images to sentences (TR@k) and from sentences to images (IR@k).

TR@k is the share of images of which any caption is among the k nearest sentences, IR@k the share of captions whose
image is among the k nearest images. All candidates are ranked. Where scores are equal, recall is the mean over all
orders of the equal ones, so that a network that says nothing scores what chance does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import Diverged, InputError
from datastill.core.runtime import Runtime
from datastill.evaluation.metrics import Score, TestSplit
from datastill.training.hard import predict

if TYPE_CHECKING:
    from datastill.data.captions import Captions
    from datastill.models.towers import Towers

KS = (1, 5, 10)


def recall(scores: Tensor, relevant: Tensor, k: int) -> float:
    """Mean over queries of the probability that a relevant candidate is among the k best, ties in random order.

    Args:
        scores: of each query and candidate, (q, m).
        relevant: which candidates a query wants, (q, m) bool, at least one each.
        k: at most m.

    Raises:
        Diverged: a score is not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise Diverged("Scores of images and sentences are not finite: the towers diverged; take a smaller rate.")
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    above, tied = (scores > best).sum(1), scores == best
    wanted = (tied & relevant).sum(1)
    hits = [_drawn(int(e), int(r), k - int(a)) for a, e, r in zip(above, tied.sum(1), wanted, strict=True)]
    return sum(hits) / len(hits)


def chance(relevant: Tensor, k: int) -> float:
    """`recall` where all scores are equal."""
    return recall(torch.zeros(relevant.shape), relevant, k)


def _drawn(count: int, wanted: int, k: int) -> float:
    """Probability that k of `count` hold one of the `wanted`: 1 - C(count - wanted, k) / C(count, k)."""
    if k <= 0:
        return 0.0
    return 1.0 if k >= count else 1 - math.comb(count - wanted, k) / math.comb(count, k)


@dataclass(frozen=True, eq=False)
class Relevance:
    """Which sentences and images of a test split belong together.

    Attributes:
        first: position of the first pair of each distinct image, (m,).
        strict: whether a caption was given to an image, (m, n).
        grouped: whether they show and say the same, (m, n), where the set tells.
    """

    first: Tensor
    strict: Tensor
    grouped: Tensor | None = None

    @classmethod
    def of(cls, captions: Captions) -> Relevance:
        """Those of a test split.

        Raises:
            InputError: it has one image, or one sentence for all.
        """
        images, position = captions.image.unique(return_inverse=True)
        if len(images) < 2:
            raise InputError("There is one test image, and retrieval has nothing to choose from; give more images.")
        first = torch.stack([(position == i).nonzero()[0, 0] for i in range(len(images))])
        strict = position[None, :] == torch.arange(len(images))[:, None]
        group = captions.group
        return cls(first, strict, None if group is None else group[first][:, None] == group[None, :])

    def recalls(self, scores: Tensor) -> dict[str, float]:
        """Recalls by name, for similarities of distinct images and captions (m, n); k beyond the candidates is out."""
        found = _recalls(scores, self.strict, "")
        return found if self.grouped is None else found | _recalls(scores, self.grouped, "grouped ")


def _recalls(scores: Tensor, relevant: Tensor, kind: str) -> dict[str, float]:
    images, texts = relevant.shape
    to_text = {f"{kind}TR@{k}": recall(scores, relevant, k) for k in KS if k < texts}
    return to_text | {f"{kind}IR@{k}": recall(scores.T, relevant.T, k) for k in KS if k < images}


def mean_recall(recalls: dict[str, float]) -> float:
    """The mean of the strict recalls, one number for a network."""
    strict = [value for name, value in recalls.items() if not name.startswith("grouped")]
    return sum(strict) / len(strict)


@dataclass(frozen=True)
class Retrieval:
    """The mean of TR@1, 5, 10 and IR@1, 5, 10, with all of them beside it."""

    name: str = "mean recall"

    def score(self, predictor: torch.nn.Module, test: TestSplit, runtime: Runtime) -> Score:
        """One pair of towers."""
        assert test.captions is not None
        relevance = Relevance.of(test.captions)
        images = predict(
            predictor, lambda i: _rows(test, relevance.first[i]), len(relevance.first), device=runtime.device
        )
        with torch.inference_mode():
            texts = cast("Towers", predictor).sentences(test.y.to(images.device))
            scores = (F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T).cpu()
        found = relevance.recalls(scores)
        value = mean_recall(found)
        return Score(value, torch.tensor([value], dtype=torch.double), recalls=found)


def _rows(test: TestSplit, index: Tensor) -> Tensor:
    return test.x[index] if isinstance(test.x, Tensor) else test.x(index)


def chances(test: TestSplit) -> dict[str, float]:
    """Recalls of networks that say nothing; empty where the test split is not one of pairs."""
    if test.captions is None:
        return {}
    relevance = Relevance.of(test.captions)
    return relevance.recalls(torch.zeros(relevance.strict.shape))
