"""Evaluation: paired arms, honest intervals, nothing selected, sets untouched."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch

from datastill import distill, evaluate, load_real, protocols
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.scores import Arm, Evaluation, t_interval
from datastill.store.artifact import DistilledSet

QUICK = Protocol("test-v1", "a test", passes=15, drop_after=8)
NET = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def random_set(digits: RealSet) -> DistilledSet:
    return distill("random", digits, ipc=2, network=NET)


def test_batch_norm_of_few_images_is_told(digits: RealSet, random_set: DistilledSet) -> None:
    def told(made: DistilledSet, network: str) -> bool:
        found = evaluate(made, digits, protocol=QUICK, networks=1, network=network, random=False)
        return any("running statistics (batch norm), here of 20 images" in note for note in found.notes)

    assert told(random_set, f"{NET},norm=batch")
    assert not told(random_set, NET)
    assert not told(distill("random", digits, ipc=11, network=NET), f"{NET},norm=batch")


def test_random_against_itself_is_exactly_zero(digits: RealSet, random_set: DistilledSet) -> None:
    """The Random arm takes the set's own initial subset, weights and orders: no difference at all."""
    result = evaluate(random_set, digits, protocol=QUICK, networks=2)
    assert result.differences.abs().max() == 0
    assert torch.equal(result.distilled.accuracies, result.random.accuracies)


def test_a_real_start_pairs_with_random(digits: RealSet) -> None:
    start = distill("dm", digits, ipc=2, network=NET, steps=1, real_batch=4, image_lr=1e-12)
    result = evaluate(start, digits, protocol=QUICK, networks=2)
    assert result.differences.abs().max() < 1e-9


def test_seeds(digits: RealSet, random_set: DistilledSet) -> None:
    runs = [evaluate(random_set, digits, protocol=QUICK, networks=2, seed=s, random=False) for s in (0, 0, 1)]
    assert torch.equal(runs[0].distilled.accuracies, runs[1].distilled.accuracies)
    assert not torch.equal(runs[0].distilled.accuracies, runs[2].distilled.accuracies)
    first, second = runs[0].distilled.accuracies[0]
    assert first != second, "networks of one set are different networks"


def test_the_set_is_left_alone(digits: RealSet, random_set: DistilledSet) -> None:
    before = random_set.images.clone()
    augmented = dataclasses.replace(QUICK, augment="color_crop_cutout_flip_scale_rotate")
    evaluate(random_set, digits, protocol=augmented, networks=1, random=False)
    assert torch.equal(random_set.images, before)


def test_stacked_and_one_by_one_agree(digits: RealSet, random_set: DistilledSet) -> None:
    pair = [evaluate(random_set, digits, protocol=QUICK, networks=3, stacked=s, random=False) for s in (True, False)]
    assert abs(pair[0].mean - pair[1].mean) <= 0.002


def test_several_sets(digits: RealSet) -> None:
    sets = [distill("random", digits, ipc=1, network=NET, seed=s) for s in range(3)]
    result = evaluate(sets, digits, protocol=QUICK, networks=2)
    assert result.distilled.accuracies.shape == (3, 2)
    assert result.distilled.interval_over == "sets"
    assert evaluate(sets[:2], digits, protocol=QUICK, networks=2).distilled.interval_over == "networks"
    json.dumps(result.to_dict(), allow_nan=False)
    assert [m["seed"] for m in result.to_dict()["made"]] == [0, 1, 2]


def arm(name: str, rows: list[list[float]]) -> Arm:
    return Arm(name, torch.tensor(rows, dtype=torch.double), torch.full((2,), 0.5))


def result_of(distilled: list[list[float]], random: list[list[float]]) -> Evaluation:
    return Evaluation(arm("dm", distilled), arm("random", random), None, "dc-v1", {}, {}, {})


def test_interval_by_hand() -> None:
    values = torch.tensor([0.6, 0.7, 0.8])
    assert t_interval(values) == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert math.isnan(t_interval(values[:1]))


def test_interval_is_over_the_means_of_sets() -> None:
    """Networks of one set are no independent evidence about sets."""
    one = arm("dm", [[0.5, 0.9], [0.6, 0.8], [0.7, 0.7]])
    assert one.interval == pytest.approx(0, abs=1e-12)
    assert one.std_sets == pytest.approx(0, abs=1e-12)
    assert one.std_networks == pytest.approx((0.28284 + 0.14142 + 0) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("distilled", "random", "words"),
    [
        ([[0.8], [0.81], [0.82]], [[0.6], [0.61], [0.62]], "Beats Random: +20.0"),
        ([[0.6], [0.61], [0.62]], [[0.8], [0.81], [0.82]], "Worse than Random: -20.0"),
        ([[0.8], [0.6], [0.7]], [[0.6], [0.8], [0.69]], "No significant difference from random selection"),
        ([[0.8]], [[0.6]], "too few"),
    ],
)
def test_verdicts(distilled: list[list[float]], random: list[list[float]], words: str) -> None:
    assert words in result_of(distilled, random).verdict


def test_per_class_accuracy(digits: RealSet, random_set: DistilledSet) -> None:
    result = evaluate(random_set, digits, protocol=QUICK, networks=1, random=False)
    counts = torch.bincount(digits.test.labels, minlength=10).double()
    assert float((result.per_class * counts).sum() / counts.sum()) == pytest.approx(result.mean, abs=1e-9)


def test_ceiling_is_cached(digits: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path))
    small = digits.subset(torch.arange(200))
    made = distill("random", small, ipc=1, network=NET)
    first = evaluate(made, small, protocol=QUICK, networks=1, ceiling=True)
    assert len(list((tmp_path / "ceilings").glob("*.json"))) == 1
    again = evaluate(made, small, protocol=QUICK, networks=1, ceiling=True)
    assert again.ceiling.mean == first.ceiling.mean
    assert again.ceiling.seconds == first.ceiling.seconds, "the time is that of the training, kept with it"
    assert not again.ceiling.losses, "nothing was trained again"
    assert first.ceiling.mean > first.mean


def test_protocols_are_as_published() -> None:
    known = protocols()
    assert (known["dc-v1"].passes, known["dc-v1"].drop_after, known["dc-v1"].augment) == (301, 151, "none")
    assert (known["dc-v1-dsa"].passes, known["dc-v1-dsa"].drop_after) == (1001, 501)
    assert known["dsa-quick-v1"].passes == 100
    for name, epochs in (("idc-v1", 1000), ("idc-quick-v1", 100)):
        idc = known[name].schedule("cifar10", (3, 32, 32))
        assert (idc.passes, idc.batch, idc.forget_momentum, idc.cutmix) == (epochs, 64, False, 0.5)
        # after epochs 2/3 and 5/6, each rounded down, as torch's MultiStepLR counts them
        assert idc.drops == ((2 * epochs // 3 - 1, 0.2), (5 * epochs // 6 - 1, 0.2))
        assert (idc.augment, idc.augment_mode) == ("color_crop_flip_scale_rotate", "composite")
        assert known[name].schedule("svhn", (3, 32, 32)).augment == "color_crop_scale_rotate"
        plain = known[name].schedule("digits", (1, 8, 8))
        assert (plain.augment, plain.cutmix) == ("none", 0.0)
    for p in (one for one in known.values() if not one.soft and type(one) is Protocol):
        assert (p.lr, p.momentum, p.weight_decay) == (0.01, 0.9, 5e-4)
    assert known["dc-v1-dsa"].schedule("mnist", (1, 28, 28)).augment == "color_crop_cutout_scale_rotate"
    assert "flip" in known["dc-v1-dsa"].schedule("fashion_mnist", (1, 28, 28)).augment
    assert known["dc-v1-dsa"].schedule("digits", (1, 8, 8)).augment == "none"


def test_views_of_patches_follow_the_factor() -> None:
    """RDED's: whole images are neither cut up nor cropped; patches change places, and a crop has one at least."""
    rded = protocols()["rded-v1"]
    for patches in (1, 2, 3):
        trace = rded.soft_schedule("cifar10", (3, 32, 32), patches=patches).trace
        assert (trace.shuffle, trace.min_scale) == (patches, 1 / patches)
    small = protocols()["sre2l-imagenet-v1"]
    assert small.soft_schedule("cifar10", (3, 32, 32)).trace.min_scale == 0.08
    mosaics = small.soft_schedule("cifar10", (3, 32, 32), patches=2).trace
    assert (mosaics.shuffle, mosaics.min_scale) == (2, 0.5)


def test_training_on_five_hundred_real_images_is_ordinary_training(digits: RealSet) -> None:
    """S := T: the protocol reaches what a plain torch loop reaches, within a point."""
    part = torch.cat([digits.class_index(c)[:50] for c in range(10)])
    batch = digits.batch(part)
    one = distill("random", digits.subset(part), ipc=40, network=NET)
    one.codes["images"], one.labels = batch.x, batch.y
    plain = Protocol("plain-v1", "", passes=40, drop_after=10**6, batch=64)
    ours = evaluate(one, digits, protocol=plain, networks=3, random=False).mean
    accuracies = []
    for k in range(3):
        from datastill.models import resolve_network

        network = resolve_network(NET, channels=1, classes=10, size=(8, 8))(100 + k)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for p in range(40):
            order = torch.randperm(len(part), generator=Rng(k).generator("order", p))
            for index in order.split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(batch.x[index]), batch.y[index]).backward()
                optimizer.step()
        test = digits.test
        right = network(test.batch(torch.arange(len(test))).x).argmax(1) == test.labels
        accuracies.append(float(right.double().mean()))
    assert abs(ours - sum(accuracies) / 3) < 0.015


def test_bad_arguments(digits: RealSet, random_set: DistilledSet) -> None:
    with pytest.raises(InputError, match="networks"):
        evaluate(random_set, digits, networks=0)
    with pytest.raises(InputError, match="no distilled set"):
        evaluate([], digits)
    with pytest.raises(InputError, match="test split"):
        evaluate(random_set, dataclasses.replace(digits, test=None))
    with pytest.raises(InputError, match="dc-v1"):
        evaluate(random_set, digits, protocol="dc-v9")
    assert "DATASTILL_CACHE" in os.environ


def test_source_in_the_manifest_is_enough(random_set: DistilledSet, tmp_path: Path) -> None:
    folder = random_set.save(tmp_path / "set")
    result = evaluate(folder, protocol=QUICK, networks=1, random=False)
    assert result.data["name"] == "digits"


@pytest.mark.parametrize("odd", [{"passes": 0}, {"passes": 1.5}, {"lr": 0.0}, {"batch": 0}, {"cutmix": 2.0}])
def test_a_protocol_that_cannot_be_is_refused(odd: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(odd))} of a protocol must be"):
        Protocol("mine-v1", "mine", **{"passes": 1, **odd})


def test_a_protocol_that_trains_in_a_way_of_its_own_is_not_said_to_train_de_biased() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Protocol):
        def trainer(self, *args: object, **kwargs: object):
            raise AssertionError("nothing is trained")

    real = load_real("digits")
    made = distill("random", real, ipc=1)
    with pytest.raises(InputError, match="trains in a way of its own"):
        evaluate(made, real, protocol=Mine(name="mine-v1", summary="", passes=1), networks=1, training="dfa:steps=2")


def test_an_override_that_lacks_what_it_must_say_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from datastill.core import overrides
    from datastill.overrides import debias

    class Haze(overrides.Override):
        option, help = "haze", "noise"

    monkeypatch.setattr(debias, "OVERRIDE", Haze)
    with pytest.raises(TypeError, match=r"Haze in datastill.overrides.debias must set label and default"):
        overrides.overrides.__wrapped__()
