"""Acc-DD: its perturbation against the definition, its bank, and identities with IDC."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from datastill import distill, estimate, load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import Callback, Task
from datastill.core.rng import Rng, isolated
from datastill.core.running import start
from datastill.data import RealSet
from datastill.distillation.job import prepare_job
from datastill.distillation.preparation import prepare
from datastill.methods.acc_dd import AccDD
from datastill.methods.idc import IDC
from datastill.models import resolve_network
from datastill.surrogates.early import EarlyNetwork, EarlyStage, perturb
from datastill.surrogates.on_real import TrainedOnReal
from datastill.training.feature_network import load_weights
from datastill.training.hard import Schedule, predict, train

NETWORK = "convnet:width=8,depth=1"
SMALL = {"outer": 2, "net_images": 40, "real_batch": 8}
BANK = {"bank_networks": 2, "bank_epochs": 1}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, ipc: int = 1, seed: int = 0, network: str = NETWORK) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


def generator(seed: int) -> torch.Generator:
    return Rng(seed).generator("test")


def made(method: IDC, task: Task) -> Tensor:
    plan = method.for_task(task).build(task)
    return synthesize(plan, task, prepared=prepare(plan, task)[0]).codes["images"]


class TestPerturbation:
    def network(self) -> nn.Module:
        return resolve_network("convnet:width=6,depth=2", channels=1, classes=4, size=(8, 8))(3)

    def test_one_direction_is_as_large_as_asked_in_every_filter(self) -> None:
        network, before = self.network(), dict(self.network().named_parameters())
        perturb(network, [-0.07], generator(0))
        for name, after in network.named_parameters():
            if after.ndim < 2:
                assert torch.equal(after, before[name])
                continue
            moved = (after - before[name]).flatten(1).norm(dim=1)
            torch.testing.assert_close(moved / before[name].flatten(1).norm(dim=1), torch.full_like(moved, 0.07))

    def test_two_directions_add_up(self) -> None:
        """Each is as large as the weights before, not as those that the first has moved."""
        network, before = self.network(), dict(self.network().named_parameters())
        perturb(network, [0.03, -0.05], generator(1))
        drawn = generator(1)
        for name, after in network.named_parameters():
            if after.ndim < 2:
                continue
            wanted = before[name].detach().clone()
            for size in (0.03, -0.05):
                direction = torch.randn(after.shape, generator=drawn)
                for f in range(len(direction)):
                    wanted[f] += size * direction[f] * before[name][f].norm() / direction[f].norm()
            torch.testing.assert_close(after.detach(), wanted)

    def test_none_changes_no_bit(self) -> None:
        network, before = self.network(), self.network().state_dict()
        perturb(network, [0.0, 0.0], generator(0))
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())

    def test_filters_of_zeros_stay_finite(self) -> None:
        with isolated(0):
            network = nn.Linear(3, 2)
        with torch.no_grad():
            network.weight[0] = 0
        perturb(network, [0.5], generator(0))
        assert torch.isfinite(network.weight).all()
        assert not network.weight[0].any()


class TestIdentities:
    def test_without_bank_and_noise_it_is_idc(self, digits: RealSet) -> None:
        task = task_of(digits, ipc=2)
        idc = made(IDC(steps=5, base_lr=1e-2, **SMALL), task)
        ours = made(AccDD(steps=5, bank_epochs=0, noise_low=0.0, noise_high=0.0, **SMALL), task)
        assert torch.equal(ours, idc)
        assert not torch.equal(made(AccDD(steps=5, bank_epochs=0, **SMALL), task), idc)

    def test_a_bank_of_one_without_noise_is_idc_from_a_trained_start(self, digits: RealSet) -> None:
        task = task_of(digits)
        method = AccDD(steps=5, bank_networks=1, bank_epochs=2, noise_low=0.0, noise_high=0.0, **SMALL).for_task(task)
        (unit,) = method.build(task).prepare
        trained = unit.run(task)

        class FromTrained(TrainedOnReal):
            def start(self, network, context: Context) -> None:
                load_weights(network, trained)
                super().start(network, context)

        plan = IDC(steps=5, base_lr=1e-2, **SMALL).for_task(task).build(task)
        usual = plan.surrogates
        assert isinstance(usual, TrainedOnReal)
        same = FromTrained(task.network, outer=2, images=40, schedule=usual.schedule)
        theirs = synthesize(dataclasses.replace(plan, surrogates=same), task).codes["images"]
        assert torch.equal(made(method, task), theirs)


class TestBank:
    def test_a_network_of_the_bank_is_a_plain_training(self, digits: RealSet) -> None:
        task = task_of(digits)
        schedule = Schedule(2, lr=0.02, batch=64)
        unit = EarlyNetwork(3, schedule, seed=7)
        rng = Rng(7).child("early-network", 3)
        network = task.network(rng.derive("network"))
        train(network, digits.batch(torch.arange(len(digits))).x, digits.labels, schedule, rng)
        ours = unit.run(task)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(ours[f"weight/{name}"], value)

    def test_networks_differ_and_have_learned(self, digits: RealSet) -> None:
        task = task_of(digits, network="convnet:width=16,depth=2")
        scores = []
        x = digits.batch(torch.arange(len(digits))).x
        kept = [EarlyNetwork(k, Schedule(4, lr=0.05, batch=32)).run(task) for k in range(2)]
        for weights in kept:
            network = task.network(0)
            load_weights(network, weights)
            scores.append(float((predict(network, x).argmax(1) == digits.labels).float().mean()))
        assert min(scores) > 0.6
        assert not any(torch.equal(a, b) for a, b in zip(*(w.values() for w in kept), strict=True) if a.ndim > 1)

    def test_a_part_of_the_images(self, digits: RealSet) -> None:
        """The same for the same number, others for another; and weights of images stay with them."""
        task = task_of(digits.with_weights(torch.rand(len(digits), generator=generator(0))))
        units = [EarlyNetwork(k, Schedule(1, batch=32), part=0.1) for k in (0, 0, 1)]
        a, b, c = (unit.run(task) for unit in units)
        assert all(torch.equal(a[n], b[n]) for n in a)
        assert not all(torch.equal(a[n], c[n]) for n in a)
        assert units[0].images(task) == 90
        assert units[0].macs(task) == 3 * 90 * task.network.macs
        assert units[0].key(task) != units[0].key(task_of(digits))
        assert EarlyNetwork(0, Schedule(1), part=1e-9).images(task) == 2

    def test_draws_are_uniform_and_perturbed_each_time(self, digits: RealSet) -> None:
        task = task_of(digits)
        method = AccDD(steps=400, bank_networks=4, bank_epochs=1, **{**SMALL, "outer": 1}).for_task(task)
        plan = method.build(task)
        prepared = {f"early-network-{k}": EarlyNetwork(k, Schedule(1)).run(task) for k in range(4)}
        context = start(plan, task, next(plan.partition.blocks(task.labels)), (), prepared).context
        surrogates = plan.surrogates
        assert isinstance(surrogates, EarlyStage)
        name = next(n for n, p in task.network(0).named_parameters() if p.ndim > 1)
        counts: Counter[int] = Counter()
        sizes = []
        for step in range(400):
            context.step = step
            weight = dict(surrogates.draw(context).named_parameters())[name].detach()
            away = torch.stack([(weight - prepared[f"early-network-{k}"][f"weight/{name}"]).norm() for k in range(4)])
            counts[int(away.argmin())] += 1
            sizes.append(float(away.min() / prepared[f"early-network-{int(away.argmin())}"][f"weight/{name}"].norm()))
        assert all(70 <= counts[k] <= 130 for k in range(4))  # 100 each; 3.5 standard deviations
        assert len(set(sizes)) == 400
        assert min(sizes) > 0.01
        assert max(sizes) < 0.14  # the root of 0.09^2 + 0.09^2, with some correlation of the two

    def test_is_made_once_for_runs_of_all_seeds(self, digits: RealSet) -> None:
        units = [AccDD(**BANK).for_task(t).build(t).prepare for t in (task_of(digits), task_of(digits, seed=5))]
        keys = [[unit.key(task_of(digits, seed=s)) for unit in some] for s, some in zip((0, 5), units, strict=True)]
        assert keys[0] == keys[1]
        assert keys[0][0] != keys[0][1]


class TestRuns:
    def test_killed_in_a_trajectory_and_resumed(self, digits: RealSet, tmp_path) -> None:
        shared = {**SMALL, **BANK, "outer": 4, "steps": 7, "ipc": 1, "network": NETWORK}

        class Stop(Exception):
            pass

        class StopAt6(Callback):
            def after_step(self, context: Context) -> None:
                if context.step == 6:
                    raise Stop

        steps, out = [], tmp_path / "run"

        class Watch(Callback):
            def after_step(self, context: Context) -> None:
                steps.append(context.step)

        whole = distill("acc-dd", digits, **shared)
        with pytest.raises(Stop):
            distill("acc-dd", digits, out=out, callbacks=[StopAt6()], checkpoint_seconds=0.0, **shared)
        assert len(list((out / "prepare").glob("early-network-*"))) == 2
        again = distill("acc-dd", digits, out=out, resume=True, callbacks=[Watch()], **shared)
        assert steps[0] == 6
        assert torch.equal(again.images, whole.images)

    def test_runs_on_few_images_of_many_classes_and_on_a_network_of_the_users(self) -> None:
        x = torch.rand(300, 1, 28, 28, generator=generator(0))
        many = load_real((x, torch.arange(300) % 100), holdout=0)
        batch_norm = lambda: torch.nn.Sequential(  # noqa: E731
            torch.nn.Conv2d(1, 4, 3, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(4 * 81, 100),
        )  # fmt: skip
        result = distill("acc-dd", many, ipc=1, network=batch_norm, steps=2, **SMALL, **BANK)
        assert torch.isfinite(result.images).all()
        assert result.stored == 100

    def test_noise_from_high_to_low_is_refused(self, digits: RealSet) -> None:
        with pytest.raises(InputError, match="noise_low"):
            distill("acc-dd", digits, ipc=1, network=NETWORK, noise_low=0.2, steps=1)


class TestTime:
    def test_a_short_time_takes_a_smaller_bank(self, digits: RealSet) -> None:
        task = task_of(digits, network="convnet:width=128,depth=3")
        full = AccDD().for_task(task)
        sizes = []
        for seconds in (1.0, 10.0, 100.0, 1e9):
            found = full.scaled(task, seconds)
            assert found.nominal_preparation(task) <= max(0.3 * seconds, 1.0) or seconds == 1e9
            sizes.append(found.bank_networks * found.bank_epochs * found.bank_part)
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1] == 10
        assert full.scaled(task, 1e9) == full

    def test_a_bank_that_was_asked_for_stays(self, digits: RealSet) -> None:
        task = task_of(digits)
        full = AccDD().for_task(task)
        assert full.with_cheap_preparation(task, 0.1, {"bank_epochs"}) == full
        assert full.with_cheap_preparation(task, 0.1, set()) != full
        assert prepare_job("acc-dd", digits, ipc=1, bank_epochs=2, bank_networks=5).method.bank_epochs == 2  # type: ignore[attr-defined]

    def test_the_estimate_counts_the_bank(self, digits: RealSet) -> None:
        shared = {"ipc": 1, "network": NETWORK, "steps": 3, **SMALL}
        few, many = (estimate("acc-dd", digits, bank_networks=n, bank_epochs=3, **shared) for n in (1, 8))
        assert few.prepare_seconds > 0
        assert 3 < many.prepare_seconds / few.prepare_seconds < 20

    def test_a_budget_is_read_back(self, digits: RealSet, tmp_path) -> None:
        shared = {"ipc": 1, "network": NETWORK, "budget": 3.0, "out": tmp_path / "run"}
        whole = distill("acc-dd", digits, **shared)
        again = distill("acc-dd", digits, resume=True, **shared)
        assert torch.equal(whole.images, again.images)
        assert whole.manifest["hyper"] == again.manifest["hyper"]
