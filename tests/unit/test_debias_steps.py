"""Steps of DFA and SelecMix: the exchange of bias features, difficulties in a run, and pairs on colored digits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datastill import load_real
from datastill.core.rng import Rng
from datastill.models import NetworkFactory, resolve_network
from datastill.training.dfa import Dfa, DfaTrainer
from datastill.training.selecmix import SelecMix, SelecMixTrainer, contradicting_pairs, mixed
from debias_data import colored_strokes


def factory() -> NetworkFactory:
    return resolve_network("convnet:width=4,depth=2", channels=3, classes=3, size=(12, 12))


# ---- DFA


def loss_of_a_step(options: Dfa, step: int) -> tuple[float, list[Tensor]]:
    """The loss of one step of a new trainer, and its gradient in all weights."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 3, 12, 12, generator=generator), torch.arange(12) % 3
    trainer = DfaTrainer(factory(), y, options, Rng(0))
    loss = trainer.loss(step, torch.arange(12), x, y)
    weights = [p for part in trainer.network.parts() for p in part if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(loss.detach()), [g for g in found if g is not None]


@pytest.mark.parametrize("lam", [1.0, 10.0])
def test_exchanging_with_oneself_doubles_the_loss(lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """L = L_dis + L_swap, and L_swap is L_dis where every sample gets its own bias features."""
    options = Dfa(steps=10, swap_start=3, lam_dis=lam, lam_swap_bias=lam, lam_swap=1.0)
    before, gradient = loss_of_a_step(options, 2)
    permuted, _ = loss_of_a_step(options, 3)
    assert abs(permuted - 2 * before) > 1e-4, "the permutation of this step is another"
    monkeypatch.setattr(torch, "randperm", lambda n, **options: torch.arange(n))
    after, doubled = loss_of_a_step(options, 3)
    assert after == pytest.approx(2 * before, rel=1e-6)
    for twice, once in zip(doubled, gradient, strict=True):
        assert torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1, max_size=12), st.integers(1, 3))
def test_difficulty_is_a_share_whatever_the_losses(losses: list[tuple[float, float]], visits: int) -> None:
    y = torch.arange(len(losses)) % 3
    trainer, index = DfaTrainer(factory(), y, Dfa(), Rng(0)), torch.arange(len(losses))
    bias, intrinsic = torch.tensor(losses).T
    for _ in range(visits):
        trainer.bias_losses.update(index, bias)
        trainer.intrinsic_losses.update(index, intrinsic)
        w = trainer.difficulty(index)
        assert torch.isfinite(w).all()
        assert ((w >= 0) & (w <= 1)).all()


def test_difficulty_is_a_share_at_every_step_of_a_run() -> None:
    real = colored_strokes(per_class=20, ratio=0.2)
    x = real.batch(torch.arange(len(real))).x
    trainer = DfaTrainer(factory(), real.labels, Dfa(steps=30, batch=16, lr=0.01), Rng(0))
    seen: list[Tensor] = []
    trainer.train(x, lambda step: seen.append(trainer.difficulty(torch.arange(len(real)))))
    w = torch.stack(seen)
    assert ((w >= 0) & (w <= 1)).all()
    assert w[-1].std() > 0.02, "and tells samples apart"


# ---- SelecMix


@pytest.mark.parametrize("same", [False, True])
def test_on_colored_digits_the_label_is_that_of_the_larger_share(same: bool) -> None:
    """With the true bias as similarity; shares are read off the mixed pixels, not taken from the code."""
    real = load_real("cmnist:base=digits,ratio=0.05,severity=1")
    x, y, bias = real.pixels(torch.arange(len(real))), real.labels, real.bias
    similarity = (bias[:, None] == bias[None]).float()
    partner = contradicting_pairs(similarity, y, same)
    rng = Rng(0)
    for trial in range(5):
        lam = float(torch.rand(1, generator=rng.generator("lam", trial))) / 2
        images, target = mixed(x, y, partner, lam)
        apart = (x - x[partner]).flatten(1).double()
        share = ((images - x[partner]).flatten(1).double() * apart).sum(1) / apart.square().sum(1)
        assert share == pytest.approx(lam, abs=1e-4)
        assert torch.equal(target, torch.where(share > 0.5, y, y[partner]))
    assert ((y[partner] == y) == same).all()
    wanted = [((y == c) == same) & ((bias == b) != same) for c, b in zip(y, bias, strict=True)]
    possible = torch.stack(wanted).any(1)
    assert torch.equal((bias[partner] == bias) != same, possible), "unlike of the class, or alike of another"
    assert possible.float().mean() > 0.5


def test_without_a_candidate_images_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image per class has no partner of its class; one class alone has none of another."""
    from datastill.training import selecmix

    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    crossed: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def spy(images: Tensor, y: Tensor, partner: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        found = mixed(images, y, partner, lam)
        crossed.append((images, y, *found))
        return found

    monkeypatch.setattr(selecmix, "mixed", spy)
    for labels, same in (([0, 1, 2], True), ([1, 1, 1], False)):
        monkeypatch.setattr(
            selecmix, "contradicting_pairs", lambda s, y, same_class, same=same: contradicting_pairs(s, y, same)
        )
        crossed.clear()
        network = SelecMixTrainer(factory(), torch.tensor(labels), SelecMix(steps=3), Rng(0)).train(x)
        assert torch.isfinite(network(x)).all()
        assert len(crossed) == 3
        for images, y, made, target in crossed:
            assert torch.allclose(made, images, atol=1e-6)
            assert torch.equal(target, y)
