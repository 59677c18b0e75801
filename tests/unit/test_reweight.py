"""From a biased set to weights: diagnosis, oracle, extractor, the whole path, and draws by weight."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill import load_real
from datastill.core.context import Context
from datastill.core.errors import Diverged, InputError
from datastill.core.plan import Block, Plan, Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.data.store import MemoryStore
from datastill.debias import conflict_mass, debias, effective_samples
from datastill.debias.diagnosis import describe_weights, warn_of
from datastill.debias.kde import density, inverse_density
from datastill.debias.oracle import group_weights
from datastill.decoders.pixels import Pixels
from datastill.models import resolve_network
from datastill.sampling.inits import RandomReal
from datastill.sampling.weighted import WeightedClassBatches, WeightedReal, weighted_indices
from datastill.store.files import read_tensors, write_tensors
from datastill.store.schema import Kind
from datastill.training.extractor import Encoder, Extractor, small_backbone, two_views
from debias_data import colored_mnist, colored_strokes


@pytest.fixture(scope="module")
def strokes() -> RealSet:
    return colored_strokes()


def context_of(real: RealSet, ipc: int = 2, seed: int = 0, classes: list[int] | None = None, step: int = 0) -> Context:
    network = resolve_network("mlp", channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    task = Task(real, ipc, network, seed)
    y = task.labels if classes is None else torch.tensor(classes).repeat_interleave(ipc)
    index = torch.isin(task.labels, y).nonzero().squeeze(1)
    return Context(task, Plan(RandomReal(), Pixels()), Block(0, index, y), Rng(seed), step=step)


# ---- diagnosis and oracle


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60))
def test_oracle_gives_every_group_of_a_class_the_same_mass(pairs: list[tuple[int, int]]) -> None:
    y, bias = torch.tensor(pairs).T
    weights = group_weights(y, bias)
    for c in set(y.tolist()):
        values = sorted(set(bias[y == c].tolist()))
        for b in values:
            mass = sum(float(w) for w, i, j in zip(weights, y.tolist(), bias.tolist()) if (i, j) == (c, b))
            assert mass == pytest.approx(1 / len(values))


def test_conflict_mass_by_hand() -> None:
    y, bias = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([0, 0, 0, 1, 2, 0])
    assert conflict_mass(None, y, bias) == pytest.approx((1 / 4 + 1 / 2) / 2), (
        "class 1 is empty and no part of the mean"
    )
    weights = torch.tensor([1.0, 1, 1, 3, 0, 10])
    assert conflict_mass(weights, y, bias) == pytest.approx((3 / 6 + 1) / 2)
    assert conflict_mass(7 * weights, y, bias) == pytest.approx((3 / 6 + 1) / 2)
    assert conflict_mass(weights * torch.tensor([1, 1, 1, 1, 0, 0]), y, bias) == pytest.approx(1 / 2)
    with pytest.raises(InputError, match="Bias"):
        conflict_mass(weights, y, bias[:3])
    with pytest.raises(InputError, match="Bias"):
        conflict_mass(weights, y, bias.float())


def test_effective_samples() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    weights = torch.tensor([2.0, 2, 2, 2, 1, 0, 0])
    assert effective_samples(weights, y, 4).tolist() == [4, 1, 0, 0]
    pair = torch.tensor([3.0, 1.0])
    assert float(effective_samples(pair, torch.zeros(2, dtype=torch.int64), 1)) == pytest.approx(16 / 10)


def test_warnings_at_both_ends_and_none_between() -> None:
    y = torch.arange(3).repeat_interleave(100)
    told = describe_weights(torch.ones(300), y, "abc")["warnings"]
    assert len(told) == 1
    assert "uniform" in told[0]
    one = torch.full((300,), 1e-6)
    one[::100] = 1.0
    told = describe_weights(one, y, "abc")
    assert len(told["warnings"]) == 1
    assert "3 of 3 classes" in told["warnings"][0]
    assert told["largest_share"] == pytest.approx(1, abs=1e-3)
    sound = torch.where(torch.arange(300) % 5 == 0, 4.0, 1.0)
    assert describe_weights(sound, y, "abc")["warnings"] == []
    assert warn_of(torch.tensor([1.0, 1.0]), torch.tensor([1, 1]), "ab") == [], "of one image each"
    assert warn_of(torch.tensor([3.0, 3.0]), torch.tensor([4, 4]), "ab") == [], "small classes have few to rest on"


# ---- extractor


def test_views_are_shifts_of_at_most_so_many_pixels() -> None:
    x = torch.zeros(40, 1, 9, 9)
    x[:, :, 4, 4] = 1
    views = two_views(x, 2, torch.Generator().manual_seed(0))
    assert views.shape == (80, 1, 9, 9)
    places = views.flatten(1).argmax(1)
    moved = torch.stack([places // 9 - 4, places % 9 - 4], 1)
    assert moved.abs().max() == 2
    assert len(moved.unique(dim=0)) > 15
    assert not torch.equal(moved[:40], moved[40:]), "the two views of an image differ"
    assert torch.equal(two_views(x, 0, torch.Generator().manual_seed(0)), x.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("read", ["backbone", "head"])
def test_embeddings_are_unit_and_a_function_of_the_seed(strokes: RealSet, read: str) -> None:
    extractor = Extractor(read=read, width=8, batch=64)
    z = extractor.run(strokes, seed=1)
    assert z.dtype == torch.float32
    assert len(z) == len(strokes)
    assert torch.allclose(z.norm(dim=1), torch.ones(len(z)), atol=1e-5)
    assert torch.equal(z, extractor.run(strokes, seed=1))
    assert not torch.equal(z, extractor.run(strokes, seed=2))
    assert not torch.equal(z, dataclasses.replace(extractor, epochs=2).run(strokes, seed=1))


def test_the_embedding_reads_pixels_and_neither_space_nor_weights_nor_bias(strokes: RealSet) -> None:
    extractor = Extractor(width=4)
    z = extractor.run(strokes)
    raw = load_real((strokes.pixels(torch.arange(len(strokes))), strokes.labels), holdout=0.0, space="raw")
    assert raw.bias is None
    assert torch.equal(z, extractor.run(raw.with_weights(torch.rand(len(raw), generator=Rng(0).generator("w")))))
    keys = [extractor.key(r, 0, torch.device("cpu")) for r in (strokes, raw)]
    assert keys[0] == keys[1]
    json.dumps(keys[0])
    assert keys[0] != extractor.key(strokes, 1, torch.device("cpu"))
    assert keys[0] != extractor.key(strokes.subset(torch.arange(50)), 0, torch.device("cpu"))


def test_epochs_see_a_random_part_of_a_large_set(strokes: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    pixels = RealSet.pixels

    def spy(self: RealSet, index: Tensor) -> Tensor:
        asked.append(index)
        return pixels(self, index)

    monkeypatch.setattr(RealSet, "pixels", spy)
    Extractor(width=4, images=50, batch=20, epochs=2).run(strokes)
    assert [len(i) for i in asked[:6]] == [20, 20, 10, 20, 20, 10]
    first, second = torch.cat(asked[:3]), torch.cat(asked[3:6])
    assert len(first.unique()) == len(second.unique()) == 50
    assert set(first.tolist()) != set(second.tolist())


def test_small_sets_get_more_passes(strokes: RealSet) -> None:
    """One pass of at most `images`, or as many as make 40 steps; a number that is given stays."""
    assert [Extractor().settled(n).epochs for n in (60_000, 20_000, 10_240, 4_000, 1_000, 10)] == [1, 1, 1, 3, 10, 40]
    assert Extractor(epochs=2).settled(10).epochs == 2
    assert Extractor(images=256).settled(60_000).epochs == 40
    keys = [e.key(strokes, 0, torch.device("cpu")) for e in (Extractor(), Extractor(epochs=40))]
    assert keys[0] == keys[1], "120 images are one step"
    assert debias(strokes, width=4)[1]["extractor"]["epochs"] == 40


def test_a_variance_far_from_the_most_unequal_weights_is_told(strokes: RealSet) -> None:
    near = debias(strokes, width=4, variance="spread")[1]
    assert not any("spread" in warning for warning in near["warnings"])
    far = debias(strokes, width=4, variance=6 * near["rules"]["spread"])[1]
    assert any(f"{near['rules']['spread']:g}" in warning for warning in far["warnings"])
    same = debias(strokes, width=4, variance=4 * near["rules"]["spread"])[1]
    assert not any("spread" in warning for warning in same["warnings"])


def test_training_and_the_projection_change_what_is_read(strokes: RealSet) -> None:
    untrained = Extractor(width=8, epochs=0).run(strokes)
    trained = Extractor(width=8, epochs=3, batch=32).run(strokes)
    assert (untrained - trained).abs().max() > 0.05
    encoder = Encoder(small_backbone(3, 3, (12, 12)), 0)
    x = strokes.pixels(torch.arange(4))
    assert encoder(x).shape == (4, 64)
    assert torch.allclose(encoder(x), encoder.read(x, "head"))
    assert encoder.read(x, "backbone").shape == (4, encoder.backbone.embed_size)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (2, 33, 41), (3, 64, 64)])
def test_the_backbone_fits_any_image(shape: tuple[int, int, int]) -> None:
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    real = load_real((x, [0, 0, 0, 7, 7, 7]), holdout=0.0)
    assert "norm=batch" in str(Extractor().factory(real))
    assert torch.isfinite(Extractor(batch=5).run(real)).all()


@pytest.mark.parametrize(
    "options",
    [{"width": 0}, {"epochs": -1}, {"lr": 0.0}, {"tau": math.nan}, {"read": "middle"}, {"batch": 2.5}, {"shift": -1}],
)
def test_bad_extractor_options_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        Extractor(**options)


def test_divergence_is_told(strokes: RealSet) -> None:
    with pytest.raises((Diverged, InputError), match="learning rate"):
        Extractor(lr=1e30, width=4, epochs=3, batch=16).run(strokes)


# ---- the whole path


def test_debias_is_extractor_density_power_with_mean_one_per_class(strokes: RealSet) -> None:
    options = {"width": 8, "variance": 0.05, "power": 1.2, "epochs": 2}
    weighted, report = debias(strokes, seed=3, **options)
    z = Extractor(width=8, epochs=2).run(strokes, seed=3)
    expected = inverse_density(density(z, strokes.labels, 0.05), strokes.labels, 1.2) * strokes.counts[strokes.labels]
    assert torch.allclose(weighted.weights.double(), expected, rtol=1e-6)
    means = [float(weighted.weights[strokes.labels == c].mean()) for c in range(strokes.classes)]
    assert means == pytest.approx([1.0] * strokes.classes, rel=1e-5)
    assert report["how"] == "kde"
    assert report["kernel"]["variance"] == 0.05
    assert report["extractor"]["epochs"] == 2
    assert report["conflict_mass"] == pytest.approx(conflict_mass(expected, strokes.labels, strokes.bias), abs=1e-5)
    assert set(report["rules"]) == {"median", "spread"}
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert weighted.bias is strokes.bias
    assert strokes.weights is None, "the given set is as it was"


def test_a_color_bias_is_found() -> None:
    """Without data on disk: the conflicting tenth weighs far more (measured .49), with the oracle exactly 2/3."""
    real = colored_strokes(per_class=100)
    assert conflict_mass(None, real.labels, real.bias) == pytest.approx(0.1)
    assert debias(real, epochs=4, batch=32, power=1.0)[1]["conflict_mass"] > 0.3
    assert debias(real, "oracle")[1]["conflict_mass"] == pytest.approx(2 / 3, abs=1e-6)


def test_none_takes_weights_away_and_oracle_needs_bias(strokes: RealSet) -> None:
    weighted, _ = debias(strokes, "oracle")
    bare, report = debias(weighted, "none")
    assert bare.weights is None
    assert report["how"] == "none"
    assert report["conflict_mass"] == pytest.approx(0.1)
    with pytest.raises(InputError, match="bias label"):
        debias(dataclasses.replace(strokes, bias=None), "oracle")
    assert "conflict_mass" not in debias(dataclasses.replace(strokes, bias=None), width=4)[1]


def test_the_bias_does_not_decide_weights(strokes: RealSet) -> None:
    shuffled = strokes.bias[torch.randperm(len(strokes), generator=Rng(0).generator("bias"))]
    one, other = (debias(dataclasses.replace(strokes, bias=b), width=4)[0] for b in (strokes.bias, shuffled))
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("rule", ["median", "spread"])
def test_a_rule_may_choose_the_variance(strokes: RealSet, rule: str) -> None:
    _, report = debias(strokes, width=8, variance=rule)
    assert report["rule"] == rule
    assert report["kernel"]["variance"] == report["rules"][rule] > 0


@pytest.mark.parametrize("rule", ["median", "spread"])
def test_a_rule_that_finds_nothing_says_so(rule: str) -> None:
    varied = load_real(((torch.arange(512) % 251).view(8, 1, 8, 8) / 250, [0, 0, 0, 0, 1, 1, 1, 1]), holdout=0.0)
    same = dataclasses.replace(varied, store=MemoryStore(torch.full((8, 1, 8, 8), 128, dtype=torch.uint8)))
    with pytest.raises(InputError, match="does not vary"):
        debias(same, variance=rule, width=4)
    weighted, report = debias(same, width=4)
    assert torch.allclose(weighted.weights, torch.ones(8))
    assert any("uniform" in warning for warning in report["warnings"]), report["warnings"]


def test_weights_survive_what_is_done_to_a_set(strokes: RealSet) -> None:
    weighted, _ = debias(strokes, width=4)
    raw = weighted.with_space(load_real("digits", space="raw").space)
    assert torch.equal(raw.weights, weighted.weights)
    train, held = weighted.split(0.25)
    assert len(train.weights) == len(train)
    both = torch.cat([train.weights, held.weights]).sort().values
    assert torch.equal(both, weighted.weights.sort().values)
    index = torch.tensor([5, 80, 2])
    assert torch.equal(weighted.subset(index).weights, weighted.weights[index])
    assert torch.equal(weighted.batch(index).weight, weighted.weights[index])
    assert weighted.fingerprint != strokes.fingerprint


def test_weights_are_kept_in_a_folder(strokes: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, told = debias(strokes, folder=tmp_path, width=4)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(Extractor, "run", lambda *a, **k: pytest.fail("trained again"))
    again, retold = debias(strokes, folder=tmp_path, width=4)
    assert torch.equal(first.weights, again.weights)
    assert {**told, "seconds": 0} == {**retold, "seconds": 0}
    for other in ({"power": 1.0}, {"seed": 1}, {"variance": 0.1}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            debias(strokes, folder=tmp_path, width=4, **other)


def test_kept_weights_that_are_others_or_no_weights_are_refused(strokes: RealSet, tmp_path: Path) -> None:
    asked = {"folder": tmp_path, "width": 4}
    first, _ = debias(strokes, **asked)
    (path,) = tmp_path.glob("*.safetensors")
    sound = path.read_bytes()
    debias(strokes, seed=1, **asked)
    (other,) = set(tmp_path.glob("*.safetensors")) - {path}
    path.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match="remove it"):
        debias(strokes, **asked)
    path.write_bytes(sound)
    tensors, meta = read_tensors(path, {"weights": Kind(("F64",), (1,))})
    report = json.loads(meta["report"])
    weights = tensors["weights"]
    half, huge = weights.clone(), weights.clone()
    half[strokes.class_index(0)] = 0.0
    huge[0] = 1e300
    for bad in (half, huge):
        write_tensors(path, {"weights": bad}, meta)
        with pytest.raises(InputError, match="remove it"):
            debias(strokes, **asked)
    for name, value in {"seconds": "x", "seed": "q"}.items():
        write_tensors(path, {"weights": weights}, {**meta, "report": json.dumps({**report, name: value})})
        with pytest.raises(InputError, match=f"Remove {path}"):
            debias(strokes, **asked)
    write_tensors(path, {"weights": weights}, {**meta, "report": json.dumps({**report, "how": "oracle"})})
    again, told = debias(strokes, **asked)
    assert told["how"] == "kde"
    assert torch.equal(again.weights, first.weights)


def test_words_give_options_and_each_once(strokes: RealSet) -> None:
    worded, keyed = debias(strokes, "kde:width=4,power=1")[0], debias(strokes, "kde", width=4, power=1.0)[0]
    assert torch.equal(worded.weights, keyed.weights)
    for call, words in (
        (lambda: debias(strokes, "kde:power=1", power=2.0), "given twice"),
        (lambda: debias(strokes, "kde:power=1,power =2"), "gives power twice"),
        (lambda: debias(strokes, "kde:draw=true"), 'debias="kde:draw=true"'),
        (lambda: debias(strokes, "kde", draw=True), "leave draw out"),
        (lambda: debias(strokes, network="convnet", width=8), "give one of them"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_unknown_ways_and_options_are_refused(strokes: RealSet) -> None:
    for call, words in (
        (lambda: debias(strokes, "kdf"), "kde"),
        (lambda: debias(strokes, varience=1.0), "variance"),
        (lambda: debias(strokes, "oracle", power=1.0), "power"),
        (lambda: debias(strokes, "none", power=1.0), "power"),
        (lambda: debias(strokes, variance="mean", width=4), "median"),
        (lambda: debias(strokes, variance=-1.0, width=4), "variance"),
    ):
        with pytest.raises(InputError, match=words):
            call()


# ---- draws by weight


def weighted_numbers(weights: list[float], classes: list[int]) -> RealSet:
    x = (torch.arange(len(weights), dtype=torch.float32) / len(weights)).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return load_real((x, classes), holdout=0.0, space="raw").with_weights(torch.tensor(weights))


def test_batches_follow_the_weights_and_carry_none() -> None:
    weights, classes = [1.0, 3.0, 0.0, 4.0, 5.0, 5.0], [0, 0, 0, 0, 1, 1]
    real = weighted_numbers(weights, classes)
    batch = WeightedClassBatches(20_000).draw(real, context_of(real))
    assert batch.weight is None
    assert batch.y.tolist() == [0] * 20_000 + [1] * 20_000
    assert torch.equal(batch.x[:, 0, 0, 0], real.pixels(batch.index)[:, 0, 0, 0])
    share = torch.bincount(batch.index, minlength=6) / 20_000
    expected = torch.tensor([1 / 8, 3 / 8, 0, 4 / 8, 1 / 2, 1 / 2])
    assert share[2] == 0
    assert (share - expected).abs().max() < 5 * 0.5 / math.sqrt(20_000)


def test_the_mean_of_a_weighted_batch_is_unbiased() -> None:
    """Small batches too: with replacement the expectation is the weighted mean, whatever n is."""
    real = weighted_numbers([0.1, 0.2, 0.7, 8.0, 1.0], [0, 0, 0, 0, 1])
    values, weights = real.pixels(torch.arange(4))[:, 0, 0, 0].double(), real.weights[:4]
    expected = float((values * weights).sum() / weights.sum())
    context, means = context_of(real, 1), []
    for context.step in range(3000):
        means.append(float(WeightedClassBatches(2).draw(real, context).x[:2, 0, 0, 0].mean()))
    assert sum(means) / 3000 == pytest.approx(expected, abs=4 * 0.25 / math.sqrt(6000))


def test_draws_depend_on_seed_step_and_class_alone() -> None:
    real = weighted_numbers([1.0] * 12, [0] * 6 + [1] * 6)
    sampler = WeightedClassBatches(5)
    both = sampler.draw(real, context_of(real, step=4))
    alone = sampler.draw(real, context_of(real, step=4, classes=[1]))
    assert torch.equal(alone.index, both.index[5:])
    assert torch.equal(sampler.draw(real, context_of(real, step=4)).index, both.index)
    assert not torch.equal(sampler.draw(real, context_of(real, step=5)).index, both.index)
    assert not torch.equal(sampler.draw(real, context_of(real, step=4, seed=1)).index, both.index)


def test_draws_need_weights_that_weigh_something() -> None:
    real = weighted_numbers([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    with pytest.raises(InputError, match="above 0"):
        WeightedClassBatches(2).draw(real, context_of(real, ipc=1))
    with pytest.raises(InputError, match="de-bias"):
        WeightedClassBatches(2).draw(real.with_weights(None), context_of(real, ipc=1))
    with pytest.raises(InputError, match="at least 1"):
        WeightedClassBatches(0)
    with pytest.raises(InputError, match="de-bias"):
        weighted_indices(real.with_weights(None), 1, 0)


def test_a_weighted_start_is_distinct_and_nested_and_follows_the_weights() -> None:
    real = weighted_numbers([1.0, 0.0, 6.0, 1.0, 2.0, 2.0, 2.0], [0, 0, 0, 0, 1, 1, 1])
    first = []
    for seed in range(800):
        index = weighted_indices(real, 3, seed).squeeze(1)
        assert len(index.unique()) == 6
        assert real.labels[index].tolist() == [0, 0, 0, 1, 1, 1]
        assert 1 not in index[:3].tolist(), "three others weigh something"
        assert torch.equal(weighted_indices(real, 1, seed).squeeze(1), index[[0, 3]])
        first.append(int(index[0]))
    share = torch.bincount(torch.tensor(first), minlength=4) / 800
    assert (share - torch.tensor([1 / 8, 0, 6 / 8, 1 / 8])).abs().max() < 4 * 0.5 / math.sqrt(800)


def test_a_weighted_start_gives_real_images_and_says_which() -> None:
    real = weighted_numbers([1.0] * 12, [0] * 6 + [1] * 6)
    context = context_of(real, ipc=2)
    x, extra = WeightedReal().images(context.task, context.block, context)
    assert torch.equal(x, real.batch(extra["selected"]).x)
    assert torch.equal(extra["selected"], weighted_indices(real, 2, 0).squeeze(1))
    last = dataclasses.replace(context, block=Block(1, torch.tensor([3]), torch.tensor([1])))
    part, chosen = WeightedReal().images(context.task, last.block, last)
    assert torch.equal(part, x[3:])
    assert torch.equal(chosen["selected"], extra["selected"][3:])
    assert WeightedReal().describe() == {"init": "weighted", "factor": 1}


def test_a_weighted_mosaic_holds_a_real_image_per_tile() -> None:
    real = weighted_numbers([1.0] * 12, [0] * 6 + [1] * 6)
    context = context_of(real, ipc=2)
    x, extra = WeightedReal(2).images(context.task, context.block, context)
    assert extra["mixed"].shape == (4, 4)
    assert torch.equal(extra["mixed"][:, 0], weighted_indices(real, 2, 0).squeeze(1))
    tiles = x.unfold(2, 4, 4).unfold(3, 4, 4)[:, 0].reshape(4, 4, 16)
    values = real.pixels(torch.arange(12))[:, 0, 0, 0]
    assert torch.equal(tiles, values[extra["mixed"]][:, :, None].expand(4, 4, 16))
    assert len(extra["mixed"][:2].unique()) == 6, "images come again only where the class has no more"


# ---- real data


@pytest.mark.slow
def test_colored_mnist_diagnostic(real_data: Path) -> None:
    """Specification 6.5: 4,000 images, 5 %, jitter .05, three epochs, s^2 .05, plain inverse; .05 without weights."""
    real = colored_mnist(400, 0.05)
    assert conflict_mass(None, real.labels, real.bias) == pytest.approx(0.05)
    options = {"epochs": 3, "variance": 0.05, "power": 1.0}
    mass = {scope: debias(real, scope=scope, **options)[1]["conflict_mass"] for scope in ("class", "global")}
    assert mass["class"] >= 0.35
    assert mass["class"] > mass["global"]
    assert debias(real, "oracle")[1]["conflict_mass"] == pytest.approx(0.9, abs=1e-6), "weights of a set are float32"
    exact = conflict_mass(group_weights(real.labels, real.bias), real.labels, real.bias)
    assert exact == pytest.approx(0.9, abs=1e-12)
