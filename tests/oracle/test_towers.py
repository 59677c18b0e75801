"""Two towers in one trajectory match, the contrastive loss and moments of pairs, against naive code."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from datastill.core.errors import InputError
from datastill.core.rng import Rng, isolated
from datastill.engines.flat import FlatModel
from datastill.engines.hypergradient import MatchTerm, adjoint, draw_plan, full_unroll
from datastill.models import ConvNet, resolve_network
from datastill.models.towers import Towers, tower_slices
from datastill.objectives.pair_moments import PairMoments
from datastill.training.contrastive import KAPPA, contrastive, duplicates, same_images
from datastill.training.trainers import Labeled

PAIRS, TEXT, SHAPE = 5, 7, (2, 8, 8)


class Case:
    """Towers, synthetic pairs, a target, and a student of both towers."""

    def __init__(self, **image) -> None:
        with isolated(2):
            net = ConvNet(SHAPE[0], 6, SHAPE[1:], **({"width": 4, "depth": 2, "norm": "group"} | image))
            self.towers = Towers(net, TEXT).double().train()
        self.model = FlatModel(self.towers)
        g = torch.Generator().manual_seed(0)
        self.theta = self.model.flatten()
        self.x = torch.randn(PAIRS, *SHAPE, generator=g).double()
        self.e = F.normalize(torch.randn(PAIRS, TEXT, generator=g).double(), dim=1)
        self.slices = tuple(tower_slices(self.model.names, self.model.numels).values())
        target = self.theta + 0.05 * torch.randn(len(self.theta), generator=g).double()
        self.terms = [MatchTerm(4, target, towers=self.slices)]
        self.plan = draw_plan(PAIRS, 4, 3, None, SHAPE, Rng(1))

    def run(self, engine, alpha, **options):
        sentences = partial(self.model, method="sentences")
        own = {"loss_fn": contrastive, "label_model": sentences, "blocks": self.slices}
        return engine(self.model, self.theta, self.x, self.e, alpha, self.plan, self.terms, **(own | options))

    def by_hand(self, x, e, alpha):
        """The loss by autograd alone, tower by tower, with lists of parameters."""
        names = dict(self.towers.named_parameters())
        now = {n: p.detach().clone().requires_grad_() for n, p in names.items()}
        for step in self.plan.steps:
            i = step.index
            f = torch.func.functional_call(self.towers, now, (x[i],))
            h = {n.removeprefix("text."): p for n, p in now.items() if n.startswith("text.")}
            g = torch.func.functional_call(self.towers.text, h, (e[i],))
            s = KAPPA * F.normalize(f, dim=1) @ F.normalize(g, dim=1).T
            loss = 0.5 * (F.cross_entropy(s, torch.arange(len(i))) + F.cross_entropy(s.T, torch.arange(len(i))))
            grads = torch.autograd.grad(loss, list(now.values()), create_graph=True)
            rate = {n: alpha[0] if n.startswith("image.") else alpha[1] for n in now}
            now = {n: p - rate[n] * d for (n, p), d in zip(now.items(), grads, strict=True)}
        target = self.model.split(self.terms[0].target)
        total = 0
        for tower in ("image.", "text."):
            mine = [n for n in now if n.startswith(tower)]
            far = sum((names[n].detach() - target[n]).square().sum() for n in mine)
            total = total + sum((now[n] - target[n]).square().sum() for n in mine) / far
        return total


@pytest.mark.parametrize("engine", [adjoint, full_unroll])
def test_two_towers_with_two_rates_are_what_autograd_gives(engine) -> None:
    case, alpha = Case(), torch.tensor([0.3, 0.07], dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (case.x, case.e, alpha)]
    loss = case.by_hand(*leaves)
    expected = torch.autograd.grad(loss, leaves)
    found = case.run(engine, alpha)
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    for mine, theirs in zip((found.x, found.y, found.alpha), expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-9
    assert found.alpha.shape == (2,)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "weight_decay": 0.05}, {"scale": 1.3, "momentum": 0.5}])
def test_momentum_and_decay_keep_the_adjoint_exact_for_each_tower(options) -> None:
    case, alpha = Case(norm="instance"), torch.tensor([0.2, 0.05], dtype=torch.float64)
    mine, theirs = case.run(adjoint, alpha, **options), case.run(full_unroll, alpha, **options)
    for name in ("x", "y", "alpha", "theta"):
        a, b = getattr(mine, name), getattr(theirs, name)
        assert float((a - b).norm() / b.norm()) < 1e-9, name


def test_equal_rates_give_the_gradient_of_one_rate() -> None:
    case = Case()
    two = case.run(adjoint, torch.tensor([0.1, 0.1], dtype=torch.float64))
    one = case.run(adjoint, torch.tensor(0.1, dtype=torch.float64), blocks=())
    assert torch.allclose(two.x, one.x, rtol=1e-9)
    assert float(two.alpha.sum()) == pytest.approx(float(one.alpha), rel=1e-9)


def test_as_many_rates_as_towers() -> None:
    with pytest.raises(InputError, match="2 parts of the weights and rates of"):
        Case().run(adjoint, torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64))


def test_batch_norm_and_dropout_in_a_tower_are_replayed() -> None:
    case = Case(norm="batch")
    with isolated(5):
        case.towers.text.mix = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(6, 6).double())
    case.model = FlatModel(case.towers)
    case.theta = case.model.flatten()
    case.slices = tuple(tower_slices(case.model.names, case.model.numels).values())
    case.terms = [MatchTerm(4, case.theta + 0.05, towers=case.slices)]
    alpha = torch.tensor([0.2, 0.05], dtype=torch.float64)
    mine, theirs = case.run(adjoint, alpha, check=True), case.run(full_unroll, alpha)
    assert float((mine.x - theirs.x).norm() / theirs.x.norm()) < 1e-9


class TestContrastive:
    def test_training_takes_pairs_of_one_image_for_no_others(self) -> None:
        x = torch.arange(192.0).view(3, 1, 8, 8)[[0, 1, 0, 2]]
        same = same_images(Labeled(x, torch.zeros(4, 5)))
        assert (same[:, None] == same[None]).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]

    def naive(self, f, g, same) -> float:
        """Pair by pair, negatives one by one."""
        f, g, total = F.normalize(f, dim=1), F.normalize(g, dim=1), 0.0
        for i in range(len(f)):
            others = [j for j in range(len(f)) if j == i or not same[i][j]]
            for a, b in ((f, g), (g, f)):
                s = torch.stack([KAPPA * a[i] @ b[j] for j in others])
                total += float(-s[others.index(i)] + s.logsumexp(0)) / (2 * len(f))
        return total

    def test_is_the_mean_over_pairs_and_directions(self) -> None:
        f, g = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        none = [[False] * 6 for _ in range(6)]
        assert float(contrastive(f, g)) == pytest.approx(self.naive(f, g, none), rel=1e-12)
        assert float(contrastive(f, g)) == pytest.approx(float(contrastive(g, f)), rel=1e-12)

    def test_pairs_of_one_image_or_one_sentence_are_no_negatives(self) -> None:
        f, g = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        g[3] = g[1]
        image = torch.tensor([0, 1, 2, 3, 0])
        same = [[(i, j) in {(1, 3), (3, 1), (0, 4), (4, 0)} for j in range(5)] for i in range(5)]
        assert duplicates(g, image).tolist() == same
        assert float(contrastive(f, g, image)) == pytest.approx(self.naive(f, g, same), rel=1e-12)


def test_moments_are_those_of_numpy() -> None:
    f, g = torch.randn(30, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).split([4, 3], dim=1)
    found = PairMoments.of(f, g)
    whole = torch.cov(torch.cat([f, g], dim=1).T, correction=0)
    assert torch.allclose(found.covariances[0], whole[:4, :4])
    assert torch.allclose(found.covariances[1], whole[4:, 4:])
    assert torch.allclose(found.cross, whole[:4, 4:])
    assert float(found.distance(found)) == 0.0
    shuffled = PairMoments.of(f, g.roll(1, 0))  # other pairs of the same images and sentences
    gap = (whole[:4, 4:] - shuffled.cross).square().sum() / whole[:4, 4:].square().sum()
    assert float(found.distance(shuffled)) == pytest.approx(float(gap))
    assert float(found.distance(shuffled, cross=0.0)) == pytest.approx(0.0, abs=1e-12)


def test_a_weight_of_two_counts_as_a_pair_that_is_there_twice() -> None:
    f, g = torch.randn(6, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).split([4, 3], dim=1)
    times = torch.tensor([1, 2, 0, 3, 1, 1])
    weighted = PairMoments.of(f, g, times.float())
    repeated = PairMoments.of(f.repeat_interleave(times, 0), g.repeat_interleave(times, 0))
    assert float(repeated.distance(weighted)) == pytest.approx(0.0, abs=1e-12)
    assert float(repeated.distance(PairMoments.of(f, g))) > 0.01


def test_towers_are_called_as_their_image_tower_and_start_from_one_seed() -> None:
    shapes = {"channels": 3, "classes": 16, "size": (16, 16)}
    factory = resolve_network("convnet:width=8,depth=2", **shapes, text=12)
    assert str(factory) == "convnet:width=8,depth=2"
    first, second = factory(1), factory(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first(torch.zeros(2, 3, 16, 16)).shape == first.sentences(torch.zeros(2, 12)).shape == (2, 16)
    alone = resolve_network("convnet:width=8,depth=2", **shapes)
    assert factory.describe()["shapes"] != alone.describe()["shapes"]
