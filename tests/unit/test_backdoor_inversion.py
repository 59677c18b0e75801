"""Trigger inversion: a planted trigger is found where it is, a network without one has none, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datastill import distill, load_real
from datastill.apps.backdoor.checks import checks
from datastill.apps.backdoor.inversion import NAMED, alone, inversion, inversion_of, smallest
from datastill.apps.backdoor.trigger import Trigger, poisoned
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.models import Network, resolve_network
from datastill.sampling.inits import random_indices
from datastill.training.hard import Schedule, predict, train

pytestmark = pytest.mark.usefixtures("same_weights")

NETWORK = "convnet:width=16,depth=2"
TARGET = 3


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def learner(real: RealSet, seed: int) -> Network:
    """A network that was trained on a few real images."""
    network = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))(seed)
    batch = real.batch(torch.arange(len(real)))
    train(network, batch.x, batch.y, Schedule(40, batch=64), Rng(seed))
    return network


@pytest.fixture(scope="module")
def few(digits: RealSet) -> RealSet:
    return digits.subset(random_indices(digits, 20, 0))


@pytest.fixture(scope="module")
def clean(few: RealSet) -> list[Network]:
    return [learner(few, seed) for seed in range(3)]


@pytest.mark.slow
def test_a_planted_trigger_is_found_where_it_is(digits: RealSet, few: RealSet) -> None:
    trigger = Trigger.white(digits.shape, 2)
    bad = poisoned(few, trigger, TARGET, 0.2, 0)[0]
    found = inversion_of([learner(bad, seed) for seed in range(3)], digits.known_test)
    assert found.suspected == (TARGET,)
    assert found.ratios[TARGET] == min(found.ratios) < 0.5
    mask = found.found.masks[TARGET]
    assert float(mask[trigger.mask].sum() / mask.sum()) > 0.9


def test_where_no_trigger_is_no_class_is_named(digits: RealSet, clean: list[Network]) -> None:
    found = inversion_of(clean, digits.known_test)
    assert found.suspected == ()
    assert min(found.ratios) > NAMED


def test_masks_do_what_they_say(digits: RealSet, clean: list[Network]) -> None:
    images = digits.known_test
    weights = [p.clone() for one in clean for p in one.parameters()]
    found = smallest(clean, images, goal=0.6)
    assert torch.equal(found.masks, smallest(clean, images, goal=0.6).masks)
    assert all(torch.equal(p, w) for p, w in zip((p for one in clean for p in one.parameters()), weights))
    assert ((found.masks >= 0) & (found.masks <= 1)).all()
    assert ((found.patterns >= 0) & (found.patterns <= 1)).all()
    pixels = images.pixels(torch.arange(len(images)))
    for c in range(10):
        x = pixels[images.labels != c]
        shown = x * (1 - found.masks[c]) + found.patterns[c] * found.masks[c]
        taken = [(predict(one, images.space.encode(shown)).argmax(1) == c).double().mean() for one in clean]
        assert sum(taken) / len(taken) > 0.35
        assert found.sizes[c] < 32


class Constant(nn.Module):
    """Takes all for the first class, whatever they bear."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) + 0 * x.sum((1, 2, 3))[:, None]


def test_where_nothing_does_the_mask_is_the_whole_image(digits: RealSet) -> None:
    sizes = smallest([Constant()], digits.known_test, steps=60).sizes
    assert (sizes[1:] == 64).all()
    assert sizes[0] < 10


@pytest.mark.usefixtures("short_protocols")
def test_a_set_alone_is_enough(digits: RealSet) -> None:
    made = distill("random", digits, ipc=3, network=NETWORK)
    own = alone(made)
    assert own.test is None
    assert torch.allclose(own.batch(torch.arange(len(own))).x, made.images, atol=1e-5)
    found = inversion(made, networks=1, steps=20)
    assert len(found.ratios) == 10
    with_real = inversion(made, digits, networks=1, steps=20)
    assert with_real.sizes != found.sizes
    looks = checks({"it": made}, digits, networks=1)["it"]
    assert looks.signature is not None
    assert looks.inversion is not None


@pytest.mark.usefixtures("short_protocols")
def test_what_says_nothing_is_refused_or_left_out(digits: RealSet) -> None:
    made = distill("random", digits, ipc=2, network=NETWORK)
    x, y = digits.pixels(torch.arange(200)), digits.labels[:200]
    with pytest.raises(InputError, match="no test images; give it a test split"):
        inversion(made, load_real((x, y), holdout=0), networks=1)
    with pytest.raises(InputError, match="All images are of one class"):
        smallest([Constant()], digits.known_test.subset(torch.zeros(4, dtype=torch.int64)))
    two = load_real((x[y < 2], y[y < 2]), holdout=0.2)
    with pytest.raises(InputError, match="three classes on"):
        inversion(distill("random", two, ipc=2, network=NETWORK))
    looks = checks({"it": made}, digits, networks=1)["it"]
    assert looks.signature is None
    assert looks.row(digits.class_names)[0] == "cannot say"
