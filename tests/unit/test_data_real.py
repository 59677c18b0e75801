"""RealSet: drawing by class, splitting, weighting, and what identifies a set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data import RealSet, check_ipc, load_real
from datastill.data.stratify import allocate


def numbered(labels: list, **options) -> RealSet:
    """Image i has all its pixels but a white corner at i (two bytes), so that images can be told apart."""
    n = len(labels)
    x = np.stack([np.arange(n) // 256, np.arange(n) % 256], 1).astype(np.uint8)[:, :, None, None]
    images = np.broadcast_to(x, (n, 2, 4, 4)).copy()
    images[:, :, -1, -1] = 255
    return load_real((images, labels), **{"holdout": 0, "space": "raw", **options})


def numbers(x: torch.Tensor) -> list[int]:
    return [int(a * 256 + b) for a, b in (x[:, :, 0, 0] * 255).round().tolist()]


ids = st.one_of(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True),
    st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=6, unique=True),
)


@st.composite
def any_labels(draw) -> list:
    """Labels of arbitrary ids and imbalance, in any order."""
    labels = [label for label in draw(ids) for _ in range(draw(st.integers(1, 40)))]
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    return [labels[i] for i in order]


@settings(max_examples=30, deadline=None)
@given(any_labels(), st.integers(1, 50), st.integers(0, 99))
def test_of_classes_draws_distinct_images_of_the_class(labels: list, n: int, seed: int):
    real = numbered(labels)
    assert list(real.label_ids) == sorted(set(labels))
    classes = list(range(real.classes))[::-1]
    batch = real.of_classes(classes, n, torch.Generator().manual_seed(seed))
    assert numbers(batch.x) == batch.index.tolist()
    assert len(set(batch.index.tolist())) == len(batch)
    assert [real.label_ids[c] for c in batch.y] == [labels[i] for i in batch.index]
    wanted = [c for c in classes for _ in range(min(n, labels.count(real.label_ids[c])))]
    assert batch.y.tolist() == wanted
    assert batch.weight is None
    again = real.of_classes(classes, n, torch.Generator().manual_seed(seed))
    assert torch.equal(again.index, batch.index)


@settings(max_examples=30, deadline=None)
@given(any_labels(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_split_is_disjoint_stratified_and_covers(labels: list, fraction: float, seed: int):
    real = numbered(labels)
    train, held = real.split(fraction, seed)
    a, b = (numbers(part.pixels(torch.arange(len(part)))) for part in (train, held))
    assert sorted(a + b) == list(range(len(labels)))
    assert [labels[i] for i in a] == [real.label_ids[c] for c in train.labels]
    for c, count in enumerate(real.counts.tolist()):
        given_away = int(held.counts[c])
        if count == 1:
            assert given_away == 0
        else:
            assert 1 <= given_away <= count - 1
            assert abs(given_away - fraction * count) <= max(1, real.classes)
    assert torch.equal(real.split(fraction, seed)[0].labels, train.labels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(-5, 5000))
def test_allocate_is_exact_within_what_classes_allow(counts: list[int], total: int):
    given_ = allocate(torch.tensor(counts), total)
    low, high = sum(n >= 2 for n in counts), sum(max(0, n - 1) for n in counts)
    assert int(given_.sum()) == min(max(total, low), high)
    for n, g in zip(counts, given_.tolist()):
        assert (n >= 2) <= g <= max(0, n - 1)


def test_digits_are_stratified_halves():
    real = load_real("digits")
    assert (len(real), len(real.test), real.shape, real.classes) == (899, 898, (1, 8, 8), 10)
    assert (real.counts - real.test.counts).abs().max() <= 1
    assert real.class_names == tuple("0123456789")
    assert real.source == "digits"
    pixels = real.pixels(torch.arange(len(real)))
    assert pixels.dtype == torch.float32
    assert torch.equal((pixels * 16).round() / 16, pixels)
    assert len(load_real("digits:train=1297")) == 1297
    assert real.fingerprint == load_real("digits").fingerprint
    assert real.fingerprint != load_real("digits", seed=1).fingerprint
    # every image is in exactly one of the two
    both = torch.cat([pixels, real.test.pixels(torch.arange(898))]).flatten(1)
    from sklearn.datasets import load_digits

    whole = torch.from_numpy(load_digits().data / 16).float()
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.tolist()))


def test_a_batch_has_space_labels_and_weights():
    real = load_real("digits")
    index = torch.tensor([5, 0, 5])
    batch = real.batch(index)
    assert torch.equal(batch.x, real.space.encode(real.pixels(index)))
    assert torch.equal(batch.y, real.labels[index])
    assert batch.weight is None
    weights = torch.rand(len(real), generator=torch.Generator().manual_seed(0))
    weighted = real.with_weights(weights)
    assert torch.equal(weighted.batch(index).weight, weights[index])
    assert weighted.fingerprint != real.fingerprint
    assert weighted.with_weights(None).fingerprint == real.fingerprint
    assert torch.equal(weighted.subset(index).weights, weights[index])


@pytest.mark.parametrize(
    "weights", [torch.ones(3), torch.full((899,), -1.0), torch.full((899,), float("nan")), torch.ones(899, 1)]
)
def test_bad_weights(weights: torch.Tensor):
    with pytest.raises(InputError, match=r"[Ww]eight"):
        load_real("digits").with_weights(weights)


def test_the_fingerprint_knows_images_order_labels_and_space():
    real = load_real("digits")
    every = torch.arange(len(real))
    assert real.subset(every).fingerprint == real.fingerprint
    assert real.subset(every.flip(0)).fingerprint != real.fingerprint
    assert real.with_space(Space()).fingerprint != real.fingerprint
    assert real.subset(every.flip(0)).subset(every.flip(0)).fingerprint == real.fingerprint


def test_derived_sets_keep_the_test_split_in_their_space():
    real = load_real("digits").with_space(Space())
    train, validation = real.split(0.2, seed=3)
    for part in (train, validation):
        assert part.test.fingerprint == real.test.fingerprint
        assert part.test.class_names == part.class_names
    with pytest.raises(InputError, match="between 0 and 1"):
        real.split(1.0)


def test_the_description_is_json():
    record = json.loads(json.dumps(load_real("digits").describe()))
    assert record["images"] == 899
    assert record["test_images"] == 898
    assert record["space"]["kind"] == "normalised"
    assert sum(record["counts"]) == 899


def test_check_ipc():
    real = numbered(["ant"] * 3 + ["bee"] * 9 + ["cow"] * 7)
    check_ipc(real, 3)
    check_ipc(real, np.int64(2))
    for ipc in (0, -1, 1.5, True, "3", None):
        with pytest.raises(InputError, match="whole number of at least 1"):
            check_ipc(real, ipc)
    with pytest.raises(InputError, match=r"'ant' has 3 images.*--ipc 4; use --ipc 3 or smaller"):
        check_ipc(real, 4)
    with pytest.raises(InputError, match=r"1 more class is short|and 1 more"):
        check_ipc(real, 8)
