"""The privacy mechanism of federated distillation: sensitivity, noise, denominators, and the account of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from datastill import load_real
from datastill.apps.federated.accountant import Releases, sigma_for, spent, stated_bound
from datastill.apps.federated.feddm import FedDM
from datastill.apps.federated.mechanism import ClippedSums, clipped_sums, noised_counts
from datastill.apps.federated.result import epsilon_text
from datastill.apps.federated.runner import federated
from datastill.apps.federated.strategy import Client, state_of
from datastill.cli import main
from datastill.core.context import Context
from datastill.core.errors import InputError, MissingExtra
from datastill.core.loop import run_block
from datastill.core.plan import Block, Plan, Task
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.models import resolve_network
from datastill.objectives.released_means import ReleasedMeans, clipped
from datastill.sampling.poisson import PoissonBatches

NETWORK = "convnet:width=4,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    real = load_real("digits")
    assert real.test is not None
    return replace(real.subset(torch.arange(300)), test=real.test.subset(torch.arange(50)))


def task_of(real: RealSet, spec: str = NETWORK, ipc: int = 2, seed: int = 3) -> Task:
    factory = resolve_network(spec, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


def block_of(task: Task) -> Block:
    return Block(0, torch.arange(len(task.labels)), task.labels)


def plan_of(task: Task, **options: object) -> Plan:
    strategy = FedDM(ipc=2, steps=4, augment="none", **options)
    return strategy.plan(task, state_of(task.network(1)), task.real.counts.float(), 30.0)


# Off is plain


def test_with_privacy_off_the_images_are_those_of_plain_feddm_bit_for_bit(digits: RealSet) -> None:
    """No clip, no noise, realized counts, the same batches: the mechanism's whole path changes no bit."""
    task = task_of(digits)
    plain = plan_of(task)
    through = replace(
        plan_of(task, mechanism="embedding", updates=1),
        reduce=ClippedSums(math.inf, 0.0, None),
        objective=ReleasedMeans(),
        sampler=plain.sampler,
    )
    images = [run_block(plan, task, block_of(task)).context.codes["images"] for plan in (plain, through)]
    assert torch.equal(*images)
    clipping = replace(through, reduce=ClippedSums(0.5, 0.0, None), objective=ReleasedMeans(0.5))
    assert not torch.equal(images[0], run_block(clipping, task, block_of(task)).context.codes["images"])


def test_several_updates_take_one_release(digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    reduce = ClippedSums.__call__
    monkeypatch.setattr(ClippedSums, "__call__", lambda *a: calls.append(1) or reduce(*a))
    task = task_of(digits)
    for updates, releases in ((1, 4), (2, 2), (3, 2), (4, 1)):
        calls.clear()
        strategy = FedDM(ipc=2, steps=4, mechanism="embedding", updates=updates)
        run_block(strategy.plan(task, state_of(task.network(1)), digits.counts.float(), 30.0), task, block_of(task))
        cost = strategy.spent(7)
        assert cost is not None
        assert len(calls) == releases
        assert cost.releases[0].steps == 7 * releases


# Sensitivity


def released(plan: Plan, task: Task, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The un-noised sums of one step, as the mechanism computes them."""
    seen: list[torch.Tensor] = []

    def reduce(values: torch.Tensor, y: torch.Tensor, weight: object, context: Context) -> torch.Tensor:
        seen.append(clipped_sums(values, y, context.task.classes, 0.7))
        lengths = clipped(values, 0.7).norm(dim=1)
        assert float(lengths.max()) <= 0.7 * (1 + 1e-6)
        return seen[-1]

    run_block(replace(plan, reduce=reduce, steps=1), task, block_of(task))
    return seen[0]


@pytest.mark.parametrize("mechanism", ["embedding", "gradient"])
def test_one_image_changes_a_released_sum_by_at_most_c(
    digits: RealSet, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = digits.subset(torch.arange(30))
    rates, changes = {"sample_rate": 1.0, "mechanism": mechanism, "clip": 0.7}, []
    task = task_of(small)
    plan = plan_of(task, **rates)
    whole = released(plan, task, monkeypatch)
    for k in range(len(small)):
        without = small.subset(torch.tensor([i for i in range(len(small)) if i != k]))
        fewer = replace(task, real=without)
        change = (whole - released(plan, fewer, monkeypatch)).norm()
        assert float(change) <= 0.7 * (1 + 1e-5)
        changes.append(float(change))
    assert max(changes) > 0.5  # the bound is met, so a wrong one would be seen


def test_sums_of_random_rows_change_by_at_most_c() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        n, d = (int(v) for v in torch.randint(1, 40, (2,), generator=generator))
        scale = 10 ** float(torch.randn(1, generator=generator))
        values, y = scale * torch.randn(n, d, generator=generator), torch.randint(0, 3, (n,), generator=generator)
        k = int(torch.randint(n, (1,), generator=generator))
        rest = torch.arange(n) != k
        change = clipped_sums(values, y, 3, 1.5) - clipped_sums(values[rest], y[rest], 3, 1.5)
        assert float(change.norm()) <= 1.5 * (1 + 1e-5)


def test_a_per_image_gradient_is_that_of_the_match(digits: RealSet) -> None:
    """Without clip and noise, their mean is the gradient of || mean h(B) - mean h(S) ||^2."""
    task = task_of(digits.subset(torch.arange(60)))
    plan = plan_of(task, mechanism="gradient", sample_rate=1.0)
    means = replace(plan, reduce=ClippedSums(math.inf, 0.0, None), steps=1)
    plain = replace(means, objective=ReleasedMeans())
    images = [run_block(p, task, block_of(task)).context.codes["images"] for p in (means, plain)]
    assert torch.allclose(*images, atol=1e-5)
    assert not torch.equal(images[0], run_block(replace(plain, steps=0), task, block_of(task)).context.codes["images"])


# Noise


def context_at(task: Task, step: int) -> Context:
    return Context(task, plan_of(task), block_of(task), Rng(3), step=step)


def test_noise_has_its_size_before_and_after_the_division(digits: RealSet) -> None:
    task, y = task_of(digits), torch.zeros(1, dtype=torch.int64)
    drawn = [ClippedSums(5.0, 2.0, torch.full((10,), 8.0))(torch.zeros(1, 20), y, None, context_at(task, s))
             for s in range(100)]  # fmt: skip
    noise = torch.cat([d.flatten() for d in drawn])
    assert float(noise.std()) == pytest.approx(2.0 * 5.0 / 8.0, rel=0.05)
    assert float(noise.mean().abs()) < 0.05
    again = ClippedSums(5.0, 2.0, torch.full((10,), 8.0))(torch.zeros(1, 20), y, None, context_at(task, 0))
    assert torch.equal(drawn[0], again)
    assert not torch.equal(drawn[0], drawn[1])


def test_noise_of_counts_has_its_size(digits: RealSet) -> None:
    labels = torch.arange(10).repeat_interleave(1000)
    drawn = torch.stack([noised_counts(labels, 10, 4.0, Rng(seed)) for seed in range(200)])
    assert float(drawn.std()) == pytest.approx(4.0, rel=0.1)
    assert float(drawn.mean()) == pytest.approx(1000, abs=0.5)


def test_sums_are_divided_by_public_numbers_alone(digits: RealSet) -> None:
    task = task_of(digits)
    mechanism = ClippedSums(10.0, 0.0, torch.full((10,), 4.0))
    values = torch.ones(3, 2)
    found = mechanism(values, torch.tensor([0, 0, 1]), None, context_at(task, 0))
    assert found[:3].tolist() == [[0.5, 0.5], [0.25, 0.25], [0.0, 0.0]]
    with pytest.raises(InputError, match="Weights"):
        mechanism(values, torch.tensor([0, 0, 1]), torch.ones(3), context_at(task, 0))


def test_each_image_is_drawn_with_the_same_probability(digits: RealSet) -> None:
    task, sampler, seen = task_of(digits), PoissonBatches(0.2), torch.zeros(300)
    sizes = []
    for step in range(150):
        batch = sampler.draw(digits, context_at(task, step))
        seen[batch.index] += 1
        sizes.append(len(batch))
    assert float(seen.mean()) == pytest.approx(30, rel=0.04)
    assert float(seen.std()) == pytest.approx(math.sqrt(150 * 0.2 * 0.8), rel=0.15)
    assert float(torch.tensor(sizes).double().std()) == pytest.approx(math.sqrt(300 * 0.2 * 0.8), rel=0.2)
    assert len(PoissonBatches(1.0).draw(digits, context_at(task, 0))) == 300


def test_a_private_client_tells_neither_counts_nor_classes(digits: RealSet) -> None:
    """Clients of other classes send payloads of one kind."""
    strategy = FedDM(ipc=1, steps=2, mechanism="embedding", sample_rate=0.01)
    told = []
    for c in (2, 5):
        few = digits.subset(digits.class_index(c)[:3])
        factory = task_of(few).network
        payload = strategy.send(Client(0, few, factory, 30.0, 3, Rng(3), Runtime()), state_of(factory(0)))
        told.append((payload["labels"].tolist(), payload["counts"].tolist(), payload["images"].shape))
        assert bool(torch.isfinite(payload["images"]).all())
    assert told[0] == told[1]
    counted = replace(strategy, count_sigma=0.5, least_count=2)
    payload = counted.send(Client(0, few, factory, 30.0, 3, Rng(3), Runtime()), state_of(factory(0)))
    assert payload["labels"].tolist() == [5]
    assert payload["counts"][5] != 3


# The account


def test_epsilon_is_that_of_opacus() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    strategy = FedDM(ipc=2, steps=50, mechanism="embedding", updates=5, sigma=1.3, sample_rate=0.2, delta=1e-4)
    cost = strategy.spent(3)
    direct = accountants.RDPAccountant()
    for _ in range(10 * 3):
        direct.step(noise_multiplier=1.3, sample_rate=0.2)
    assert cost is not None
    assert cost.epsilon == pytest.approx(direct.get_epsilon(1e-4), rel=1e-12)
    with_counts = replace(strategy, count_sigma=3.0).spent(3)
    direct.step(noise_multiplier=3.0, sample_rate=1.0)
    assert with_counts is not None
    assert with_counts.epsilon == pytest.approx(direct.get_epsilon(1e-4), rel=1e-12)
    assert with_counts.epsilon > cost.epsilon
    gradient = replace(strategy, mechanism="gradient").spent(3)
    assert gradient is not None
    assert gradient.releases[0].steps == 150


def test_epsilon_falls_with_noise_and_grows_with_releases() -> None:
    pytest.importorskip("opacus")
    by_sigma = [spent([Releases(s, 0.1, 100)], 1e-5).epsilon for s in (0.7, 1.0, 2.0, 5.0)]
    by_steps = [spent([Releases(2.0, 0.1, t)], 1e-5).epsilon for t in (1, 10, 100, 1000)]
    assert by_sigma == sorted(by_sigma, reverse=True)
    assert by_steps == sorted(by_steps)
    assert spent([Releases(0.0, 0.1, 5)], 1e-5).to_dict()["epsilon"] is None


def test_a_wanted_epsilon_is_spent_and_not_exceeded() -> None:
    pytest.importorskip("opacus")
    sigma = sigma_for(3.0, 1e-5, 0.1, 60)
    epsilon = spent([Releases(sigma, 0.1, 60)], 1e-5).epsilon
    assert 2.95 < epsilon <= 3.0


def test_the_stated_bound_is_above_opacus_and_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opacus")
    for sigma, steps in ((2.0, 1), (2.0, 100), (5.0, 3000), (10.0, 20)):
        releases = [Releases(sigma, 1.0, steps)]
        theirs, ours = spent(releases, 1e-5).epsilon, stated_bound(releases, 1e-5)
        assert theirs <= ours <= 1.25 * theirs
    assert spent([Releases(2.0, 1.0, 1)], 1e-5).epsilon == pytest.approx(2.2, abs=0.05)
    monkeypatch.setattr("datastill.apps.federated.accountant._accountant", lambda: None)
    without = spent([Releases(2.0, 1.0, 100)], 1e-5)
    assert without.epsilon == stated_bound([Releases(2.0, 1.0, 100)], 1e-5)
    assert "upper" in without.by
    with pytest.raises(MissingExtra, match=r"datastill\[dp\]"):
        spent([Releases(2.0, 0.1, 100)], 1e-5)


def test_epsilon_is_never_below_zero_and_short_where_it_is_huge() -> None:
    pytest.importorskip("opacus")
    assert spent([Releases(1.0, 0.1, 1)], 0.9).epsilon == 0.0
    assert [epsilon_text(e) for e in (None, 0.0, 4.254, 1.1e19)] == ["no bound", "0.00", "4.25", "1.1e+19"]


def test_a_delta_that_would_let_an_image_out_is_told(digits: RealSet) -> None:
    """Of 300 images 150 are with each client."""
    pytest.importorskip("opacus")
    told = []
    for delta in (1 / 151, 1 / 150):
        strategy = FedDM(ipc=1, steps=1, server_passes=1, mechanism="embedding", delta=delta)
        told.append(federated(strategy, digits, clients=2, rounds=1, network=NETWORK, partition="iid").notes)
    assert not told[0]
    assert "largest client (150)" in told[1][0]


def test_a_run_tells_epsilon_after_each_round(digits: RealSet, tmp_path) -> None:
    pytest.importorskip("opacus")
    strategy = FedDM(ipc=1, steps=4, server_passes=2, mechanism="embedding", updates=2)
    made = federated(strategy, digits, clients=2, rounds=2, network=NETWORK, partition="iid", out=tmp_path / "x")
    told = [one["epsilon"] for one in made.privacy]
    costs = [strategy.spent(r) for r in (1, 2)]
    assert told == [cost.epsilon for cost in costs if cost is not None]
    assert told[0] < told[1]
    assert "epsilon" in made.table()
    page = (tmp_path / "x" / "report.html").read_text()
    assert f"({told[1]:.2f}, 1e-05)-differentially private" in page
    off = federated(replace(strategy, sigma=0.0), digits, clients=2, rounds=1, network=NETWORK, partition="iid")
    assert "no bound" in off.table()


# What is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--network", "convnet:width=4,depth=1,norm=batch"], "batch norm"),
        (["--init", "real"], "copies"),
        (["--sigma", "-1"], "(--sigma) must be a number of at least 0"),
        (["--sigma", "nan"], "(--sigma) must be"),
        (["--delta", "1"], "(--delta) must be a number above 0 and below 1"),
        (["--delta", "0"], "(--delta) must be"),
        (["--sample-rate", "0"], "(--sample-rate) must be"),
        (["--clip", "0"], "(--clip) must be"),
    ],
)
def test_what_no_noise_covers_is_refused_in_a_sentence(options, told: str, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    given = ["--mechanism", "embedding", "--network", NETWORK, "--out", str(out), "--rounds", "1", *options]
    assert main(["federated", "feddm", *given]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
    assert not out.exists()


def test_weights_of_images_are_refused_under_privacy(digits: RealSet) -> None:
    with pytest.raises(InputError, match="Weights"):
        federated(FedDM(mechanism="embedding"), digits.with_weights(torch.ones(300)), network=NETWORK)
