"""Weights by the loss of a small network that was led to the bias."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.debias import conflict_mass, debias
from datastill.debias.loss import ByLoss, _batch
from debias_data import colored_strokes


@pytest.fixture(scope="module")
def strokes() -> RealSet:
    return colored_strokes()


SMALL = {"width": 4, "steps": 30, "batch": 32}


def test_weights_by_loss_find_a_color_bias() -> None:
    real = colored_strokes(per_class=200)
    weighted, report = debias(real, "loss", steps=60, width=8)
    share = conflict_mass(None, real.labels, real.bias)
    assert report["conflict_mass"] > 2.5 * share
    assert weighted.weights is not None
    assert report["biased_network"]["steps"] == 60
    means = torch.zeros(real.classes).index_add(0, real.labels, weighted.weights) / real.counts
    assert torch.allclose(means, torch.ones(real.classes), atol=1e-4)


def test_the_losses_are_those_of_the_naive_loop(strokes: RealSet) -> None:
    way = ByLoss(width=4, steps=4, batch=16, q=0.7)
    rng = Rng(3).child("debias-loss")
    network = way.factory(strokes)(rng.derive("network")).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=way.lr)
    pixels = strokes.pixels(torch.arange(len(strokes)))
    x = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    order = torch.randperm(len(x), generator=rng.generator("order", 0))
    taken = []
    for step in range(4):
        index = order[16 * step : 16 * step + 16]
        p = network(x[index]).softmax(1)[torch.arange(16), strokes.labels[index]]
        optimizer.zero_grad()
        (0.7 * (1 - p**0.7) / 0.7).mean().backward()
        optimizer.step()
        if step in (1, 3):
            network.eval()
            with torch.no_grad():
                taken.append(-network(x).log_softmax(1)[torch.arange(len(x)), strokes.labels].double())
            network.train()
    found = way.losses(strokes, 3, torch.device("cpu"), lambda *_: None)
    assert torch.allclose(found, (taken[0] + taken[1]) / 2, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 5))
def test_a_pass_sees_every_image_once_but_for_a_rest(n: int, size: int, passes: int) -> None:
    size = min(size, n)
    steps = n // size
    for k in range(passes):
        seen = torch.cat([_batch(n, size, k * steps + s, Rng(0)) for s in range(steps)])
        assert len(seen.unique()) == len(seen) == steps * size


def test_power_zero_is_no_weights_and_small_sets_get_more_steps(strokes: RealSet) -> None:
    weighted, _ = debias(strokes, "loss", power=0.0, **SMALL)
    assert weighted.weights is not None
    assert torch.allclose(weighted.weights, torch.ones(len(strokes)))
    assert [ByLoss().settled(n).steps for n in (100, 20_000, 60_000)] == [300, 469, 1200]
    assert ByLoss(steps=7).settled(60_000).steps == 7


def test_weights_by_loss_are_kept_and_refuse_what_cannot_be(strokes: RealSet, tmp_path: Path) -> None:
    first, told = debias(strokes, "loss", folder=tmp_path, **SMALL)
    again, kept = debias(strokes, "loss", folder=tmp_path, **SMALL)
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first.weights, again.weights)
    assert kept["biased_network"] == told["biased_network"]
    for options, words in (({"variance": 0.1}, "no option 'variance'"), ({"q": 2.0}, "q of loss"), ({"lr": 0.0}, "lr")):
        with pytest.raises(InputError, match=words):
            debias(strokes, "loss", **options)
    with pytest.raises(Diverged, match="learning rate"):
        debias(strokes, "loss", steps=30, width=4, lr=1e30)
