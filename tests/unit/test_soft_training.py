"""Training on soft labels: stored, on line and hard ones in one loop, checked against loops written out."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.trace import TraceSpec
from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng, isolated
from datastill.labels.bank import LabelBank
from datastill.labels.labeler import Labeler
from datastill.training.soft import (
    SOFT_RECIPES,
    SoftSchedule,
    batch_bounds,
    optimizer_of,
    rded_batch,
    soft_loss,
    train_soft,
)

TRACE = TraceSpec(crop="resized", min_scale=0.5, mix="cutmix")
SCHEDULE = SoftSchedule(4, 5, lr=5e-3, temperature=4.0, tau2=True, trace=TRACE)


def network(seed: int = 0, classes: int = 4, dropout: float = 0.0) -> nn.Module:
    with isolated(seed):
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),  # a bias here would move by rounding errors alone, under Adam
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(6 * 48, classes),
        )


def data(n: int = 13) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 2, 8, 6, generator=torch.Generator().manual_seed(3))
    return x, torch.arange(n) % 4


def weights(trained: nn.Module) -> Tensor:
    return torch.cat([t.double().flatten() for t in trained.state_dict().values()])


def bank_of(folder: Path, labeler: Labeler, **settings: Any) -> LabelBank:
    settings = {"epochs": 4, "batch": 5, "seed": 9, **settings}
    return LabelBank.make(folder, data()[0], labeler, TRACE, **settings)


def by_hand(net: nn.Module, schedule: SoftSchedule, rng: Rng, teacher: nn.Module | None) -> list[float]:
    """The loop written out: order, augmentation, labels, loss, optimizer."""
    x, y = data()
    net.train()
    if schedule.optimizer == "sgd":
        kind: Any = torch.optim.SGD
        extra: dict[str, float] = {"momentum": schedule.momentum}
    else:
        kind, extra = torch.optim.AdamW, {}
    optimizer = kind(net.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, **extra)
    losses = []
    for epoch in range(schedule.epochs):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * 0.5 * (1 + math.cos(math.pi * epoch / schedule.epochs))
        order = torch.randperm(len(x), generator=rng.generator("order", epoch))
        total = 0.0
        for b, rows in enumerate((order[:5], order[5:10], order[10:])):
            trace = schedule.trace.sample(rng.generator("trace", epoch, b), len(rows), x.shape[1:])
            views = trace.apply(x[rows])
            logits = net(views)
            if teacher is None:
                targets = trace.hard_targets(y[rows], 4)
                loss = -(targets * logits.log_softmax(1)).sum(1).mean()
            else:
                with torch.no_grad():
                    t = copy.deepcopy(teacher).eval()(views)
                p, q = ((z / schedule.temperature).softmax(1) for z in (t, logits))
                loss = (p * (p.log() - q.log())).sum(1).mean()
                if schedule.tau2:
                    loss = loss * schedule.temperature**2
                if schedule.loss == "mse":
                    loss = ((t - logits) ** 2).mean()
                loss = loss + schedule.hard_weight * F.cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows) / len(x)
        losses.append(total)
    return losses


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tau2": False, "optimizer": "sgd", "lr": 0.05, "weight_decay": 1e-3},
        {"loss": "mse", "hard_weight": 0.3},
        {"hard_weight": 0.5, "trace": TraceSpec(crop="padded", pad=2, mix="mixup", alpha=0.8)},
    ],
)
def test_training_is_the_loop_written_out(soft: bool, changes: dict[str, Any]) -> None:
    schedule = replace(SCHEDULE, **changes)
    teacher = network(5)
    ours, theirs = network(), network()
    x, y = data()
    labeler = Labeler([teacher]) if soft else None
    losses = train_soft(ours, x, y, schedule, Rng(9), labeler=labeler)
    assert losses == pytest.approx(by_hand(theirs, schedule, Rng(9), teacher if soft else None), rel=1e-4)
    assert (weights(ours) - weights(theirs)).abs().max() < 1e-4
    assert ours.training
    assert torch.equal(x, data()[0])


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_stored_and_on_line_labels_train_alike(tmp_path: Path, mode: str) -> None:
    x, y = data()
    labeler = Labeler([network(5)], mode=mode)
    schedule = replace(SCHEDULE, teacher_mode=mode)
    exact = bank_of(tmp_path / "exact", labeler, dtype="float32")
    half = bank_of(tmp_path / "half", labeler)
    on_line, stored, rounded = network(), network(), network()
    losses = train_soft(on_line, x, y, schedule, Rng(9), labeler=labeler)
    assert train_soft(stored, x, y, schedule, Rng(9), bank=exact) == losses
    assert torch.equal(weights(on_line), weights(stored))
    assert train_soft(rounded, x, y, schedule, Rng(9), bank=half) == pytest.approx(losses, rel=2e-3)
    assert 0 < (weights(on_line) - weights(rounded)).abs().max() < 5e-3
    other = network()
    train_soft(other, x, y, replace(schedule, teacher_mode="eval"), Rng(9))
    assert (weights(on_line) - weights(other)).abs().max() > 1e-2  # hard labels are something else


def test_a_bank_is_used_again_in_another_order_of_its_batches(tmp_path: Path) -> None:
    x, y = data()
    bank = bank_of(tmp_path / "bank", Labeler([network(5)]), epochs=2)
    seen: list[tuple[int, tuple[int, ...]]] = []
    stored = {
        tuple(bank[e, b].positions.tolist()): (bank[e, b].trace.apply(x[bank[e, b].positions]), e)
        for e in range(2)
        for b in range(bank.batches)
    }

    class Watching(nn.Sequential):
        def forward(self, views: Tensor) -> Tensor:
            key = next(key for key, (view, _) in stored.items() if torch.equal(view, views))
            seen.append((stored[key][1], key))
            return super().forward(views)

    student = Watching(*network())
    train_soft(student, x, y, replace(SCHEDULE, epochs=6), Rng(1), bank=bank)
    epochs = [seen[3 * e : 3 * e + 3] for e in range(6)]
    order = [tuple(bank[e, b].positions.tolist()) for e in range(2) for b in range(3)]
    assert [key for _, key in epochs[0] + epochs[1]] == order
    for e in range(2, 6):
        assert {at for at, _ in epochs[e]} == {e % 2}
        assert {key for _, key in epochs[e]} == set(order[3 * (e % 2) : 3 * (e % 2) + 3])
    assert any([key for _, key in epochs[e]] != order[3 * (e % 2) : 3 * (e % 2) + 3] for e in range(2, 6))


def test_the_average_is_of_parameters_and_the_live_ones_train_on() -> None:
    x, y = data()
    schedule = replace(SCHEDULE, ema=0.9)
    plain, averaged = network(), network()
    start = [p.detach().clone() for p in plain.parameters()]
    steps: list[list[Tensor]] = []

    class Watching(nn.Sequential):
        def forward(self, views: Tensor) -> Tensor:
            steps.append([p.detach().clone() for p in self.parameters()])
            return super().forward(views)

    watched = Watching(*plain)
    shown: list[list[Tensor]] = []
    losses = train_soft(watched, x, y, replace(schedule, ema=0.0), Rng(9))
    steps.append([p.detach().clone() for p in plain.parameters()])
    found = train_soft(
        averaged,
        x,
        y,
        schedule,
        Rng(9),
        on_pass=lambda epoch, loss: shown.append([p.detach().clone() for p in averaged.parameters()]),
    )
    assert found == losses
    mean, means = start, []
    for step in steps[1:]:
        mean = [0.9 * m + 0.1 * p for m, p in zip(mean, step, strict=True)]
        means.append(mean)
    for epoch in range(4):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(shown[epoch], means[3 * epoch + 2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(averaged.parameters(), shown[-1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(averaged.buffers(), plain.buffers(), strict=True))
    assert not torch.equal(averaged[0].weight, plain[0].weight)


def test_the_same_seed_trains_the_same_network_whatever_the_global_generator() -> None:
    x, y = data()
    trained = []
    for seed in (0, 1):
        with isolated(seed):
            net = network(dropout=0.5)
            torch.rand(seed + 1)
            train_soft(net, x, y, SCHEDULE, Rng(9), labeler=Labeler([network(5)]))
            trained.append(weights(net))
    assert torch.equal(*trained)
    other = network(dropout=0.5)
    train_soft(other, x, y, SCHEDULE, Rng(10), labeler=Labeler([network(5)]))
    assert not torch.equal(trained[0], weights(other))


@pytest.mark.parametrize(("count", "sizes"), [(13, [5, 5, 3]), (11, [5, 6]), (6, [6]), (10, [5, 5])])
def test_a_last_batch_of_one_joins_the_one_before(count: int, sizes: list[int]) -> None:
    assert [b - a for a, b in pairwise(batch_bounds(count, 5))] == sizes


def test_batches_of_one_are_left_where_they_are_asked_for() -> None:
    assert batch_bounds(3, 1) == [0, 1, 2, 3]
    assert batch_bounds(1, 8) == [0, 1]
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match="at least 1"):
            batch_bounds(*wrong)


def test_targets_may_be_probabilities_in_any_precision() -> None:
    x, y = data()
    positions, probabilities, double = network(), network(), network().double()
    losses = train_soft(positions, x, y, SCHEDULE, Rng(0))
    one_hot = F.one_hot(y, 4).float()
    assert train_soft(probabilities, x, one_hot, SCHEDULE, Rng(0)) == losses
    assert train_soft(double, x.double(), one_hot, SCHEDULE, Rng(0)) == pytest.approx(losses, rel=1e-3)


def test_a_leftover_image_does_not_break_batch_norm() -> None:
    """Features of one image are one value per channel, of which batch norm has no variance."""
    x, y = data(6)
    with isolated(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    assert len(train_soft(net, x, y, SCHEDULE, Rng(0))) == 4


def test_learning_rates_follow_their_curves() -> None:
    full = SoftSchedule(8, 5)
    half = replace(full, curve="half-cosine")
    assert [full.factor(e) for e in (0, 4, 7)] == pytest.approx([1, 0.5, 0.5 * (1 + math.cos(math.pi * 7 / 8))])
    assert [half.factor(e) for e in (0, 4, 8)] == pytest.approx([1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5])
    warm = replace(full, epochs=10, warmup=5)
    assert [warm.factor(e) for e in range(6)] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1])
    assert warm.factor(9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 5)))
    assert replace(full, epochs=2, warmup=5).factor(1) == pytest.approx(0.208)


def test_the_rates_reach_the_optimizer() -> None:
    """With a linear student and SGD without momentum the first step of a warm-up is a hundredth of a full one."""
    x, y = data(5)
    moved = []
    for warmup in (0, 1):
        with isolated(0):
            net = nn.Sequential(nn.Flatten(), nn.Linear(96, 4))
        start = net[1].weight.detach().clone()
        schedule = SoftSchedule(
            1, 5, optimizer="sgd", lr=0.1, momentum=0, weight_decay=0, warmup=warmup, trace=TraceSpec(flip=False)
        )
        train_soft(net, x, y, schedule, Rng(0))
        moved.append(net[1].weight.detach() - start)
    assert torch.allclose(moved[1], moved[0] / 100, rtol=1e-2, atol=1e-6)


def test_only_matrices_decay_where_asked() -> None:
    net = network()
    groups = optimizer_of(net, replace(SCHEDULE, decay="matrices", weight_decay=0.01)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in net.parameters()] == [0.01, 0, 0, 0.01, 0]
    groups = optimizer_of(net, SCHEDULE).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(5, 0.01)]
    net[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in optimizer_of(net, SCHEDULE).param_groups) == 4


def test_the_temperature_squared_keeps_the_gradient_of_soft_labels() -> None:
    """For logits small beside t the gradient of t^2 KL is (student - teacher) / C, centered, whatever t."""
    g = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, dtype=torch.float64, generator=g).requires_grad_()
    teacher = torch.randn(3, 4, dtype=torch.float64, generator=g)
    schedule = replace(SCHEDULE, temperature=1e4, tau2=True)
    (gradient,) = torch.autograd.grad(soft_loss(student, teacher, schedule), student)
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(1, keepdim=True)) / 4 / 3
    assert torch.allclose(gradient, expected, rtol=1e-3)
    (plain,) = torch.autograd.grad(soft_loss(student, teacher, replace(schedule, tau2=False)), student)
    assert torch.allclose(plain * 1e8, gradient, rtol=1e-6)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    x, y = data()
    labeler = Labeler([network(5)])
    bank = bank_of(tmp_path / "bank", labeler)
    top = bank_of(tmp_path / "top", labeler, top_k=2, temperature=4.0)

    def refused(words: str, schedule: SoftSchedule = SCHEDULE, images: Tensor = x, **source: Any) -> None:
        net = network()
        with pytest.raises(InputError, match=words):
            train_soft(net, images, y, schedule, Rng(0), **source)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), network().parameters(), strict=True))

    refused("give one of them", labeler=labeler, bank=bank)
    refused("other images", images=x + 1, bank=bank)
    refused("train with the bank's augmentation", replace(SCHEDULE, trace=TraceSpec()), bank=bank)
    refused("batches of 5 images", replace(SCHEDULE, batch=6), bank=bank)
    refused("change teacher_mode", replace(SCHEDULE, teacher_mode="batch"), bank=bank)
    refused("change teacher_mode", replace(SCHEDULE, teacher_mode="batch"), labeler=labeler)
    refused("at temperature 4", replace(SCHEDULE, temperature=20.0), bank=top)
    refused("at temperature 4", replace(SCHEDULE, loss="mse"), bank=top)
    refused("12 images but 13 labels", images=x[:12])
    refused("its labels have 7", labeler=Labeler([network(5, classes=7)]))
    train_soft(network(), x, y, SCHEDULE, Rng(0), bank=top)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    x, y = data()
    with pytest.raises(Diverged, match="lower the learning rate"):
        train_soft(network(), x * float("nan"), y, SCHEDULE, Rng(0))


def test_schedules_that_cannot_be_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"optimizer": "lion"},
        {"decay": "some"},
        {"curve": "linear"},
        {"loss": "l1"},
        {"teacher_mode": "train"},
        {"epochs": -1},
        {"batch": 0},
        {"lr": 0.0},
        {"temperature": 0.0},
        {"weight_decay": -1.0},
        {"warmup": -1},
        {"ema": 1.0},
    ]
    for changes in wrong:
        with pytest.raises(InputError):
            replace(SCHEDULE, **changes)


def test_recipes_are_the_published_ones() -> None:
    sre2l, cifar = SOFT_RECIPES["sre2l_imagenet"], SOFT_RECIPES["sre2l_cifar"]
    assert (sre2l.epochs, sre2l.batch, sre2l.lr, sre2l.weight_decay, sre2l.decay) == (300, 1024, 1e-3, 0.01, "matrices")
    assert (sre2l.temperature, sre2l.tau2, sre2l.loss, sre2l.trace.min_scale) == (20, False, "kl", 0.08)
    assert (cifar.epochs, cifar.batch, cifar.temperature, cifar.decay, cifar.teacher_mode) == (
        400,
        128,
        30,
        "all",
        "batch",
    )
    assert cifar.trace == TraceSpec(crop="padded", pad=4, flip=True, mix="mixup", alpha=0.8)
    tiny = SOFT_RECIPES["tiny_sgd"]
    assert (tiny.optimizer, tiny.lr, tiny.momentum, tiny.weight_decay) == ("sgd", 0.2, 0.9, 1e-4)
    assert (tiny.epochs, tiny.warmup, tiny.batch, tiny.tau2, tiny.temperature) == (200, 5, 64, True, 20)
    dwa, rded = SOFT_RECIPES["dwa_imagenet"], SOFT_RECIPES["rded"]
    assert (dwa.epochs, dwa.batch, dwa.temperature, dwa.trace.mix) == (300, 128, 20, "cutmix")
    assert (rded.curve, rded.trace.shuffle, rded.trace.min_scale, rded.epochs) == ("half-cosine", 2, 0.5, 300)
    assert rded.factor(300) == pytest.approx(0.5)
    small = SOFT_RECIPES["small"]
    assert small.epochs * len(batch_bounds(100, small.batch)[1:]) == 300
    found = [rded_batch(*case) for case in ((1, 10), (10, 10), (50, 10), (1, 100), (10, 100), (50, 1000), (1, 3))]
    assert found == [10, 50, 100, 20, 100, 200, 3]
