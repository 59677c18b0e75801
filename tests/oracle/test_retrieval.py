"""Recall at k with several captions and ties, against hand-worked cases and an enumeration of all orders."""

from __future__ import annotations

import itertools

import pytest
import torch

from datastill.core.errors import Diverged, InputError
from datastill.core.runtime import Runtime
from datastill.data.captions import Captions
from datastill.data.text.hashed import HashedText
from datastill.evaluation.metrics import TestSplit
from datastill.evaluation.retrieval import Relevance, Retrieval, chance, chances, mean_recall, recall


def enumerated(scores, relevant, k) -> float:
    """The mean over queries and over all orders in which candidates are sorted by score."""
    total = 0.0
    for s, wanted in zip(scores.tolist(), relevant.tolist(), strict=True):
        orders = [
            o for o in itertools.permutations(range(len(s))) if all(s[a] >= s[b] for a, b in itertools.pairwise(o))
        ]
        total += sum(any(wanted[i] for i in order[:k]) for order in orders) / len(orders)
    return total / len(scores)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_ties_are_the_mean_over_all_orders(k) -> None:
    scores = torch.tensor([[3.0, 2, 2, 2, 1], [1, 1, 1, 1, 1], [0, 5, 5, 4, 4], [2, 2, 1, 1, 0]])
    relevant = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    assert recall(scores, relevant, k) == pytest.approx(enumerated(scores, relevant, k))


def captions(image: list[int], group: list[int] | None = None) -> Captions:
    texts = [f"sentence {i}" for i in range(len(image))]
    of = None if group is None else torch.tensor(group)
    return Captions.of(texts, torch.tensor(image), HashedText(dim=16), "hashed:dim=16", of)


def test_four_images_with_two_captions_each() -> None:
    """Worked by hand: rows are images, columns captions; image 2 finds none of its own before the seventh place."""
    scores = torch.tensor([
        [.9, .1, .2, .3, .4, .5, .6, .7],
        [.9, .8, .7, .1, .2, .3, .4, .5],
        [.9, .8, .7, .6, .1, .2, .5, .4],
        [.9, .8, .7, .6, .5, .4, .5, .1],
    ])  # fmt: skip
    relevance = Relevance.of(captions([5, 5, 6, 6, 7, 7, 9, 9]))
    found = relevance.recalls(scores)
    # images: their best captions stand at places 1, 3, 7, and 5 or 6 (a tie with a caption of another image)
    assert found["TR@1"] == pytest.approx(1 / 4)
    assert found["TR@5"] == pytest.approx((1 + 1 + 0 + 1 / 2) / 4)
    # captions: 0 is tied with all images (1/4); 4 of the others have their image first, alone or with one other
    first = [1 / 4, 0, 1 / 3, 0, 0, 0, 0, 0]
    assert found["IR@1"] == pytest.approx(sum(first) / 8)
    assert set(found) == {"TR@1", "TR@5", "IR@1"}, "k beyond the candidates is left out"


def test_grouped_recall_takes_any_that_shows_the_same() -> None:
    relevance = Relevance.of(captions([0, 1, 2], group=[7, 7, 8]))
    scores = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
    found = relevance.recalls(scores)
    assert found["TR@1"] == pytest.approx(1 / 3)
    assert found["grouped TR@1"] == pytest.approx(1.0)
    assert mean_recall(found) == pytest.approx((found["TR@1"] + found["IR@1"]) / 2)


def test_equal_embeddings_score_chance_and_the_same_ones_everything() -> None:
    class Same(torch.nn.Module):
        def __init__(self, of):
            super().__init__()
            self.of = of

        def forward(self, x):
            return self.of(x.flatten(1))

        def sentences(self, vectors):
            return self.of(vectors)

    one_each = captions(list(range(20)))
    x = one_each.vectors.view(20, 1, 4, 4)
    test = TestSplit(x, one_each.vectors, 1, captions=one_each)
    assert all(value == 1.0 for value in Retrieval().score(Same(lambda v: v), test, Runtime()).recalls.values())
    nothing = Retrieval().score(Same(torch.ones_like), test, Runtime())
    assert nothing.recalls == chances(test)
    assert chances(test)["TR@5"] == pytest.approx(5 / 20)


def test_chance_is_its_closed_form_and_what_random_scores_give() -> None:
    relevance = Relevance.of(captions([i // 5 for i in range(200)]))
    n, c, k = 200, 5, 5
    missed = 1.0
    for i in range(k):
        missed *= (n - c - i) / (n - i)
    assert chance(relevance.strict, k) == pytest.approx(1 - missed)
    assert chance(relevance.strict.T, k) == pytest.approx(5 / 40)
    drawn = [
        recall(torch.rand(40, 200, generator=torch.Generator().manual_seed(s)).T, relevance.strict.T, k)
        for s in range(10)
    ]
    sigma = (0.125 * 0.875 / 2000) ** 0.5
    assert abs(sum(drawn) / 10 - 0.125) < 4 * sigma


def test_one_test_image_is_refused() -> None:
    with pytest.raises(InputError, match="one test image"):
        Relevance.of(captions([0, 0]))


def test_scores_that_are_not_finite_are_no_hits() -> None:
    """Neither all of them nor a row."""
    relevant = torch.eye(4, dtype=torch.bool)
    for rows in (slice(None), slice(0, 1)):
        scores = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
        scores[rows] = float("nan")
        with pytest.raises(Diverged, match="not finite"):
            recall(scores, relevant, 1)
