"""What weights do in the objectives: equal ones nothing, whole numbers what repeating does, and any scale the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from datastill import distill, load_real
from datastill.augment.dsa import Dsa
from datastill.core.batch import Batch
from datastill.core.context import Context, class_means
from datastill.core.plan import Block, Callback, Grads, Plan, Synthetic, Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.debias import debias
from datastill.decoders.pixels import Pixels
from datastill.engines.class_gradients import class_gradients
from datastill.models import resolve_network
from datastill.objectives.feature_means import FeatureMeans
from datastill.objectives.gradient_match import GradientMatch
from datastill.sampling.inits import Given
from datastill.sampling.weighted import WeightedClassBatches
from debias_data import colored_strokes

NETWORKS = ("convnet:width=4,depth=2", "convnet:width=4,depth=2,norm=batch")
#: With an augmentation, which both sides of a class share, "dc" is DSA.
CASES = {
    "dm": (FeatureMeans(), None),
    "dc": (GradientMatch(), None),
    "dsa": (GradientMatch(), Dsa("color_crop_cutout_flip_scale_rotate")),
}


class Fixed:
    """The same real batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def draw(self, real: RealSet, context: Context) -> Batch:
        return self.batch


def a_batch(counts: tuple[int, ...] = (5, 3, 4), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    x = torch.rand(len(y), 2, 10, 10, dtype=torch.float64, generator=generator)
    return Batch(x, y, torch.arange(len(y)))


def step(objective: str, batch: Batch, network: str) -> Grads:
    """One step in float64 on fixed synthetic images."""
    real = load_real(((torch.arange(1200) % 251).view(6, 2, 10, 10) / 250, [0, 0, 1, 1, 2, 2]), holdout=0.0)
    factory = resolve_network(network, channels=2, classes=3, size=(10, 10))
    task = Task(real, 2, factory)
    images = torch.rand(6, 2, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    match, augment = CASES[objective]
    plan = Plan(Given(images), Pixels(), sampler=Fixed(batch), augment=augment, network=factory)
    context = Context(task, plan, Block(0, torch.arange(6), task.labels), Rng(0), step=1, steps=9)
    context.surrogate = factory(7).double()
    context.synthetic = Synthetic(images, task.labels)
    return match(context)


def apart(a: Grads, b: Grads) -> float:
    """The largest relative difference of losses and pixel gradients."""
    pairs = ((a.loss, b.loss), (a.x, b.x))
    assert all(q.abs().max() > 0 for _, q in pairs)
    return max(float((p - q).abs().max() / q.abs().max()) for p, q in pairs)


def with_weight(batch: Batch, weight: Tensor) -> Batch:
    return dataclasses.replace(batch, weight=weight)


@pytest.mark.parametrize("objective", CASES)
@pytest.mark.parametrize("network", NETWORKS)
def test_equal_weights_are_no_weights(objective: str, network: str) -> None:
    batch = a_batch()
    plain = step(objective, batch, network)
    share = 1 / torch.bincount(batch.y)[batch.y].double()
    for weight in (share, torch.ones(len(batch.y))):
        assert apart(step(objective, with_weight(batch, weight), network), plain) < 1e-6


@pytest.mark.parametrize("objective", CASES)
def test_any_scale_per_class_is_the_same(objective: str) -> None:
    batch = a_batch()
    weight = 0.1 + torch.rand(len(batch.y), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scaled = weight * torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64)[batch.y]
    one, other, plain = (
        step(objective, b, NETWORKS[0]) for b in (with_weight(batch, weight), with_weight(batch, scaled), batch)
    )
    assert apart(other, one) < 1e-6
    assert apart(one, plain) > 1e-3, "unequal weights are not nothing"


@pytest.mark.parametrize("objective", CASES)
def test_whole_weights_are_repetitions(objective: str) -> None:
    """Where no layer couples samples; batch statistics see a repeated image twice."""
    batch = a_batch()
    times = torch.tensor([1, 3, 2, 1, 1, 2, 2, 5, 1, 1, 4, 1])
    repeated = batch.of(torch.arange(12).repeat_interleave(times))
    weighted = with_weight(batch, times.double())
    assert apart(step(objective, weighted, NETWORKS[0]), step(objective, repeated, NETWORKS[0])) < 1e-6
    assert apart(step(objective, batch, NETWORKS[0]), step(objective, repeated, NETWORKS[0])) > 1e-3


def test_the_augmentation_of_dsa_is_not_nothing() -> None:
    assert apart(step("dsa", a_batch(), NETWORKS[0]), step("dc", a_batch(), NETWORKS[0])) > 1e-3


@pytest.mark.parametrize("engine", ["loop", "vmap", "joint"])
def test_class_gradients_of_every_engine_take_weights_alike(engine: str) -> None:
    batch, network = a_batch(), resolve_network(NETWORKS[0], channels=2, classes=3, size=(10, 10))(3).double()
    times = torch.tensor([2, 1, 3, 1, 1, 1, 2, 1, 4, 1, 1, 1])
    weighted = class_gradients(network, batch.x, batch.y, [0, 1, 2], weight=0.3 * times.double(), engine=engine)
    repeated = batch.of(torch.arange(12).repeat_interleave(times))
    plain = class_gradients(network, repeated.x, repeated.y, [0, 1, 2], engine=engine)
    for name, gradient in plain.items():
        assert torch.allclose(weighted[name], gradient, rtol=1e-9, atol=1e-12)


def test_no_weights_are_the_plain_mean_to_the_last_bit() -> None:
    """No weights are not weights of 1/n, which round: the mean is the sum over the count."""
    generator = torch.Generator().manual_seed(0)
    values, y = torch.randn(300, 7, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    counts = torch.bincount(y)
    plain = torch.zeros(3, 7).index_add(0, y, values) / counts[:, None]
    assert torch.equal(class_means(values, y, 3, None), plain)
    assert not torch.equal(class_means(values, y, 3, 1 / counts[y]), plain)


def test_the_weighted_dm_loss_is_the_written_formula() -> None:
    """|| sum_i w_i psi(x_i) - mean_j psi(s_j) ||^2 with w summing to 1 in the class batch."""
    batch = a_batch()
    weight = 0.1 + torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = step("dm", with_weight(batch, weight), NETWORKS[0])
    factory = resolve_network(NETWORKS[0], channels=2, classes=3, size=(10, 10))
    network = factory(7).double()
    images = torch.rand(6, 2, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for c in range(3):
            w = weight[batch.y == c] / weight[batch.y == c].sum()
            real = (w[:, None] * network.embed(batch.x[batch.y == c])).sum(0)
            loss = (real - network.embed(images[2 * c : 2 * c + 2]).mean(0)).square().sum()
            assert float(found.loss[c]) == pytest.approx(float(loss), rel=1e-5)


def test_a_class_batch_renormalizes_the_stored_weights() -> None:
    """Stored weights of a part of a class: their mean is that of the part with weights that sum to 1."""
    values = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stored = torch.rand(10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    part, y = torch.tensor([1, 4, 8]), torch.zeros(10, dtype=torch.int64)
    w = stored[part] / stored[part].sum()
    assert torch.allclose(class_means(values[part], y[part], 1, stored[part])[0], (w[:, None] * values[part]).sum(0))
    whole = stored / stored.sum()
    assert torch.allclose(class_means(values, y, 1, stored)[0], (whole[:, None] * values).sum(0))


def test_weighted_batches_agree_with_weighted_means_in_expectation() -> None:
    """The weighted sampler's plain mean against the weighted mean of the whole class, for the feature means of DM."""
    real = colored_strokes(per_class=30)
    weighted, _ = debias(real, "oracle")
    factory = resolve_network("convnet:width=4,depth=2", channels=3, classes=3, size=(12, 12))
    task = Task(weighted, 1, factory)
    context = Context(
        task, Plan(Given(torch.zeros(3, 3, 12, 12)), Pixels()), Block(0, torch.arange(3), task.labels), Rng(0)
    )
    network = factory(0)
    batch = WeightedClassBatches(4000).draw(weighted, context)
    with torch.no_grad():
        everything = weighted.batch(torch.arange(len(weighted)))
        expected = class_means(network.embed(everything.x), everything.y, 3, everything.weight)
        found = class_means(network.embed(batch.x), batch.y, 3, batch.weight)
        plain = class_means(network.embed(everything.x), everything.y, 3)
    assert (found - expected).norm() < 0.2 * (plain - expected).norm()


@pytest.mark.parametrize("method", ["dm", "dc"])
def test_whole_runs_move_otherwise_with_weights_and_not_with_equal_ones(method: str) -> None:
    """From the public call: the same images with weights of one, others with the oracle's."""
    real = colored_strokes(per_class=20, ratio=0.2)
    settings = {"ipc": 1, "steps": 2, "real_batch": 20, "network": "convnet:width=4,depth=2", "augment": "none"}

    def images(data: RealSet) -> Tensor:
        return distill(method, data, **settings).images

    plain, equal, oracle = (
        images(real),
        images(real.with_weights(torch.ones(len(real)))),
        images(debias(real, "oracle")[0]),
    )
    moved = float((oracle - plain).abs().max())
    assert moved > 1e-4
    assert float((equal - plain).abs().max()) < 1e-3 * moved


class Draws(Callback):
    """Keeps what a run draws at every step: which real images, and the first weights of the network."""

    def __init__(self) -> None:
        self.index: list[list[int]] = []
        self.weight: list[Tensor | None] = []
        self.network: list[float] = []

    def before_real_batch(self, batch: Batch, context: Context) -> Batch:
        assert isinstance(context.surrogate, nn.Module)
        self.index.append(batch.index.tolist())
        self.weight.append(batch.weight)
        self.network.append(float(next(context.surrogate.parameters()).detach().flatten()[0]))
        return batch


@pytest.mark.parametrize("method", ["dm", "dc", "dsa"])
def test_sets_without_weights_are_distilled_to_the_last_bit_alike(method: str) -> None:
    """With weights taken away, and with or without bias labels, which nothing reads."""
    real, augment = colored_strokes(per_class=20, ratio=0.2), "crop" if method == "dsa" else "none"
    settings = {"ipc": 1, "steps": 2, "real_batch": 10, "network": "convnet:width=4,depth=2", "augment": augment}

    def run(data: RealSet, **more: str) -> tuple[Tensor, Draws]:
        seen = Draws()
        return distill(method, data, callbacks=[seen], **settings, **more).images, seen

    plain, draws = run(real)
    assert draws.weight == [None] * len(draws.weight)
    assert len(draws.weight) >= 2
    for other in (debias(real, "oracle")[0].with_weights(None), dataclasses.replace(real, bias=None)):
        assert torch.equal(run(other)[0], plain)
    assert torch.equal(run(real, debias="none")[0], plain)


def test_no_weights_reach_the_mean_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, reduce = [], Context.reduce

    def spy(self: Context, values: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        seen.append(weight)
        return reduce(self, values, y, weight)

    monkeypatch.setattr(Context, "reduce", spy)
    real = colored_strokes(per_class=20, ratio=0.2)
    distill("dm", real, ipc=1, steps=2, real_batch=10, network="convnet:width=4,depth=2")
    assert seen == [None, None]


@pytest.mark.parametrize("method", ["dm", "dc"])
def test_arms_with_and_without_weights_differ_in_weights_alone(method: str) -> None:
    """The same start, the same networks and the same batches of real images: a gap is one of weights."""
    real = colored_strokes(per_class=20, ratio=0.2)
    settings = {"ipc": 2, "steps": 3, "real_batch": 6, "augment": "none", "init": "real"}
    seen, made = [], []
    for data in (real, debias(real, "oracle")[0]):
        seen.append(Draws())
        made.append(distill(method, data, network="convnet:width=4,depth=2", callbacks=[seen[-1]], **settings))
    plain, weighted = seen
    assert plain.index == weighted.index
    assert plain.network[0] == weighted.network[0]
    assert method == "dc" or plain.network == weighted.network, "those of DC train on the images that they make"
    assert torch.equal(made[0].extra["selected"], made[1].extra["selected"])
    assert all(w is not None for w in weighted.weight)
    assert not torch.equal(made[0].images, made[1].images)
