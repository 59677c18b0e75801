"""What weights against a bias bring, as the specification of de-biasing measured it (6.7), on the means of three seeds.

4,000 training and 2,000 unbiased test images of colored MNIST, 5 % conflicting, the widest colors; DM at 14 x 14
pixels with ten images per class; weights from 28 x 28 pixels by the encoder of 6.6. Arms share starts, networks and
batches of real images, so a gap is one of weights. Two minutes on one core.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, load_real
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.data.biased import group_accuracy
from datastill.debias import debias
from datastill.models import resolve_network
from datastill.training.hard import Schedule, predict, train

pytestmark = pytest.mark.slow

NETWORK = "convnet:width=16,depth=2"
SEEDS = (0, 1, 2)
KDE = {"epochs": 3, "variance": 0.05, "power": 1.0}


class Score(NamedTuple):
    """Accuracy on all, aligned and conflicting test images."""

    mean: float
    aligned: float
    conflicting: float


@pytest.fixture(scope="module", autouse=True)
def _data(real_data: Path) -> None:
    """The sets below are made of real data."""


@cache
def large() -> RealSet:
    return load_real("cmnist:ratio=0.05,severity=1,train=4000,test=2000")


@cache
def small() -> RealSet:
    """The same images, pooled to 14 x 14."""
    splits = (large(), large().test)
    return load_real(tuple((F.avg_pool2d(s.pixels(torch.arange(len(s))), 2), s.labels) for s in splits))


@cache
def weights(how: str) -> Tensor | None:
    return debias(large(), how, **(KDE if how == "kde" else {}))[0].weights


@cache
def score(how: str, init: str, steps: int, seed: int) -> Score:
    real, test = small().with_weights(weights(how)), large().test
    made = distill(
        "dm", real, ipc=10, network=NETWORK, steps=steps, real_batch=64, image_lr=1.0, image_momentum=0.5, init=init,
        augment="none", seed=seed,
    )  # fmt: skip
    network = resolve_network(NETWORK, channels=3, classes=10, size=(14, 14))(Rng(seed).derive("evaluation"))
    train(network, made.images, made.targets, Schedule(passes=150, lr=0.01, momentum=0.9, weight_decay=0), Rng(seed))
    told = predict(network, real.test.batch(torch.arange(len(test))).x).argmax(1)
    return Score(*group_accuracy(told, test.labels, test.bias, 10, 10)[:3])


def scores(how: str, init: str, steps: int) -> Score:
    """Means over seeds."""
    return Score(*map(mean, zip(*(score(how, init, steps, seed) for seed in SEEDS), strict=True)))


@pytest.mark.parametrize(("init", "steps", "least"), [("noise", 200, 0.12), ("real", 200, 0.18)])
def test_weights_by_density_undo_the_bias(init: str, steps: int, least: float) -> None:
    plain, weighted = scores("none", init, steps), scores("kde", init, steps)
    assert plain.aligned > 0.93
    assert plain.conflicting < 0.45
    assert weighted.mean - plain.mean >= least


def test_weights_by_density_are_near_those_of_the_bias_labels() -> None:
    assert score("oracle", "noise", 200, 0).mean >= score("kde", "noise", 200, 0).mean - 0.05
