"""Stage matching against DM and formulas by hand, and its identities (docs of dance, tgdd, ncfm and stages)."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from datastill import distill, load_distilled, load_real
from datastill.cli import main
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import gradients
from datastill.core.plan import Block, Grads, Plan, Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.job import prepare_job
from datastill.methods.ncfm import NCFM
from datastill.models import resolve_network
from datastill.objectives.feature_means import FeatureMeans
from datastill.objectives.moments import Reference, characteristic_distance, distance, statistic, within_variance
from datastill.objectives.stage_match import StageMatch
from datastill.sampling.inits import RandomReal, mosaic
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.experts import ExpertsUnit, open_buffer, train_experts
from datastill.surrogates.experts.policies import Epoch, TrainingSet, get_policy
from datastill.surrogates.experts.policies.momentum import MomentumSgd
from datastill.surrogates.stage_starts import HerdedTiles
from datastill.surrogates.stage_statistics import StageStatistics
from datastill.surrogates.stages import Stage, Stages, load_between, spread_out

NETWORK = "convnet:width=8,depth=2"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def task(digits: RealSet, tmp_path_factory: pytest.TempPathFactory) -> Task:
    factory = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))
    return Task(digits, 2, factory, 0, folder=tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def unit() -> ExpertsUnit:
    return ExpertsUnit(experts=2, epochs=3, policy=MomentumSgd(lr=0.05), span=1, seed=0)


@pytest.fixture(scope="module")
def prepared(task: Task, unit: ExpertsUnit) -> dict[str, dict[str, Tensor]]:
    return {"experts": unit.run(task)}


def context_of(task: Task, plan: Plan, prepared: dict[str, dict[str, Tensor]], step: int = 0) -> Context:
    """At a step, with the random real start as codes and its surrogate."""
    block = Block(0, torch.arange(len(task.labels)), task.labels)
    context = Context(task, plan, block, Rng(task.seed), step=step, steps=50, prepared=prepared)
    context.codes = {"images": RandomReal().images(task, block, context)[0]}
    return context


def match(task: Task, plan: Plan, prepared: dict[str, dict[str, Tensor]], surrogate: object) -> tuple[Tensor, Tensor]:
    """Loss per class and gradient of the images."""
    context = context_of(task, plan, prepared)
    context.surrogate = surrogate
    loss, grads = gradients(context, None)
    return loss, grads["images"]


def plan_of(objective: Any, augment: Any = None, n: int = 30) -> Plan:
    return Plan(
        init=RandomReal(),
        decoder=Pixels(),
        objective=objective,
        sampler=ClassBatches(n),
        augment=augment,
        update={"images": object()},
    )


def test_all_weight_on_the_initialization_is_dm_on_fresh_networks(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]
) -> None:
    buffer = unit.open(task, prepared["experts"])
    network = task.network(0).requires_grad_(False).eval()
    load_between(buffer, network, 1, 3, share=1.0)
    fresh = task.network(Rng(0).child("expert", 1).derive("network")).requires_grad_(False)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))
    mine = match(task, plan_of(StageMatch()), {}, Stage(network, None, 1))
    theirs = match(task, plan_of(FeatureMeans()), {}, fresh)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_weights_between_are_linear(task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]) -> None:
    buffer = unit.open(task, prepared["experts"])
    network = task.network(0)
    load_between(buffer, network, 0, 3, share=0.25)
    rows = buffer.rows(0, [0, 3])
    torch.testing.assert_close(buffer.layout.flatten(network), 0.25 * rows[0] + 0.75 * rows[1])


def test_one_snapshot_and_no_cross_entropy_is_dm_on_a_fixed_network(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]
) -> None:
    stages = Stages(unit, (2,))
    plan = plan_of(StageMatch())
    context = context_of(task, plan, prepared)
    stages.begin(context)
    stage = stages.draw(context)
    fixed = task.network(0).requires_grad_(False)
    buffer = unit.open(task, prepared["experts"])
    buffer.load(fixed, buffer.experts[stage.expert], 2)
    mine, theirs = match(task, plan, prepared, stage), match(task, plan_of(FeatureMeans()), prepared, fixed)
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_kept_statistics_are_the_means_of_the_whole_class_and_give_the_gradient_of_the_whole_batch(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]
) -> None:
    kept = StageStatistics(unit, (1, 3), per_class=10_000, augment=None)
    found = kept.run(replace(task, prepared=prepared))
    network = task.network(0).requires_grad_(False).eval()
    buffer = unit.open(task, prepared["experts"])
    buffer.load(network, buffer.experts[1], 3)
    real = task.real
    for c in range(10):
        features = network.embed(real.batch(real.class_index(c)).x)
        torch.testing.assert_close(found["values"][1, 1, c], features.mean(0), atol=1e-6, rtol=1e-5)
    everything = {**prepared, kept.name: found}
    stage = Stage(network, network, 1, 1)
    for alpha in (0.0, 0.3):
        amortized = StageMatch(alpha=alpha, kept=kept, siamese=False, standardized=True)
        fresh = StageMatch(alpha=alpha, siamese=False, standardized=True)
        mine = match(task, plan_of(amortized), everything, stage)
        theirs = match(task, plan_of(fresh, n=10_000), everything, stage)
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine[1], theirs[1], rtol=1e-3, atol=1e-7)


def test_the_objective_is_the_literal_loss(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]
) -> None:
    """Class by class with autograd through everything, mean and cross-entropy on two networks."""
    first, second = (task.network(k).requires_grad_(False).eval() for k in (5, 6))
    plan = plan_of(StageMatch(alpha=2.5))
    loss, grads = match(task, plan, {}, Stage(first, second, 0))
    context = context_of(task, plan, {})
    batch, y = context.real_batch(), task.labels
    x = context.codes["images"].clone().requires_grad_()
    wanted = torch.stack(
        [
            (first.embed(batch.x[batch.y == c]).mean(0) - first.embed(x[y == c]).mean(0)).square().sum()
            + 2.5 * F.cross_entropy(second(x[y == c]), y[y == c])
            for c in range(10)
        ]
    )
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(grads, torch.autograd.grad(wanted.sum(), x)[0], rtol=1e-4, atol=1e-7)


def sample(n: int = 12, d: int = 5, key: str = "features") -> tuple[Tensor, Tensor]:
    x = torch.randn(n, d, generator=Rng(3).generator(key), dtype=torch.float64)
    return x, torch.arange(n) % 3


class TestCharacteristicFunctions:
    def test_distance_of_a_set_with_itself_is_nothing_and_rows_have_no_order(self) -> None:
        x, y = sample()
        t = sample(7, 5, "t")[0]
        own = statistic("cf", x, y, 3, t=t)
        assert characteristic_distance(own, own).max() < 2e-6
        order = torch.randperm(12, generator=Rng(0).generator("order"))
        torch.testing.assert_close(statistic("cf", x[order], y[order], 3, t=t), own)

    def test_one_frequency_by_hand(self) -> None:
        x, y = sample()
        z = sample(9, 5, "other")[0]
        t = sample(1, 5, "t")[0]
        labels = torch.arange(9) % 3
        first, second = (statistic("cf", a, b, 3, t=t) for a, b in ((x, y), (z, labels)))
        for c in range(3):
            p, q = (torch.exp(1j * (F.normalize(a[b == c], dim=1) @ t[0])).mean() for a, b in ((x, y), (z, labels)))
            angle = torch.angle(p) - torch.angle(q)
            wanted = (0.5 * (p.abs() - q.abs()) ** 2 + 0.5 * 2 * p.abs() * q.abs() * (1 - angle.cos())).sqrt()
            torch.testing.assert_close(characteristic_distance(first, second)[c], wanted, atol=1e-6, rtol=1e-6)

    def test_gradient_against_finite_differences(self) -> None:
        x, y = sample()
        t, other = sample(6, 5, "t")[0], sample(12, 5, "other")[0]
        real = Reference(statistic("cf", other, y, 3, t=t), None, t)

        def loss(features: Tensor) -> Tensor:
            return distance("cf", real, statistic("cf", features, y, 3, t=t), torch.arange(3)).sum()

        assert torch.autograd.gradcheck(loss, x.requires_grad_())

    def test_a_step_of_psi_raises_the_distance(self, digits: RealSet, task: Task) -> None:
        network = task.network(0).requires_grad_(False).eval()
        method = NCFM(frequencies=64, alpha=0.0, psi=True)
        rule = method.more()["update"]["psi"]
        leaf = torch.zeros(4)
        stepper = rule.bind(leaf)

        def evaluated() -> tuple[Tensor, Tensor]:
            context = context_of(task, plan_of(method.objective()), {})
            context.codes["psi"] = leaf.detach().requires_grad_()
            context.surrogate = Stage(network, None, 0)
            context.synthetic = Pixels().decode({"images": context.codes["images"]}, task.labels)
            with torch.enable_grad():
                out = method.objective()(context)
            assert isinstance(out, Grads)
            return out.loss.sum(), out.leaves["psi"]

        before, grad = evaluated()
        with torch.no_grad():
            stepper.after(grad, 0.0)
        assert evaluated()[0] > before


def test_spreads_are_means_and_standard_deviations() -> None:
    x, y = sample()
    found = statistic("spreads", x, y, 3)
    for c in range(3):
        torch.testing.assert_close(found[c, :5], x[y == c].mean(0))
        torch.testing.assert_close(found[c, 5:], x[y == c].std(0, correction=0))


def test_weight_zero_is_absence_and_equal_weights_change_nothing() -> None:
    x, y = sample()
    weight = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(within_variance(x, y, 3, weight), within_variance(x, y, 3))
    weight[9:] = 0
    for moment in ("means", "spreads"):
        torch.testing.assert_close(
            statistic(moment, x, y, 3, weight),
            statistic(moment, x[:9], y[:9], 3),  # type: ignore[arg-type]
        )


def test_a_window_draws_each_of_its_snapshots_alike_and_never_an_earlier_one(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]
) -> None:
    stages = Stages(unit, (0, 1, 2, 3), classify="window", window=2)
    context = context_of(task, plan_of(StageMatch()), prepared)
    stages.begin(context)
    buffer, network, other = stages._opened  # type: ignore[misc]
    rows = {
        k: [buffer.layout.flatten(n) for n in (buffer.load(network, k, e) or network for e in range(4))] for k in (0, 1)
    }
    counts = torch.zeros(4, 4)
    for step in range(400):
        context.step = step
        stage = stages.draw(context)
        drawn = [
            int(torch.stack([(buffer.layout.flatten(n) - r).norm() for r in rows[stage.expert]]).argmin())
            for n in (stage.network, other)
        ]
        counts[drawn[0], drawn[1]] += 1
    assert counts.sum(1).min() > 60, "uniform over four snapshots, 100 each"
    assert (counts > 0).tolist() == [[i <= j < i + 2 for j in range(4)] for i in range(4)]
    for i in range(3):
        expected = counts[i].sum() / 2
        assert (counts[i, i : i + 2] - expected).square().sum() / expected < 10.8, "chi-square, p > .001"


@pytest.mark.parametrize(
    ("last", "count", "wanted"),
    [(12, 4, (1, 2, 5, 12)), (3, 3, (1, 2, 3)), (1, 4, (1,)), (60, 1, (60,)), (5, 9, (1, 2, 3, 4, 5))],
)
def test_early_snapshots_are_dense(last: int, count: int, wanted: tuple[int, ...]) -> None:
    assert spread_out(last, count) == wanted


def test_epochs_of_an_expert_are_one_training_with_momentum(digits: RealSet) -> None:
    """Three epochs by the policy are a plain loop with one optimizer, whose rate falls by its schedule."""
    policy = MomentumSgd(lr=0.05, batch=300, part=0.7)
    factory = resolve_network(NETWORK, channels=1, classes=10, size=(8, 8))
    x, y = digits.batch(torch.arange(len(digits))).x, digits.labels
    data = TrainingSet(x, y, None, "none", torch.device("cpu"))
    network, state, rows = factory(1), {}, list[Tensor]()

    def on_batch(index: Tensor, logits: Tensor) -> None:
        rows.append(index)

    for e in range(3):
        policy.epoch(network, data, Epoch(e, 3, Rng(0).child("epoch", e), state, on_batch))
    literal = factory(1)
    optimizer = torch.optim.SGD(literal.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    per_epoch = len(rows) // 3
    for k, index in enumerate(rows):
        if k == 2 * per_epoch:
            optimizer.param_groups[0]["lr"] *= 0.2
        optimizer.zero_grad()
        F.cross_entropy(literal(x[index]), y[index]).backward()
        optimizer.step()
    assert len(torch.cat(rows[:per_epoch]).unique()) == round(0.7 * len(digits))
    for a, b in zip(network.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_weights_between_snapshots_have_no_statistics_to_keep(digits: RealSet) -> None:
    with pytest.raises(InputError, match="statistics=fresh"):
        distill("stages", digits, ipc=1, law="interpolated")


@pytest.mark.parametrize("means", ["kept", "own"])
def test_a_herded_start_picks_the_tiles_that_come_nearest(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]], means: str
) -> None:
    statistics = StageStatistics(unit, (1, 3), 20, None)
    everything = {**prepared, statistics.name: statistics.run(replace(task, prepared=prepared))}
    start = HerdedTiles(unit, (1, 3), statistics if means == "kept" else None, (1,), factor=2, candidates=12)
    context = context_of(task, plan_of(StageMatch()), everything)
    images, extra = start.images(task, context.block, context)
    index = extra["mixed"]
    assert index.shape == (20, 4)
    assert torch.equal(images, mosaic(task.real, index, 2))
    assert bool((task.real.labels[index] == task.labels[:, None]).all())

    # class 3 by hand: every next tile is the one that leaves the mean nearest to the class's
    candidates = task.real.class_index(3)
    drawn = torch.randperm(len(candidates), generator=context.rng.generator("start candidates", 3))[:12]
    candidates = candidates[drawn]
    small = F.interpolate(task.real.batch(candidates).x, size=(4, 4), mode="nearest")
    seen = F.interpolate(small, size=(8, 8), mode="bilinear")
    network, buffer, parts, wanted = task.network(0).eval(), unit.open(task, prepared["experts"]), [], []
    for k in (0, 1):
        buffer.load(network, buffer.experts[k], 3)
        with torch.no_grad():
            features = network.embed(seen)
        values, variance = (everything[statistics.name][name] for name in ("values", "variance"))
        mean, spread = values[k, 1, 3], variance[k, 1]
        if means == "own":
            mean, spread = features.mean(0), features.var(0, unbiased=False).clamp_min(1e-6)
        parts.append(features / spread.sqrt())
        wanted.append(mean / spread.sqrt())
    rows, target, chosen = torch.cat(parts, 1), torch.cat(wanted), []
    for _ in range(8):
        left = [i for i in range(12) if i not in chosen]
        chosen.append(min(left, key=lambda i: float((rows[[*chosen, i]].mean(0) - target).square().sum())))
    assert sorted(index[6:8].flatten().tolist()) == sorted(candidates[chosen].tolist())
    assert index[6:8, 0].tolist() == candidates[chosen[:2]].tolist()  # the first choices are the first tiles


def test_words_of_a_policy_are_read_from_its_text() -> None:
    assert get_policy("momentum:schedule=constant,lr=0.1") == MomentumSgd(lr=0.1, schedule="constant")
    with pytest.raises(InputError, match="schedule=later"):
        get_policy("momentum:schedule=later")


def test_experts_that_end_too_early_are_refused(
    task: Task, unit: ExpertsUnit, prepared: dict[str, dict[str, Tensor]]
) -> None:
    with pytest.raises(InputError, match="end after 3"):
        Stages(unit, (5,)).begin(context_of(task, plan_of(StageMatch()), prepared))


def test_units_are_shared_and_whoever_takes_them_up_says_so(
    digits: RealSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {"steps": 3, "expert_count": 2, "expert_updates": 20, "statistics_images": 20, "factor": 1}
    words = [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += ["--units", str(tmp_path / "units"), "--network", NETWORK]
    told = []
    for ipc in ("1", "2"):
        assert main(["distill", "stages", "--ipc", ipc, "--out", str(tmp_path / f"run{ipc}"), *words]) == 0
        told.append("taken as they were prepared before" in capsys.readouterr().err)
    assert told == [False, True]
    (folder,) = (p for p in (tmp_path / "units" / "prepare").glob("experts-*") if p.is_dir())
    assert len(open_buffer(folder)) == 2
    alone = distill("stages", digits, ipc=2, network=NETWORK, **small)
    assert torch.equal(alone.images, load_distilled(tmp_path / "run2").images)


def test_an_expert_that_is_gone_from_kept_units_is_trained_again_and_never_passed_over(
    digits: RealSet, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"steps": 2, "expert_count": 2, "expert_updates": 20, "statistics_images": 20, "factor": 1}
    run = functools.partial(distill, "stages", digits, ipc=1, network=NETWORK, units=tmp_path, **small)
    first = run().images
    (folder,) = (p for p in (tmp_path / "prepare").glob("experts-*") if p.is_dir())
    rows = folder / "expert_00000.bin"
    rows.write_bytes(bytes([rows.read_bytes()[0] ^ 1]) + rows.read_bytes()[1:])
    with pytest.raises(InputError, match=rf"remove expert_00000.json in .* and {folder.name}.safetensors beside it"):
        run()
    (folder / "expert_00000.json").unlink()
    with pytest.raises(InputError, match=r"holds 1 of the 2 experts of this run; remove .*\.safetensors as well"):
        run()
    folder.with_name(f"{folder.name}.safetensors").unlink()
    assert torch.equal(run().images, first)


def test_given_experts_count_in_the_cost_as_many_as_they_are_and_tell_their_width(
    digits: RealSet, tmp_path: Path
) -> None:
    wide = "convnet:width=16,depth=1,padding=1"
    factory = resolve_network(wide, channels=1, classes=10, size=(8, 8))
    for name, count in (("few", 1), ("many", 4)):
        train_experts(digits, factory, tmp_path / name, experts=count, epochs=2, policy="momentum")
    costs = []
    for name in ("few", "many"):
        job = prepare_job("stages", digits, ipc=1, network=wide, experts=str(tmp_path / name), width=8, steps=1)
        costs.append(job.method.nominal_preparation(job.task))  # type: ignore[attr-defined]
        assert "width changed nothing, since experts was given" in " ".join(job.remarks)
    assert costs[1] == pytest.approx(4 * costs[0])
    assert distill("stages", digits, ipc=1, network=wide, experts=str(tmp_path / "few"), width=8, steps=1).images.shape


def test_the_tiles_that_were_taken_are_told(digits: RealSet) -> None:
    job = prepare_job("stages", digits, ipc=1, network=NETWORK)
    assert job.method.factor == 1  # type: ignore[attr-defined]
    assert "factor 1" in " ".join(job.remarks)


@pytest.mark.parametrize("method", ["stages", "dance"])
def test_a_factor_that_cannot_cut_is_refused_before_anything_is_trained(
    method: str, digits: RealSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExpertsUnit, "run", lambda *_: pytest.fail("experts were trained"))
    with pytest.raises(InputError, match="8 pixels cannot be cut into 5 tiles"):
        distill(method, digits, ipc=1, network=NETWORK, factor=5, steps=1)


def test_units_do_not_go_into_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = torch.randint(0, 256, (8, 8), generator=Rng(i).generator(name), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    words = ["distill", "herding", "--data", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    assert main([*words, "--feature-passes", "1", "--units", str(tmp_path / "photos" / "units")]) == 2
    assert "lies inside the data" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == ["ant", "bee"]
    assert not (tmp_path / "run").exists()


class WithBatchNorm(nn.Module):
    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits


@pytest.mark.filterwarnings("ignore:.*keeps running statistics")
@pytest.mark.parametrize("method", ["stages", "tgdd", "dance", "ncfm"])
def test_a_network_with_batch_norm_matches_on_its_own_statistics(method: str, digits: RealSet) -> None:
    given: dict[str, Any] = {"steps": 4, "expert_count": 1, "expert_epochs": 2, "factor": 1, "real_batch": 20}
    made = distill(method, digits, ipc=1, network=WithBatchNorm, **given)
    assert torch.isfinite(made.images).all()
