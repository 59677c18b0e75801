"""Reshuffled epochs per class: whole, distinct, without state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill import load_real
from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Block, Plan, Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.models import resolve_network
from datastill.sampling.inits import RandomReal
from datastill.sampling.samplers import ClassBatches, ClassEpochs


def ragged(counts: list[int]) -> RealSet:
    """Images in memory, of classes of these sizes, in mixed order; every image is its own number."""
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=Rng(0).generator("mixed"))]
    x = torch.arange(len(y), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / max(1, len(y))
    return load_real((x, y), holdout=0)


def context_of(real: RealSet, classes: list[int] | None = None, seed: int = 0, key: int = 0) -> Context:
    y = torch.tensor(range(real.classes) if classes is None else classes)
    network = resolve_network("mlp", channels=1, classes=real.classes, size=real.shape[1:])
    return Context(Task(real, 1, network, seed), Plan(RandomReal(), Pixels()), Block(key, y, y), Rng(seed))


def draw(sampler: ClassEpochs | ClassBatches, real: RealSet, context: Context, step: int) -> Batch:
    context.step = step
    return sampler.draw(real, context)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.integers(1, 6))
def test_every_image_at_most_once_per_epoch_and_never_a_short_batch(counts: list[int], n: int) -> None:
    real = ragged(counts)
    context, sampler = context_of(real), ClassEpochs(n)
    batches = [draw(sampler, real, context, step) for step in range(26)]
    for c, count in enumerate(counts):
        mine = [b.index[b.y == c] for b in batches]
        assert {len(m) for m in mine} == {min(n, count)}
        per_epoch = max(1, count // n)
        for first in range(0, 26 - per_epoch + 1, per_epoch):
            epoch = torch.cat(mine[first : first + per_epoch])
            assert len(epoch.unique()) == len(epoch) == min(count, per_epoch * n)
            if count % n == 0:
                assert torch.equal(epoch.sort().values, real.class_index(c))


def test_batches_are_class_by_class_and_true() -> None:
    real = ragged([9, 5, 7])
    batch = draw(ClassEpochs(4), real, context_of(real), 3)
    assert batch.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(batch.y, real.labels[batch.index])
    assert torch.equal(batch.x, real.batch(batch.index).x)
    assert batch.weight is None


def test_epochs_classes_and_seeds_differ() -> None:
    real = ragged([50, 50])
    context, sampler = context_of(real), ClassEpochs(50)
    first, second = (draw(sampler, real, context, step).index for step in (0, 1))
    assert not torch.equal(first, second)
    ranks = [torch.searchsorted(real.class_index(c), first[50 * c : 50 * (c + 1)]) for c in (0, 1)]
    assert not torch.equal(*ranks)
    assert not torch.equal(first, draw(sampler, real, context_of(real, seed=1), 0).index)
    assert torch.equal(first, draw(sampler, real, context_of(real), 0).index)


def test_a_step_needs_no_step_before_it() -> None:
    """What a resumed run draws: a fresh context and sampler at step 17 give the 17th batch."""
    real = ragged([11, 6])
    context = context_of(real)
    walked = [draw(ClassEpochs(4), real, context, step).index for step in range(20)]
    assert torch.equal(draw(ClassEpochs(4), real, context_of(real), 17).index, walked[17])


def test_a_block_draws_what_the_whole_draws() -> None:
    real = ragged([8, 9, 10])
    whole = draw(ClassEpochs(3), real, context_of(real), 5)
    part = draw(ClassEpochs(3), real, context_of(real, [1, 2], key=4), 5)
    assert torch.equal(part.index, whole.index[whole.y != 0])


def test_tiny_and_empty_classes() -> None:
    real = ragged([1, 3, 40])
    hollow = real.subset((real.labels != 1).nonzero().squeeze(1))
    batch = draw(ClassEpochs(8), hollow, context_of(hollow), 2)
    assert torch.bincount(batch.y, minlength=3).tolist() == [1, 0, 8]
    everything = [draw(ClassEpochs(8), real, context_of(real), step) for step in range(3)]
    assert all(torch.equal(b.index[b.y == 1].sort().values, real.class_index(1)) for b in everything)


def test_weights_travel_with_the_images() -> None:
    real = ragged([6, 6])
    weights = torch.arange(12.0) + 1
    weighted = real.with_weights(weights)
    batch = draw(ClassEpochs(4), weighted, context_of(weighted), 1)
    assert torch.equal(batch.weight, weights[batch.index])
    assert torch.equal(batch.index, draw(ClassEpochs(4), real, context_of(real), 1).index)


@pytest.mark.parametrize("sampler", [ClassEpochs(2), ClassBatches(2)])
def test_images_that_weigh_nothing_are_never_drawn(sampler) -> None:
    real = ragged([8, 8])
    heavy = torch.cat([real.class_index(0)[:2], real.class_index(1)[3:4]])
    weights = torch.zeros(16).index_fill(0, heavy, 1.0)
    drawn = [draw(sampler, real.with_weights(weights), context_of(real), step).index.tolist() for step in range(4)]
    assert all(sorted(index) == sorted(heavy.tolist()) for index in drawn)
    weights[heavy[2]] = 0.0
    with pytest.raises(InputError, match="has no image with a weight above 0"):
        draw(sampler, real.with_weights(weights), context_of(real), 0)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        ClassEpochs(0)
