"""DREAM's representatives: k-means against scikit-learn and by its definition, and the sampler in its hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from datastill import distill, load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import one_step, synthesize
from datastill.core.plan import Callback, Plan, Task
from datastill.core.rng import Rng
from datastill.core.running import start
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.job import prepare_job
from datastill.methods.dm import DM
from datastill.methods.dream import Dream
from datastill.models import resolve_network
from datastill.sampling.clusters import representatives
from datastill.sampling.inits import RandomReal
from datastill.sampling.representative import Candidates, Representatives
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.fresh import Fresh

NETWORK = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, ipc: int = 1, network: str | Callable = NETWORK, seed: int = 0) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


def generator(seed: int) -> torch.Generator:
    return Rng(seed).generator("test")


def mixture(seed: int, k: int, n: int, d: int = 6) -> tuple[Tensor, Tensor]:
    """n points around k far centers, each with at least one, and whose they are."""
    drawn = generator(seed)
    which = torch.cat([torch.arange(k), torch.randint(k, (n - k,), generator=drawn)])
    return 30 * torch.randn(k, d, generator=drawn)[which] + torch.randn(n, d, generator=drawn), which


class TestClusters:
    def test_one_sample_of_each_far_component(self) -> None:
        hits = 0
        for seed in range(20):
            x, which = mixture(seed, 12, 200)
            ((chosen, mass),) = representatives([x], 12, generator(seed), [None])
            if len(set(which[chosen].tolist())) == 12:
                hits += 1
                assert torch.equal(mass, torch.bincount(which)[which[chosen]].float())
        assert hits >= 19

    def test_as_good_as_scikit_learn(self) -> None:
        """Where nothing is far apart: inertia within a few percent, over classes of unequal size side by side."""
        sizes = (90, 200, 64)
        classes = [torch.randn(n, 10, generator=generator(n)) for n in sizes]
        found = representatives(classes, 16, generator(0), [None] * 3)
        for x, (chosen, mass) in zip(classes, found, strict=True):
            theirs = KMeans(16, n_init=5, random_state=0).fit(x.numpy())
            assert mass.sum() == len(x)
            nearest = torch.cdist(x, x[chosen]).square().min(1).values.sum()
            to_theirs = torch.cdist(torch.from_numpy(theirs.cluster_centers_), x).argmin(1)
            assert nearest < 1.1 * torch.cdist(x, x[to_theirs]).square().min(1).values.sum()

    def test_by_definition(self) -> None:
        """What comes out is a fixed point: masses are those of the nearest centroids, samples the nearest to them."""
        from datastill.sampling.clusters import _first, _lloyd

        x = torch.randn(1, 150, 5, generator=generator(3))
        w = torch.rand(1, 150, generator=generator(4))
        centers, mass = _lloyd(x, w, _first(x, w, 9, generator(5)))
        member = torch.cdist(x[0], centers[0]).argmin(1)
        for j in range(9):
            mine = member == j
            wanted = (x[0, mine] * w[0, mine, None]).sum(0) / w[0, mine].sum()
            torch.testing.assert_close(centers[0, j], wanted, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(mass[0, j], w[0, mine].sum())

    def test_all_of_a_small_class_once(self) -> None:
        x = torch.randn(7, 3, generator=generator(0))
        for k in (7, 9):
            ((chosen, mass),) = representatives([x], k, generator(0), [None])
            assert sorted(chosen.tolist()) == list(range(7))
            assert mass.tolist() == [1.0] * 7

    def test_samples_are_distinct_even_where_points_coincide(self) -> None:
        x = torch.randn(4, 3, generator=generator(0)).repeat_interleave(5, 0)
        for weights in (None, torch.ones(20)):
            ((chosen, mass),) = representatives([x], 9, generator(1), [weights])
            assert len(set(chosen.tolist())) == 9
            assert mass.sum() == 20

    def test_heavy_samples_pull_centroids(self) -> None:
        x = torch.linspace(0, 1, 101)[:, None]
        w = torch.where(x[:, 0] > 0.9, 100.0, 1.0)
        ((heavy, _),) = representatives([x], 8, generator(0), [w])
        ((even, _),) = representatives([x], 8, generator(0), [None])
        assert (heavy > 90).sum() > (even > 90).sum()

    def test_classes_side_by_side_are_classes_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Far components leave nothing to chance: groups of any size find the same clusters."""
        classes = [mixture(s, 6, n)[0] for s, n in ((0, 40), (1, 25), (2, 60))]
        together = representatives(classes, 6, generator(0), [None] * 3)
        monkeypatch.setattr("datastill.sampling.clusters._TOGETHER", 1)
        for (a, m), (b, n) in zip(together, representatives(classes, 6, generator(0), [None] * 3), strict=True):
            assert set(zip(a.tolist(), m.tolist(), strict=True)) == set(zip(b.tolist(), n.tolist(), strict=True))


def begun(real: RealSet, sampler: Representatives, network: str | Callable = NETWORK, step: int = 0) -> Context:
    """A context at a step, with its network."""
    task = task_of(real, network=network)
    plan = dataclasses.replace(DM(steps=9).build(task), sampler=sampler)
    context = start(plan, task, next(plan.partition.blocks(task.labels)), (), {}).context
    context.step = step
    context.surrogate = Fresh(task.network).draw(context)
    return context


class TestSampler:
    def test_nearest_to_centroids_in_the_features_of_the_step(self, digits: RealSet) -> None:
        """Another network, other clusters; both cover their class better than a random batch does."""
        context = begun(digits, Representatives(8))
        batch = context.real_batch()
        assert torch.bincount(batch.y).tolist() == [8] * 10
        assert len(set(batch.index.tolist())) == 80
        assert batch.weight is None
        network = context.surrogate
        at_random = digits.of_classes(range(10), 8, generator(0))

        def reach(index: Tensor) -> float:
            total = 0.0
            for c in range(10):
                x = network.embed(digits.batch(digits.class_index(c)).x)
                mine = network.embed(digits.batch(index[digits.labels[index] == c]).x)
                total += float(torch.cdist(x, mine).min(1).values.square().sum())
            return total

        assert reach(batch.index) < 0.9 * reach(at_random.index)
        other = begun(digits, Representatives(8))
        other.surrogate = other.task.network(99).train()
        assert set(other.real_batch().index.tolist()) != set(batch.index.tolist())

    def test_kept_for_an_interval(self, digits: RealSet) -> None:
        context = begun(digits, Representatives(5, interval=3))
        seen = []
        for step in range(7):
            context.step = step
            context.surrogate = context.task.network(step).train()
            seen.append(tuple(context.real_batch().index.tolist()))
        assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6]

    def test_leaves_the_network_as_it_is(self, digits: RealSet) -> None:
        context = begun(digits, Representatives(5), "convnet:width=8,depth=1,norm=batch")
        network = context.surrogate
        before = {n: t.clone() for n, t in network.state_dict().items()}
        context.real_batch()
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
        assert all(m.training for m in network.modules())
        assert all(p.grad is None for p in network.parameters())

    def test_cluster_sizes_as_weights(self, digits: RealSet) -> None:
        batch = begun(digits, Representatives(6, weighting="size")).real_batch()
        for c in range(10):
            assert batch.weight[batch.y == c].sum() == digits.counts[c]

    def test_weights_of_images_are_those_of_their_clusters(self, digits: RealSet) -> None:
        weights = torch.rand(len(digits), generator=generator(0))
        weights[digits.class_index(3)[:60]] = 0.0
        batch = begun(digits.with_weights(weights), Representatives(6)).real_batch()
        for c in range(10):
            torch.testing.assert_close(batch.weight[batch.y == c].sum(), weights[digits.class_index(c)].sum())
        assert not set(digits.class_index(3)[:60].tolist()) & set(batch.index.tolist())
        even = begun(digits.with_weights(torch.ones(len(digits))), Representatives(6, weighting="size")).real_batch()
        plain = begun(digits, Representatives(6, weighting="size")).real_batch()
        assert torch.equal(even.index, plain.index)
        assert torch.equal(even.weight, plain.weight)

    def test_draws_by_weight(self, digits: RealSet) -> None:
        """Frequencies in the place of weights: the mass of the heavy half follows its weights."""
        weights = torch.ones(len(digits))
        heavy = torch.arange(len(digits)) % 2 == 0
        weights[heavy] = 9.0
        sampler = Representatives(6, candidates=Candidates(most=500)).by_weight()
        index, times = sampler.candidates.of_class(digits.with_weights(weights), 0, generator(0))
        assert times.sum() == 500
        assert 0.85 < times[heavy[index]].sum() / 500 < 0.95
        batch = begun(digits.with_weights(weights), sampler).real_batch()
        assert all(batch.weight[batch.y == c].sum() == 500 for c in range(10))

    def test_candidates_are_few_and_others_each_time(self, digits: RealSet) -> None:
        of = Candidates(most=20)
        drawn = [set(of.of_class(digits, 2, generator(s))[0].tolist()) for s in (0, 0, 1)]
        assert len(drawn[0]) == 20
        assert drawn[0] == drawn[1] != drawn[2]

    def test_segments_are_refused(self, digits: RealSet) -> None:
        context = begun(digits, Representatives(5))
        context.surrogate = object()
        with pytest.raises(InputError, match="features of a network"):
            context.real_batch()

    def test_the_gradient_of_a_class_is_nearer(self, digits: RealSet) -> None:
        """|| g_batch - g_full ||, of representatives by size and of random batches, over 20 networks."""
        task = task_of(digits)
        away = {"clusters": 0.0, "random": 0.0}
        for seed in range(20):
            context = begun(digits, Representatives(8, weighting="size"))
            context.surrogate = task.network(seed).train()
            batches = {
                "clusters": context.real_batch(),
                "random": digits.of_classes(range(10), 8, generator(seed)),
            }
            for c in range(10):
                wanted = gradient(context.surrogate, digits, digits.class_index(c), None)
                for name, batch in batches.items():
                    mine = batch.of(batch.y == c)
                    away[name] += float((gradient(context.surrogate, digits, mine.index, mine.weight) - wanted).norm())
        assert away["clusters"] < 0.9 * away["random"]


def gradient(network: torch.nn.Module, real: RealSet, index: Tensor, weight: Tensor | None) -> Tensor:
    """The weight gradient of the (weighted) mean cross-entropy, flat."""
    batch = real.batch(index)
    weights = list(network.requires_grad_(True).parameters())
    each = F.cross_entropy(network(batch.x), batch.y, reduction="none")
    share = torch.ones(len(index)) if weight is None else weight
    return torch.cat([g.flatten() for g in torch.autograd.grad((each * share / share.sum()).sum(), weights)])


def plan_of(task: Task, **hyper) -> Plan:
    return Dream(**hyper).for_task(task).build(task)


HOSTS = {
    "idc": {"host": "idc:outer=3,net_images=40"},
    "dc": {"host": "dc:outer=3,inner=2"},
    "dsa": {"host": "dsa:outer=2,inner=1"},
    "dm": {"host": "dm"},
}


class TestHosts:
    @pytest.mark.parametrize("host", HOSTS)
    def test_with_the_hosts_sampler_and_start_it_is_the_host(self, host: str, digits: RealSet) -> None:
        task = task_of(digits, ipc=2)
        shared = {"steps": 4, "real_batch": 12}
        name, _, rest = HOSTS[host]["host"].partition(":")
        options = {k: int(v) for k, _, v in (part.partition("=") for part in rest.split(",") if part)}
        theirs = prepare_job(name, digits, ipc=2, network=NETWORK, **shared, **options).own_plan
        ours = plan_of(task, **HOSTS[host], **shared)
        assert type(ours.sampler) is not type(theirs.sampler)
        same = dataclasses.replace(ours, sampler=theirs.sampler, init=theirs.init)
        a, b = (synthesize(plan, task).codes["images"] for plan in (theirs, same))
        assert torch.equal(a, b)

    def test_once_for_all_of_random_batches_it_is_the_host(self, digits: RealSet) -> None:
        """As many clusters as candidates, drawn once: the representatives are the random images themselves."""
        task = task_of(digits)
        base = dataclasses.replace(DM(steps=1).build(task), init=RandomReal())
        few = Representatives(30, interval=10**6, candidates=Candidates(most=30))

        class AsMany(ClassBatches):
            def draw(self, real: RealSet, context: Context):
                drawn = [few.candidates.of_class(real, c, context.generator("candidates", c))[0] for c in range(10)]
                return real.batch(torch.cat(drawn))

        plans = [dataclasses.replace(base, sampler=sampler) for sampler in (few, AsMany(30))]
        a, b = (synthesize(plan, task).codes["images"] for plan in plans)
        assert torch.equal(a, b)

    def test_starts_from_distinct_representatives_in_every_tile(self, digits: RealSet) -> None:
        made = distill("dream", digits, ipc=2, network=NETWORK, host="idc:net_images=20", steps=1, real_batch=8)
        mixed = made.extra["mixed"]
        assert mixed.shape == (20, 4)
        assert len(set(mixed.flatten().tolist())) == 80
        assert torch.equal(digits.labels[mixed], made.hard_labels.view(4, 20)[0][:, None].expand(-1, 4))

    @pytest.mark.parametrize("host", HOSTS)
    def test_killed_within_an_interval_and_resumed(self, host: str, digits: RealSet, tmp_path) -> None:
        shared = {"network": NETWORK, "ipc": 1, "steps": 7, "interval": 3, "real_batch": 8, "candidates": 40}
        shared |= HOSTS[host]

        class Stop(Exception):
            pass

        class StopAt5(Callback):
            def after_step(self, context: Context) -> None:
                if context.step == 5:
                    raise Stop

        begun_at = []

        class Watch(Callback):
            def after_step(self, context: Context) -> None:
                begun_at.append(context.step)

        whole = distill("dream", digits, **shared)
        out = tmp_path / "run"
        with pytest.raises(Stop):
            distill("dream", digits, out=out, callbacks=[StopAt5()], checkpoint_seconds=0.0, **shared)
        again = distill("dream", digits, out=out, resume=True, callbacks=[Watch()], **shared)
        assert begun_at[0] == 5  # in the middle of an interval
        assert torch.equal(again.images, whole.images)

    def test_runs_on_few_images_of_many_classes_and_on_a_network_of_the_users(self) -> None:
        x = torch.rand(300, 1, 28, 28, generator=generator(0))
        many = load_real((x, torch.arange(300) % 100), holdout=0)
        batch_norm = lambda: torch.nn.Sequential(  # noqa: E731
            torch.nn.Conv2d(1, 4, 3, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(4 * 81, 100),
        )  # fmt: skip
        for host in ("idc:net_images=60", "dm"):
            made = distill("dream", many, ipc=1, network=batch_norm, host=host, steps=2, real_batch=2, interval=1)
            assert torch.isfinite(made.images).all()
            assert made.stored == 100


class TestSettings:
    @pytest.mark.parametrize(
        ("host", "said"),
        [
            ("nope", "no host"),
            ("random", "no host"),
            ("dream", "no host"),
            ("acc-dd", "no host"),
            ("idc:nope=1", "no hyper-parameter 'nope'"),
            ("idc:outer=x", "a whole number"),
            ("idc:outer=0", "outer of the host idc"),
            ("idc:steps=3", "a setting of dream itself"),
        ],
    )
    def test_hosts_that_cannot_be(self, host: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            Dream(host=host)

    def test_a_host_without_class_batches_is_refused(self, digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DM, "build", lambda self, task: Plan(RandomReal(), Pixels(), steps=1))
        with pytest.raises(InputError, match="as the host of dream"):
            distill("dream", digits, ipc=1, network=NETWORK, host="dm", steps=1)

    def test_scaled_settings_are_read_back(self, digits: RealSet) -> None:
        task = task_of(digits, network="convnet:width=32,depth=2")
        full = Dream().for_task(task)
        cheap = full.scaled(task, 20.0)
        assert cheap.steps < full.steps
        assert (cheap.host, "net_images=200" in cheap.host_settings) == ("idc", True)
        named = prepare_job("dream", digits, ipc=1, network="convnet:width=32,depth=2", host="idc:outer=20").method
        assert (named.host, "net_images=200" in named.host_settings) == ("idc:outer=20", True)
        assert named._host(task).outer == 20, "what is named stays"
        assert cheap.candidates < full.candidates
        assert full.steps == 200_000
        assert Dream(host="dm").for_task(task).steps == 20_000
        built = cheap.build(task)
        assert built.surrogates.images == 200  # type: ignore[union-attr]
        assert built.steps == cheap.steps

    def test_the_paper_clusters_all(self, digits: RealSet) -> None:
        assert prepare_job("dream", digits, ipc=1, recipe="paper").method.candidates == 0  # type: ignore[attr-defined]

    def test_clustering_counts_in_the_cost(self, digits: RealSet) -> None:
        task = task_of(digits)
        often, seldom = (Dream(interval=i).for_task(task).macs_per_step(task) for i in (1, 10_000_000))
        host = prepare_job("idc", digits, ipc=1, network=NETWORK, real_batch=128, recipe="paper").method
        assert seldom == pytest.approx(host.macs_per_step(task), rel=1e-3)
        assert often - seldom == pytest.approx(
            len(digits) * task.network.macs, rel=1e-3
        )  # 90 of a class: all are taken
        clustered = Dream(interval=1, real_batch=16).for_task(task).macs_per_step(task)
        lloyd = clustered - Dream(interval=10_000_000, real_batch=16).for_task(task).macs_per_step(task)
        assert lloyd > 1.1 * len(digits) * task.network.macs


def test_the_objective_gives_the_sampler_no_gradient(digits: RealSet) -> None:
    task = task_of(digits)
    plan = plan_of(task, host="dm", steps=2, real_batch=4)
    running = start(plan, task, next(plan.partition.blocks(task.labels)), (), {})
    one_step(running.context, running.steppers, running.guard)
    assert not any(t.requires_grad for t in running.context.state.values())


def test_weights_against_a_bias_are_drawn_by_the_sampler_itself(digits: RealSet) -> None:
    from datastill.overrides.debias import Weights

    weighted = digits.with_weights(torch.rand(len(digits), generator=generator(0)))
    task = task_of(weighted)
    plan = Weights("kde:draw=true", {"draw": True}).apply(plan_of(task, host="dm", steps=1), "dream", task)
    assert isinstance(plan.sampler, Representatives)
    assert plan.sampler.candidates.by_weight
