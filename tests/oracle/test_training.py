"""Training against a loop written by hand, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # at the top: the import draws from Python's global generator
from torch import Tensor, nn

from datastill.augment.dsa import Dsa
from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng, isolated
from datastill.training.hard import Schedule, cross_entropy, predict, train

SHAPE = (2, 6, 6)


def linear(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    with isolated(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).to(dtype)


def convolutional(seed: int = 0, norm: nn.Module | None = None, dropout: float = 0.0) -> nn.Module:
    with isolated(seed):
        layers = [nn.Conv2d(2, 4, 3, padding=1), norm or nn.GroupNorm(4, 4), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 3))


def data(n: int = 23, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(n, *SHAPE, dtype=dtype, generator=generator),
        torch.randint(3, (n,), generator=generator),
    )


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class SpeltOutSgd:
    """v <- 0.9 v + (g + 5e-4 p); p <- p - lr v, on the first step v = g + 5e-4 p."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        self.parameters, self.lr = list(parameters), lr
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        for p, v in zip(self.parameters, self.velocity):
            v.copy_(0.9 * v + (p.grad + 5e-4 * p))
            p.sub_(self.lr * v)


def torch_sgd(parameters: Iterable[Tensor], lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)


def by_hand(make_sgd, network, x, y, epochs: int, rng: Rng, *, augment: str, reset: bool = True) -> None:
    """The DC protocol with batches of 8."""
    optimizer = make_sgd(network.parameters(), lr=0.01)
    for epoch in range(epochs + 1):
        order = torch.randperm(len(y), generator=rng.generator("order", epoch))
        for b, start in enumerate(range(0, len(y), 8)):
            index = order[start : start + 8]
            generator = rng.generator("augment", epoch, b)
            record = Dsa(augment).draw(len(index), SHAPE, generator, one_op=True)
            network.zero_grad()
            F.cross_entropy(network(Dsa(augment).apply(x[index], record)), y[index]).backward()
            optimizer.step()
        if epoch == epochs // 2 + 1 and reset:
            optimizer = make_sgd(network.parameters(), lr=0.01 * 0.1)
        elif epoch == epochs // 2 + 1:
            optimizer.param_groups[0]["lr"] *= 0.1


@pytest.mark.parametrize("augment", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_four_epochs_equal_the_hand_written_loop_bit_for_bit(augment):
    (x, y), rng = data(), Rng(7)
    ours, theirs, carried = linear(), linear(), linear()
    losses = train(ours, x, y, Schedule.dc(4, augment=augment, batch=8), rng)
    by_hand(torch_sgd, theirs, x, y, 4, rng, augment=augment)
    by_hand(torch_sgd, carried, x, y, 4, rng, augment=augment, reset=False)
    assert len(losses) == 5
    assert torch.equal(weights(ours), weights(theirs))
    assert not torch.equal(weights(ours), weights(carried))  # the momentum does matter


def test_sgd_is_the_textbook_rule():
    (x, y), rng = data(dtype=torch.float64), Rng(7)
    ours, theirs = linear(dtype=torch.float64), linear(dtype=torch.float64)
    train(ours, x, y, Schedule.dc(30, augment="crop", batch=8), rng)
    by_hand(SpeltOutSgd, theirs, x, y, 30, rng, augment="crop")
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-13


def test_the_dc_schedule():
    schedule = Schedule.dc(1000)
    assert (schedule.passes, schedule.drop_after, schedule.batch, schedule.lr) == (1001, 501, 256, 0.01)
    assert (schedule.momentum, schedule.weight_decay) == (0.9, 5e-4)


def spelt_out(network, x, y, schedule: Schedule, rng: Rng) -> None:
    """Several drops, with the momentum kept or forgotten, and CutMix after the augmentation; each step written out."""
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    lr, dsa = schedule.lr, Dsa(schedule.augment, mode=schedule.augment_mode)
    for p in range(schedule.passes):
        order = torch.randperm(len(y), generator=rng.generator("order", p))
        for b, start in enumerate(range(0, len(y), schedule.batch)):
            index = order[start : start + schedule.batch]
            record = dsa.draw(len(index), SHAPE, rng.generator("augment", p, b), one_op=True)
            images, first = dsa.apply(x[index], record).clone(), y[index]
            generator = rng.generator("cutmix", p, b)
            chance, lam, cy, cx = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
            other, share = torch.randperm(len(index), generator=generator), 1.0
            if chance < schedule.cutmix:
                half, row, column = int(6 * (1 - lam) ** 0.5) // 2, int(6 * cy), int(6 * cx)
                rows = slice(max(0, row - half), min(6, row + half))
                columns = slice(max(0, column - half), min(6, column + half))
                images[:, :, rows, columns] = images[other][:, :, rows, columns]
                share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / 36
            logits = network(images)
            loss = share * F.cross_entropy(logits, first) + (1 - share) * F.cross_entropy(logits, first[other])
            for w, v, g in zip(parameters, velocity, torch.autograd.grad(loss, parameters)):
                v.copy_(0.9 * v + (g + 5e-4 * w.detach()))
                w.data.sub_(lr * v)
        for at, factor in schedule.drops:
            if at == p:
                lr *= factor
                velocity = [torch.zeros_like(v) for v in velocity] if schedule.forget_momentum else velocity


DROPS = ((2, 0.2), (5, 0.5))


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("cutmix", [0.0, 0.5, 1.0])
def test_drops_and_cutmix_are_the_written_out_loop(cutmix, forget):
    """To 1e-12 in float64: mixed labels are one cross-entropy with probabilities here, two with positions there."""
    (x, y), rng = data(dtype=torch.float64), Rng(7)
    ours, theirs, other = (linear(dtype=torch.float64) for _ in range(3))
    options = {"augment": "color_crop_flip_scale_rotate", "augment_mode": "composite", "cutmix": cutmix}
    schedule = Schedule(9, batch=8, drops=DROPS, forget_momentum=forget, **options)
    train(ours, x, y, schedule, rng)
    spelt_out(theirs, x, y, schedule, rng)
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-12
    spelt_out(other, x, y, Schedule(9, batch=8, drops=DROPS, forget_momentum=not forget, **options), rng)
    assert (weights(ours) - weights(other)).abs().max() > 1e-4


def test_drop_after_is_one_drop_to_a_tenth():
    (x, y), rng = data(), Rng(7)
    one, same = linear(), linear()
    train(one, x, y, Schedule(5, batch=8, drop_after=2), rng)
    train(same, x, y, Schedule(5, batch=8, drops=((2, 0.1),)), rng)
    assert torch.equal(weights(one), weights(same))
    schedule = Schedule(5, drops=((1, 0.5), (1, 0.5)))
    assert [schedule.factor_after(p) for p in range(3)] == [None, 0.25, None]


def test_cutmix_leaves_the_rest_alone():
    x, y = data()
    kept, state = x.clone(), torch.get_rng_state()
    mixed, alone, single = convolutional(), convolutional(), convolutional()
    train(mixed, x, y, Schedule(2, batch=8, cutmix=1.0), Rng(0))
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    train(alone, x, y, Schedule(2, batch=8), Rng(0))
    assert (weights(mixed) - weights(alone)).abs().max() > 1e-4
    train(single, x[:1], y[:1], Schedule(2, cutmix=1.0), Rng(0))  # with itself
    expected = convolutional()
    train(expected, x[:1], y[:1], Schedule(2), Rng(0))
    assert torch.allclose(weights(single), weights(expected), atol=1e-6)


def test_an_optimizer_goes_on_with_its_momentum():
    (x, y), rng = data(), Rng(7)
    whole, parts, new = linear(), linear(), linear()
    train(whole, x, y, Schedule(2, batch=23), rng)
    orders = [torch.randperm(23, generator=rng.generator("order", p)) for p in range(2)]
    optimizer = torch_sgd(parts.parameters(), lr=0.01)
    for order in orders:
        train(parts, x[order], y[order], Schedule(1, batch=23), Rng(1), optimizer=optimizer)
        train(new, x[order], y[order], Schedule(1, batch=23), Rng(1))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)
    assert (weights(whole) - weights(new)).abs().max() > 1e-4


def test_a_seed_decides_everything():
    x, y = data()
    schedule = Schedule(3, batch=8, augment="color_crop_cutout_flip_scale_rotate")

    def result(seed: int, dropout: float = 0.5) -> tuple[Tensor, list[float]]:
        network = convolutional(dropout=dropout)
        losses = train(network, x, y, schedule, Rng(seed))
        return weights(network), losses

    first, again, other = result(1), result(1), result(2)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert first[1] != other[1]
    assert first[1] != result(1, dropout=0.0)[1]


def test_images_labels_and_global_generators_are_left_alone():
    x, y = data()
    kept, labels, state = x.clone(), y.clone(), torch.get_rng_state()
    schedule = Schedule(2, batch=8, augment="color_crop_cutout_flip_scale_rotate")
    train(convolutional(dropout=0.5), x, y, schedule, Rng(0))
    assert torch.equal(x, kept)
    assert torch.equal(y, labels)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_images_from_a_function_train_alike():
    x, y = data()
    asked: list[int] = []

    def fetch(index: Tensor) -> Tensor:
        asked.append(len(index))
        return x[index]

    schedule = Schedule(2, batch=8, augment="crop_flip")
    ours, theirs = linear(), linear()
    assert train(ours, x, y, schedule, Rng(3)) == train(theirs, fetch, y, schedule, Rng(3))
    assert torch.equal(weights(ours), weights(theirs))
    assert asked == [8, 8, 7] * 2  # the partial batch is kept


def test_one_hot_probabilities_equal_hard_labels():
    x, y = data(dtype=torch.float64)
    hard, soft, smooth = (linear(dtype=torch.float64) for _ in range(3))
    one_hot = F.one_hot(y, 3).double()
    schedule = Schedule(6, batch=8)
    first = train(hard, x, y, schedule, Rng(0))
    assert train(soft, x, one_hot, schedule, Rng(0)) == pytest.approx(first, abs=1e-12)
    assert (weights(hard) - weights(soft)).abs().max() < 1e-12
    train(smooth, x, 0.9 * one_hot + 0.1 / 3, schedule, Rng(0))
    assert (weights(hard) - weights(smooth)).abs().max() > 1e-4


def test_equal_weights_change_nothing_and_a_zero_removes():
    x, y = data(dtype=torch.float64)
    plain, uniform, without, zeroed = (linear(dtype=torch.float64) for _ in range(4))
    whole = Schedule(5, batch=64)
    train(plain, x, y, whole, Rng(0))
    train(uniform, x, y, whole, Rng(0), weight=torch.full((23,), 0.2, dtype=torch.float64))
    assert (weights(plain) - weights(uniform)).abs().max() < 1e-12
    train(without, x[:20], y[:20], whole, Rng(0))
    train(zeroed, x, y, whole, Rng(0), weight=(torch.arange(23) < 20).double())
    assert (weights(without) - weights(zeroed)).abs().max() < 1e-12
    assert (weights(plain) - weights(zeroed)).abs().max() > 1e-4
    logits = torch.zeros(2, 3, requires_grad=True)
    nothing = cross_entropy(logits, torch.tensor([0, 1]), torch.zeros(2))
    assert nothing.item() == 0.0
    assert torch.autograd.grad(nothing, logits)[0].abs().max() == 0


def test_callbacks_see_each_pass_and_batch():
    x, y = data()
    passes, seen = [], []
    network = linear()
    with torch.no_grad():
        before = network(x)
    losses = train(
        network,
        x,
        y,
        Schedule(2, batch=23),
        Rng(0),
        on_pass=lambda p, loss: passes.append((p, float(loss))),
        on_batch=lambda index, logits: seen.append((index, logits)),
    )
    assert passes == list(enumerate(losses))
    assert sorted(seen[0][0].tolist()) == list(range(23))
    assert torch.allclose(seen[0][1], before[seen[0][0]], atol=1e-6)
    assert not seen[1][1].requires_grad


def test_the_loss_of_a_pass_is_the_mean_over_images():
    x, y = data()
    network = linear()
    with torch.no_grad():
        expected = float(F.cross_entropy(network(x), y))
    losses = train(network, x, y, Schedule(1, lr=1e-12, batch=8), Rng(0))
    assert losses == pytest.approx([expected], abs=1e-6)


def test_frozen_parameters_stay():
    x, y = data()
    network = convolutional()
    network[0].requires_grad_(False)
    before = [p.clone() for p in network.parameters()]
    train(network, x, y, Schedule(2), Rng(0))
    changed = [not torch.equal(a, b) for a, b in zip(before, network.parameters())]
    assert changed == [False, False, True, True, True, True]


@pytest.mark.parametrize("passes", [3, 250])
def test_divergence_is_one_clear_sentence(passes):
    x, y = data()
    with pytest.raises(Diverged, match="pass 1 is not finite; lower the learning rate"):
        train(linear(), x * float("nan"), y, Schedule(passes), Rng(0))


def test_divergence_stops_early():
    x, y = data()
    passes: list[int] = []
    with pytest.raises(Diverged):
        train(linear(), x * float("inf"), y, Schedule(5000), Rng(0), on_pass=lambda p, _: passes.append(p))
    assert len(passes) < 200


@pytest.mark.parametrize(
    "options",
    [
        {"passes": -1},
        {"passes": 1, "batch": 0},
        {"passes": 1, "lr": 0.0},
        {"passes": 1, "augment": "x"},
        {"passes": 1, "augment_mode": "x"},
        {"passes": 1, "cutmix": 1.5},
        {"passes": 1, "drops": ((-1, 0.1),)},
        {"passes": 1, "drops": ((0, 0.0),)},
        {"passes": 1, "drops": ((0, 0.1),), "drop_after": 0},
    ],
)
def test_a_schedule_out_of_range_is_refused(options):
    with pytest.raises(InputError):
        Schedule(**options)


def test_data_that_do_not_fit_are_refused():
    x, y = data()
    with pytest.raises(InputError, match="23 images but 5 labels"):
        train(linear(), x, y[:5], Schedule(1), Rng(0))
    with pytest.raises(InputError, match="no images"):
        train(linear(), x[:0], y[:0], Schedule(1), Rng(0))
    with pytest.raises(InputError, match="weights of shape"):
        train(linear(), x, y, Schedule(1), Rng(0), weight=torch.ones(2))
    with pytest.raises(InputError, match="needs n"):
        predict(linear(), lambda index: x[index])
    with pytest.raises(InputError, match="no images"):
        predict(linear(), x[:0])


def test_no_pass_changes_nothing():
    x, y = data()
    network = linear()
    before = weights(network)
    assert train(network, x, y, Schedule(0), Rng(0)) == []
    assert torch.equal(weights(network), before)


def test_prediction_is_the_same_for_every_chunk_and_restores_modes():
    x, y = data(50)
    network = convolutional(norm=nn.BatchNorm2d(4), dropout=0.5)
    train(network, x, y, Schedule(2, batch=10), Rng(0))
    network[3].eval()
    running = network[1].running_mean.clone()
    whole = predict(network, x, chunk=50)
    for chunk in (1, 7, None):
        assert torch.allclose(predict(network, x, chunk=chunk), whole, atol=1e-5)
        assert torch.allclose(predict(network, lambda i: x[i], 50, chunk=chunk), whole, atol=1e-5)
    assert torch.equal(predict(network, x, 20, chunk=50), predict(network, x[:20], chunk=50))
    assert [m.training for m in network] == [True, True, True, False, True, True]
    assert torch.equal(network[1].running_mean, running)
    assert not whole.is_inference()  # a teacher's logits become targets


def test_prediction_restores_modes_after_an_error():
    network = linear()
    with pytest.raises(RuntimeError):
        predict(network, torch.zeros(2, 1, 5, 5))
    assert network.training
    assert network[1].training


def test_digits_reach_what_an_ordinary_loop_reaches():
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target, dtype=torch.int64)

    def network() -> nn.Module:
        with isolated(0):
            return nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1),
                nn.GroupNorm(16, 16),
                nn.ReLU(),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(256, 10),
            )

    ours, theirs = network(), network()
    train(ours, x[:500], y[:500], Schedule(40, batch=64), Rng(0))
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(40):
        for batch in torch.randperm(500, generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(theirs(x[batch]), y[batch]).backward()
            optimizer.step()
    ours_right = (predict(ours, x[500:]).argmax(1) == y[500:]).float().mean()
    theirs_right = (predict(theirs, x[500:]).argmax(1) == y[500:]).float().mean()
    assert theirs_right > 0.85
    assert ours_right > theirs_right - 0.01
