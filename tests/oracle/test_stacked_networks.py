"""Networks trained side by side end where each would have ended alone."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits  # at the top: the import draws from Python's global generator
from torch import Tensor, nn

from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng, isolated
from datastill.training.hard import Schedule, predict
from datastill.training.stacked import train_many, why_not_stacked

ALL = "color_crop_cutout_flip_scale_rotate"


def network(seed: int, dtype: torch.dtype = torch.float64, width: int = 4, classes: int = 3) -> nn.Module:
    with isolated(seed):
        return nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(width * 16, classes),
        ).to(dtype)


def data(n: int = 13, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(n, 2, 8, 8, dtype=dtype, generator=generator),
        torch.randint(3, (n,), generator=generator),
    )


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def both_ways(schedule: Schedule, count: int = 3, soft: bool = False, weight: Tensor | None = None):
    x, y = data()
    target = torch.softmax(x.flatten(1)[:, :3], 1) if soft else y
    results = []
    for stacked in (True, False):
        nets = [network(k) for k in range(count)]
        rngs = [Rng(100 + k) for k in range(count)]
        losses = train_many(nets, x, target, schedule, rngs, stacked=stacked, weight=weight)
        results.append((torch.stack([weights(n) for n in nets]), torch.tensor(losses)))
    return results


@pytest.mark.parametrize("augment", ["none", ALL])
def test_stacked_equals_one_by_one_after_fifty_passes(augment):
    schedule = Schedule(50, batch=5, drop_after=26, augment=augment)
    (stacked, losses), (alone, losses_alone) = both_ways(schedule)
    assert (stacked - alone).abs().max() < 1e-10
    assert losses.shape == (3, 50)
    assert (losses - losses_alone).abs().max() < 1e-6
    start = torch.stack([weights(network(k)) for k in range(3)])
    assert (stacked - start).abs().max() > 1e-2  # they were trained
    gaps = (losses[0] - losses[1]).abs()
    assert gaps.min() > 0  # each on its own


def test_the_momentum_is_forgotten_in_both_ways():
    (with_drop, _), (alone, _) = both_ways(Schedule(6, batch=5, drop_after=2))
    (without, _), _ = both_ways(Schedule(6, batch=5))
    assert (with_drop - alone).abs().max() < 1e-12
    assert (with_drop - without).abs().max() > 1e-4


@pytest.mark.parametrize("forget", [True, False])
def test_several_drops_and_cutmix_stack(forget):
    """Each network has its own draw of CutMix: some mix a batch that others leave."""
    schedule = Schedule(12, batch=5, drops=((3, 0.2), (7, 0.5)), forget_momentum=forget, cutmix=0.5, augment="crop")
    for soft in (False, True):
        (stacked, losses), (alone, losses_alone) = both_ways(schedule, soft=soft)
        assert (stacked - alone).abs().max() < 1e-12
        assert (losses - losses_alone).abs().max() < 1e-6


def test_soft_labels_and_weights_stack():
    weight = torch.linspace(0, 2, 13, dtype=torch.float64)
    for soft in (False, True):
        (stacked, _), (alone, _) = both_ways(Schedule(10, batch=5, augment="crop"), soft=soft, weight=weight)
        assert (stacked - alone).abs().max() < 1e-12


def test_a_network_does_not_depend_on_its_neighbors():
    x, y = data()
    schedule = Schedule(5, batch=5, augment=ALL)
    pair, single = [network(0), network(1)], [network(1)]
    train_many(pair, x, y, schedule, [Rng(0), Rng(1)], stacked=True)
    train_many(single, lambda index: x[index], y, schedule, [Rng(1)], stacked=True)
    assert (weights(pair[1]) - weights(single[0])).abs().max() < 1e-12


def test_float32_reaches_equal_accuracy():
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 2, -1, -1) / 8 - 1
    y = torch.tensor(digits.target, dtype=torch.int64)
    right = []
    for stacked in (True, False):
        nets = [network(k, torch.float32, width=16, classes=10) for k in range(2)]
        train_many(nets, x[:300], y[:300], Schedule.dc(40, batch=64), [Rng(0), Rng(1)], stacked=stacked)
        right.append(torch.stack([(predict(n, x[300:]).argmax(1) == y[300:]).double().mean() for n in nets]))
    assert (right[0] - right[1]).abs().max() <= 0.002
    assert right[0].min() > 0.8


@pytest.mark.parametrize("stacked", [True, False])
def test_progress_and_generators(stacked):
    x, y = data()
    told: dict[tuple[int, int], float] = {}
    state, kept = torch.get_rng_state(), x.clone()
    losses = train_many(
        [network(0), network(1)],
        x,
        y,
        Schedule(3, batch=5, augment=ALL),
        [Rng(0), Rng(1)],
        stacked=stacked,
        on_pass=lambda k, p, loss: told.update({(k, p): float(loss)}),
    )
    assert told == {(k, p): losses[k][p] for k in range(2) for p in range(3)}
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)


def test_divergence_is_told():
    x, y = data()
    with pytest.raises(Diverged, match="pass 1"):
        train_many([network(0), network(1)], x * torch.inf, y, Schedule(3), [Rng(0), Rng(1)], stacked=True)


def test_what_cannot_be_stacked_is_said_or_trained_one_by_one():
    x, y = data()
    batch_norm = [nn.Sequential(nn.BatchNorm2d(2), network(k)).double() for k in range(2)]
    dropout = [nn.Sequential(nn.Dropout(0.5), network(k)) for k in range(2)]
    frozen = [network(0), network(1)]
    frozen[1][0].requires_grad_(False)
    for nets, why in (
        (batch_norm, "buffers"),
        (dropout, "dropout"),
        (frozen, "frozen"),
        ([network(0), network(1, width=2)], "differ"),
        ([nn.Flatten()], "no parameters"),
    ):
        assert why in (why_not_stacked(nets) or "")
        with pytest.raises(InputError, match=why):
            train_many(nets, x, y, Schedule(1), [Rng(k) for k in range(len(nets))], stacked=True)
    assert why_not_stacked([network(0), network(1)]) is None
    assert len(train_many(batch_norm, x, y, Schedule(2), [Rng(0), Rng(1)])) == 2
    with pytest.raises(InputError, match="2 networks but 1"):
        train_many(batch_norm, x, y, Schedule(1), [Rng(0)])
    assert train_many([], x, y, Schedule(1), []) == []
    assert train_many([network(0)], x, y, Schedule(0), [Rng(0)], stacked=True) == [[]]
