"""Expert trajectories: exact rows, one seed one expert, kills that leave no trace, buffers that do not fit refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from datastill import load_real
from datastill.augment.dsa import Dsa
from datastill.core.context import Context
from datastill.core.errors import DatastillError, Diverged, InputError, Interrupted
from datastill.core.plan import Block, HardLabels, Plan, Task
from datastill.core.registry import Method
from datastill.core.rng import Rng, isolated
from datastill.core.runtime import Runtime
from datastill.core.space import Space
from datastill.core.update import Sgd as PixelSgd
from datastill.data.real import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.distill import distill
from datastill.launch import UnitsFailed
from datastill.models import NetworkFactory, resolve_network
from datastill.sampling.inits import make_init
from datastill.store.checkpoint import read_snapshot
from datastill.surrogates.experts import (
    ExpertBuffer,
    Experts,
    ExpertsUnit,
    Growing,
    Segment,
    import_reference_buffer,
    open_buffer,
    train_experts,
)
from datastill.surrogates.experts import files as files_module
from datastill.surrogates.experts import partial as partial_module
from datastill.surrogates.experts.job import make_job
from datastill.surrogates.experts.layout import Layout
from datastill.surrogates.experts.policies import Epoch, TrainingSet, get_policy
from datastill.surrogates.experts.policies.sgd import Sgd
from datastill.training.hard import cross_entropy, sgd
from forked import Forked

NET = "convnet:width=4,depth=1"
FAST = {"experts": 2, "epochs": 3, "policy": "sgd:lr=0.1,batch=8"}


def make_real(seed: int = 1, **options: Any) -> RealSet:
    """Three classes of 6x5 color images, with a test split."""
    generator = Rng(seed).generator("images")
    y = torch.arange(3).repeat_interleave(8)
    x = (torch.rand(24, 3, 6, 5, generator=generator) * 0.4 + 0.2 * y.view(-1, 1, 1, 1)).clamp(0, 1)
    return load_real(((x, y), (x.flip(3), y)), class_names=("cat", "dog", "owl"), **options)


def make_network(spec: Any = NET) -> NetworkFactory:
    return resolve_network(spec, channels=3, classes=3, size=(6, 5))


def sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("expert_*.bin"))}


def known(folder: Path) -> list[dict[str, Any]]:
    """The records, but for the time that it took."""
    found = [json.loads(p.read_text()) for p in sorted(folder.glob("expert_*.json"))]
    return [{k: v for k, v in record.items() if k not in ("seconds", "content_sha256")} for record in found]


@pytest.fixture(scope="module")
def real() -> RealSet:
    return make_real()


@pytest.fixture(scope="module")
def network() -> NetworkFactory:
    return make_network()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, real: RealSet, network: NetworkFactory) -> Path:
    """Two finished experts; tests copy it where they change it."""
    folder = tmp_path_factory.mktemp("experts") / "made"
    train_experts(real, network, folder, **FAST)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


class TestRows:
    def test_snapshots_are_the_networks_bit_by_bit(self, tmp_path, real, network):
        """Row 0 is the seeded initialization, the last row the weights that training left."""
        left: list[nn.Module] = []

        @dataclass(frozen=True)
        class Watched(Sgd):
            def epoch(self, net: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
                loss = super().epoch(net, data, epoch)
                left.append(net)
                rows.append(torch.cat([p.detach().flatten() for p in net.parameters()]).clone())
                return loss

        rows: list[torch.Tensor] = []
        buffer = train_experts(real, network, tmp_path / "b", experts=1, epochs=3, policy=Watched(lr=0.1, batch=8))
        seed = Rng(0).derive("expert", 0)
        initial = network(Rng(seed).derive("network"))
        assert buffer.records[0].seed == seed
        found = buffer.rows(0, range(4))
        assert torch.equal(found[0], torch.cat([p.detach().flatten() for p in initial.parameters()]))
        for k, row in enumerate(rows):
            assert torch.equal(found[k + 1], row)
        assert found.dtype == torch.float32
        assert found.shape == (4, buffer.size)
        raw = np.fromfile(tmp_path / "b" / "expert_00000.bin", "<f4").reshape(4, -1)
        assert np.array_equal(raw, found.numpy())

    def test_snapshots_are_copies_that_differ(self, network):
        net = network(0)
        layout = Layout.of(net)
        first = layout.flatten(net)
        kept = first.clone()
        pointers = {p.data_ptr() for p in net.parameters()}
        with torch.no_grad():
            for p in net.parameters():
                p.add_(1)
        second = layout.flatten(net)
        assert torch.equal(first, kept), "the live weights moved under the snapshot"
        assert not pointers & {first.data_ptr(), second.data_ptr()}
        assert first.data_ptr() != second.data_ptr()
        assert not torch.equal(first, second)

    def test_experts_move_and_what_is_read_is_ones_own(self, made):
        buffer = open_buffer(made)
        a, b = buffer.rows(0, [0, 1]), buffer.rows(0, [0, 1])
        assert float((a[1] - a[0]).norm()) > 0
        assert a.data_ptr() != b.data_ptr()
        a.zero_()
        assert torch.equal(buffer.rows(0, [0, 1]), b)
        for record in buffer.records.values():
            rows = buffer.rows(record.expert, range(4)).double()
            assert record.squared_steps == pytest.approx(rows.diff(dim=0).square().sum(1).tolist())

    def test_any_epochs_in_any_order(self, made):
        buffer = open_buffer(made)
        whole = buffer.rows(1, range(4))
        assert torch.equal(buffer.rows(1, [3, 0, 3]), whole[[3, 0, 3]])
        with pytest.raises(InputError, match=r"epochs 0 to 3 .* 4 was asked for"):
            buffer.rows(1, [0, 4])
        with pytest.raises(InputError, match="no expert 7; it has 0, 1"):
            buffer.rows(7, [0])

    def test_order_is_that_of_named_parameters(self, made, network):
        buffer, net = open_buffer(made), network(3)
        buffer.load(net, 1, 2)
        row = buffer.rows(1, [2])[0]
        assert [s.name for s in buffer.layout.parameters] == [n for n, _ in net.named_parameters()]
        for slot, p in zip(buffer.layout.parameters, net.parameters(), strict=True):
            assert torch.equal(slot.of(row), p)

    def test_tied_parameters_count_once(self):
        with isolated(0):
            net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        assert Layout.of(net).size == 9 + 3 + 3

    def test_only_float32(self):
        with pytest.raises(InputError, match=r"float32 parameters.*float64 \(weight\)"):
            Layout.of(nn.utils.skip_init(nn.Linear, 2, 2).double())
        with pytest.raises(InputError, match="no parameters"):
            Layout.of(nn.ReLU())


class TestTraining:
    @pytest.mark.parametrize(("weighted", "augment"), [(False, "none"), (True, "flip_scale")])
    def test_equals_a_naive_loop(self, tmp_path, network, weighted, augment):
        """Plain SGD written out, with the same generators."""
        real = make_real()
        weight = torch.rand(24, generator=Rng(5).generator("w")) if weighted else None
        real = real.with_weights(weight)
        asked = {"experts": 1, "epochs": 3, "policy": "sgd:lr=0.1,batch=7,weight_decay=0.01", "augment": augment}
        buffer = train_experts(real, network, tmp_path / "b", seed=3, **asked)
        rng = Rng(3).child("expert", 0)
        net = network(rng.derive("network"))
        for e in range(3):
            draws = rng.child("epoch", e)
            order, losses, right = torch.randperm(24, generator=draws.generator("order", 0)), [], 0
            for b, index in enumerate(order.split(7)):
                x, y = real.batch(index).x, real.labels[index]
                if augment != "none":
                    dsa = Dsa(augment)
                    x = dsa.apply(x, dsa.draw(len(y), (3, 6, 5), draws.generator("augment", 0, b), one_op=True))
                logits = net(x)
                each = F.cross_entropy(logits, y, reduction="none")
                w = torch.ones(len(y)) if weight is None else weight[index]
                loss = (each * w).sum() / w.sum()
                right += int((logits.argmax(1) == y).sum())
                losses.append(float(loss.detach()) * len(y) / 24)
                grads = torch.autograd.grad(loss, list(net.parameters()))
                with torch.no_grad():
                    for p, g in zip(net.parameters(), grads, strict=True):
                        p -= 0.1 * (g + 0.01 * p)
            row = torch.cat([p.detach().flatten() for p in net.parameters()])
            torch.testing.assert_close(buffer.rows(0, [e + 1])[0], row, rtol=1e-5, atol=1e-6)
            assert buffer.records[0].train_loss[e] == pytest.approx(sum(losses), rel=1e-5)
            assert buffer.records[0].train_accuracy[e] == pytest.approx(right / 24)

    def test_one_seed_one_expert_and_a_pool_gives_the_same(self, tmp_path, made, real, network):
        train_experts(real, network, tmp_path / "pool", workers=2, **FAST)
        assert sums(tmp_path / "pool") == sums(made)
        assert known(tmp_path / "pool") == known(made)
        assert not (tmp_path / "pool" / "partial").exists()
        train_experts(real, network, tmp_path / "other", seed=1, **FAST)
        assert len({*sums(tmp_path / "other").values(), *sums(made).values()}) == 4, "every seed and expert differs"

    def test_a_pool_takes_weights_and_a_space_that_no_name_gives(self, tmp_path, network):
        real = make_real(space="zca").with_weights(torch.linspace(0, 1, 24)).subset(torch.arange(20))
        for name, workers in (("one", 1), ("two", 2)):
            train_experts(real, network, tmp_path / name, workers=workers, test_accuracy=True, **FAST)
        assert known(tmp_path / "one") == known(tmp_path / "two")
        assert open_buffer(tmp_path / "one").meta["config"]["weights"]

    def test_more_can_be_added_and_finished_ones_stay(self, copied, real, network):
        stamps = {p.name: p.stat().st_mtime_ns for p in copied.iterdir()}
        told: list[str] = []
        buffer = train_experts(
            real, network, copied, on_done=lambda d: told.append(d.unit.name), **FAST | {"experts": 3}
        )
        assert told == ["expert 2"]
        assert buffer.experts == (0, 1, 2)
        assert {n: (copied / n).stat().st_mtime_ns for n in stamps} == stamps
        assert len(train_experts(real, network, copied, **FAST | {"experts": 1})) == 3

    def test_stop_after_ends_early_and_changes_nothing_before(self, tmp_path, made, real, network):
        buffer = train_experts(real, network, tmp_path / "b", stop_after=2, **FAST)
        assert buffer.epochs == 2
        assert torch.equal(buffer.rows(0, range(3)), open_buffer(made).rows(0, range(3)))

    def test_the_test_split_is_read_only_when_asked_for(self, tmp_path, network, made):
        real = make_real()

        class Closed:
            def __getattr__(self, name: str) -> Any:
                raise AssertionError("the test split was read")

            def __len__(self) -> int:
                raise AssertionError("the test split was read")

        guarded = replace(real, test=None)
        object.__setattr__(guarded, "test", None)
        train_experts(guarded, network, tmp_path / "none", **FAST)
        assert sums(tmp_path / "none") == sums(made)
        assert open_buffer(made).records[0].test_accuracy is None
        buffer = train_experts(real, network, tmp_path / "asked", test_accuracy=True, **FAST)
        assert sums(tmp_path / "asked") == sums(made), "looking changes nothing"
        net = network(0)
        for e in (1, 2, 3):
            buffer.load(net, 1, e)
            right = net.eval()(real.test.batch(torch.arange(24)).x).argmax(1) == real.test.labels
            assert buffer.records[1].test_accuracy[e - 1] == pytest.approx(float(right.float().mean()))
        with pytest.raises(InputError, match="no test images; give it a test split"):
            train_experts(guarded, network, tmp_path / "no", test_accuracy=True, **FAST)

    def test_weights_change_experts_and_equal_ones_hardly(self, tmp_path, made, real, network):
        uneven = real.with_weights(torch.linspace(0, 2, 24))
        train_experts(uneven, network, tmp_path / "uneven", **FAST)
        assert not set(sums(tmp_path / "uneven").values()) & set(sums(made).values())
        even = train_experts(real.with_weights(torch.ones(24)), network, tmp_path / "even", **FAST)
        torch.testing.assert_close(even.rows(0, [3]), open_buffer(made).rows(0, [3]), rtol=1e-4, atol=1e-5)

    def test_batch_norm_keeps_running_statistics_beside(self, tmp_path, real):
        factory = make_network("convnet:width=4,depth=1,norm=batch")
        with pytest.warns(UserWarning, match="parameters alone"):
            buffer = train_experts(real, factory, tmp_path / "b", **FAST)
        assert buffer.size == sum(p.numel() for p in factory(0).parameters())
        names = {n for n, _ in factory(0).named_buffers()}
        assert set(buffer.statistics(0, 3)) == names
        assert buffer.rows(0, [0, 1]).shape == (2, buffer.size)
        count = next(v for n, v in buffer.statistics(0, 3).items() if n.endswith("num_batches_tracked"))
        assert float(count) == 9, "three epochs of three batches"
        net = factory(1)
        buffer.load(net, 0, 3)
        mean = next(n for n in names if n.endswith("running_mean"))
        assert torch.equal(net.get_buffer(mean), buffer.statistics(0, 3)[mean])
        steps = buffer.rows(0, range(4)).double().diff(dim=0).square().sum(1)
        assert buffer.records[0].squared_steps == pytest.approx(steps.tolist())
        assert open_buffer(tmp_path / "b").layout == Layout.of(net)

    def test_one_that_diverges_fails_alone_with_a_sentence(self, tmp_path, real, network):
        with pytest.raises(UnitsFailed, match="expert 0: Training diverged") as caught:
            train_experts(real, network, tmp_path / "b", experts=1, epochs=3, policy="sgd:lr=1e30,batch=8")
        assert caught.value.exit_code == Diverged.exit_code
        assert len(open_buffer(tmp_path / "b")) == 0

    def test_a_network_of_this_process_alone(self, tmp_path, real):
        class Local(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Flatten(), nn.Linear(90, 3))

        factory = make_network(Local)
        with pytest.raises(InputError, match=r"this process alone.*workers=1"):
            train_experts(real, factory, tmp_path / "b", workers=2, **FAST)
        assert len(train_experts(real, factory, tmp_path / "b", **FAST)) == 2

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"experts": 0}, "experts must be"),
            ({"epochs": 0}, "epochs must be"),
            ({"epochs": True}, "epochs must be"),
            ({"stop_after": 4}, "stop_after is 4"),
            ({"stop_after": 0}, "stop_after must be"),
            ({"workers": 0}, "workers"),
            ({"seed": 0.5}, "seed must be"),
            ({"policy": "sgdd"}, "no policy 'sgdd'.*'sgd'"),
            ({"policy": "sgd:rate=1"}, "no number 'rate'"),
            ({"policy": "sgd:lr=fast"}, "'fast' is no number"),
            ({"policy": "sgd:batch=1.5"}, "'1.5' is no whole number"),
            ({"policy": "sgd:lr=-1"}, "lr of experts must be a number above 0"),
            ({"augment": "flipp"}, "flipp"),
            ({"device": "tpu"}, "tpu"),
            ({"span": 0}, "span must be"),
        ],
    )
    def test_bad_input(self, tmp_path, real, network, change, words):
        with pytest.raises(InputError, match=words):
            train_experts(real, network, tmp_path / "b", **FAST | change)
        assert not list(tmp_path.iterdir()), "nothing was made"

    def test_a_folder_that_holds_something_else(self, tmp_path, real, network):
        (tmp_path / "photo.png").write_bytes(b"")
        with pytest.raises(InputError, match="not empty and holds no experts"):
            train_experts(real, network, tmp_path, **FAST)
        with pytest.raises(InputError, match="in the way"):
            train_experts(real, network, tmp_path / "photo.png", **FAST)

    @pytest.mark.parametrize(
        ("change", "field"),
        [({"epochs": 4}, "epochs"), ({"policy": "sgd:lr=0.2,batch=8"}, "policy.lr"), ({"seed": 5}, "seed")],
    )
    def test_a_folder_of_another_configuration(self, made, real, network, change, field):
        before = sums(made)
        with pytest.raises(InputError, match=rf"its {field} is"):
            train_experts(real, network, made, **FAST | change)
        assert sums(made) == before

    def test_half_the_precision_is_another_buffer(self, tmp_path, made, real, network):
        """Arithmetic in bf16 alone: experts go the same way, a rounding error beside, from the same start."""
        halved = train_experts(real, network, tmp_path / "bf16", precision="bf16", workers=2, **FAST)
        assert halved.meta["config"]["precision"] == "bf16"
        assert "precision" not in open_buffer(made).meta["config"], "buffers from before stay what they were"
        for k in range(2):
            mine, other = halved.rows(k, range(4)), open_buffer(made).rows(k, range(4))
            assert torch.equal(mine[0], other[0])
            step, full = mine[3] - mine[0], other[3] - other[0]
            assert 0 < float((step - full).norm() / full.norm()) < 0.1
        assert sums(tmp_path / "bf16") == sums(
            train_experts(real, network, tmp_path / "again", precision="bf16", **FAST).path
        )
        with pytest.raises(InputError, match="it names no precision"):
            train_experts(real, network, made, precision="bf16", **FAST)
        with pytest.raises(InputError, match="no precision 'fp8'"):
            make_job(real, network, tmp_path, precision="fp8")
        unit, task = ExpertsUnit(experts=1, epochs=2), Task(real, 1, network)
        assert unit.key(task) != unit.key(replace(task, runtime=Runtime(precision="bf16")))

    def test_progress_is_told_from_workers(self, tmp_path, real, network):
        told: list[tuple[str, float, float]] = []
        asked = FAST | {"epochs": 40, "progress": lambda task, done, total, numbers: told.append((task, done, total))}
        train_experts(real, network, tmp_path / "b", workers=2, **asked)
        assert told[-1] == ("experts", 80, 80)
        assert [d for _, d, _ in told] == sorted(d for _, d, _ in told)


@dataclass(frozen=True)
class Heavy:
    """A policy with momentum that outlives epochs, and a loop of its own."""

    name: ClassVar[str] = "heavy"
    lr: float = 0.02

    def epoch(self, network: nn.Module, data: TrainingSet, epoch: Epoch) -> float:
        names = dict(network.named_parameters())
        optimizer = torch.optim.SGD(names.values(), lr=self.lr, momentum=0.9)
        for name, p in names.items():
            if name in epoch.state:
                optimizer.state[p]["momentum_buffer"] = epoch.state[name].clone()
        total = 0.0
        for index in torch.randperm(len(data.y), generator=epoch.rng.generator("order")).split(8):
            optimizer.zero_grad()
            logits = network(data.x(index))
            loss = cross_entropy(logits, data.y[index])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(index) / len(data.y)
            epoch.on_batch(index, logits.detach())
        epoch.state.update({name: optimizer.state[p]["momentum_buffer"].clone() for name, p in names.items()})
        return total


class Kill(BaseException):
    """Ends the process's work where it stands, as SIGKILL would: nothing but `finally` runs."""


class TestKills:
    def test_a_kill_at_every_stage(self, tmp_path, made, real, network, monkeypatch):
        """Before and after each write of an expert: no half expert is seen, and the end is as if undisturbed."""
        stages = [(partial_module.Partial, "_put"), (partial_module, "write_snapshot"), (files_module, "write_record")]
        for owner, name in stages:
            for when in ("before", "after"):
                for call in range(1, 5):
                    folder = tmp_path / f"{name}-{when}-{call}"
                    self.killed(monkeypatch, owner, name, when, call, folder, real, network)
                    if (folder / "meta.json").exists():
                        open_buffer(folder).verify()
                    train_experts(real, network, folder, **FAST)
                    assert sums(folder) == sums(made), folder.name
                    assert known(folder) == known(made), folder.name
                    assert {p.name for p in folder.iterdir()} == {p.name for p in made.iterdir()}, folder.name

    @staticmethod
    def killed(monkeypatch, owner, name, when, call, folder, real, network):
        original, calls = getattr(owner, name), []

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == call and when == "before":
                raise Kill
            done = original(*args, **kwargs)
            if len(calls) == call:
                raise Kill
            return done

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, deadly)
            if owner is files_module:  # imported by name elsewhere
                patch.setattr("datastill.surrogates.experts.job.write_record", deadly)
            with contextlib.suppress(Kill):
                train_experts(real, network, folder, **FAST)

    def test_a_policy_with_state_goes_on_exactly(self, tmp_path, real, network, monkeypatch):
        asked = {"experts": 1, "epochs": 5, "policy": Heavy()}
        train_experts(real, network, tmp_path / "whole", **asked)
        self.killed(monkeypatch, partial_module, "write_snapshot", "after", 3, tmp_path / "killed", real, network)
        original, calls = Heavy.epoch, []

        def stopping(policy, net, data, epoch):
            calls.append(epoch.index)
            if len(calls) == 3:
                original(policy, net, data, epoch)  # the work of this epoch is lost, its state too
                raise Kill
            return original(policy, net, data, epoch)

        folder = tmp_path / "heavy"
        with monkeypatch.context() as patch:
            patch.setattr(Heavy, "epoch", stopping)
            with pytest.raises(Kill):
                train_experts(real, network, folder, **asked)
            train_experts(real, network, folder, **asked)
        assert calls == [0, 1, 2, 2, 3, 4], "after its last whole epoch"
        assert sums(folder) == sums(tmp_path / "whole")
        plain = train_experts(real, network, tmp_path / "plain", experts=1, epochs=5, policy="sgd:lr=0.02,batch=8")
        assert plain.records[0].squared_steps[-1] < open_buffer(folder).records[0].squared_steps[-1]

    def test_batch_norm_goes_on_exactly(self, tmp_path, real, monkeypatch):
        factory = make_network("convnet:width=4,depth=1,norm=batch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_experts(real, factory, tmp_path / "whole", **FAST)
            self.killed(monkeypatch, partial_module, "write_snapshot", "after", 2, tmp_path / "killed", real, factory)
            train_experts(real, factory, tmp_path / "killed", **FAST)
        assert sums(tmp_path / "killed") == sums(tmp_path / "whole")

    @pytest.mark.parametrize("harm", ["rows", "state", "cut", "none"])
    def test_a_damaged_half_is_trained_anew(self, tmp_path, made, real, network, monkeypatch, harm):
        folder = tmp_path / "b"
        self.killed(monkeypatch, partial_module, "write_snapshot", "after", 2, folder, real, network)
        rows, state = (folder / "partial" / f"expert_00000.{end}" for end in ("bin", "safetensors"))
        if harm == "rows":
            flip(rows, 40)
        elif harm == "state":
            state.write_bytes(state.read_bytes()[:20])
        elif harm == "cut":
            rows.write_bytes(rows.read_bytes()[:50])
        seen: list[int] = []
        original = Sgd.epoch
        monkeypatch.setattr(Sgd, "epoch", lambda p, n, d, e: seen.append(e.index) or original(p, n, d, e))
        train_experts(real, network, folder, **FAST)
        assert seen[:3] == ([2, 0, 1] if harm == "none" else [0, 1, 2])
        assert sums(folder) == sums(made)

    def test_a_wish_to_stop_keeps_whole_epochs(self, tmp_path, made, real, network, monkeypatch):
        original = Sgd.epoch

        def interrupted(policy, net, data, epoch):
            if epoch.index == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return original(policy, net, data, epoch)

        with monkeypatch.context() as patch:
            patch.setattr(Sgd, "epoch", interrupted)
            with pytest.raises(Interrupted, match="0 of 2 units are finished and kept; rerun the same command"):
                train_experts(real, network, tmp_path / "b", **FAST)
        assert read_snapshot(tmp_path / "b" / "partial" / "expert_00000.safetensors").meta["epoch"] == 1
        train_experts(real, network, tmp_path / "b", **FAST)
        assert known(tmp_path / "b") == known(made)

    @pytest.mark.slow
    @pytest.mark.parametrize(("workers", "kills"), [(1, 2), (2, 1)])
    def test_killed_at_random_moments(self, tmp_path, workers, kills):
        check_kills(tmp_path, kills, workers, seed=workers)


LONG = {"experts": 3, "epochs": 60, "policy": "sgd:lr=0.1,batch=8"}


def check_kills(folder: Path, kills: int, workers: int, seed: int) -> None:
    """SIGKILL a training process at random moments, look at what is left each time, finish, compare the bytes."""
    moments, out, hits = random.Random(seed), folder / "killed", 0
    for _ in range(kills):
        before, process = heard(out), Forked(train_experts, make_real(), make_network(), out, workers=workers, **LONG)
        while process.poll() is None and heard(out) == before:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        hits += process.wait() == -signal.SIGKILL
        if (out / "meta.json").exists():
            open_buffer(out).verify()
    time.sleep(0.3)  # workers notice that their parent is gone
    train_experts(make_real(), make_network(), out, **LONG)
    train_experts(make_real(), make_network(), folder / "whole", **LONG)
    assert hits, "no kill hit the training"
    assert sums(out) == sums(folder / "whole")
    assert known(out) == known(folder / "whole")
    assert {p.name for p in out.iterdir()} == {p.name for p in (folder / "whole").iterdir()}


def heard(out: Path) -> list[int]:
    """Changes whenever an expert goes on."""
    return [p.stat().st_mtime_ns for p in sorted(out.glob("**/expert_*")) if p.exists()]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


class TestRefusals:
    def test_a_changed_byte_is_refused_when_the_expert_is_used(self, copied):
        flip(copied / "expert_00001.bin", 100)
        buffer = open_buffer(copied)
        buffer.rows(0, [0])
        with pytest.raises(InputError, match=r"expert_00001\.bin is damaged.*sha256.*remove expert_00001\.json"):
            buffer.rows(1, [2])
        with pytest.raises(InputError, match=r"expert_00001\.bin is damaged"):
            buffer.verify()

    def test_what_is_named_mends_it(self, copied, made, real, network):
        flip(copied / "expert_00001.bin", 100)
        (copied / "expert_00001.json").unlink()
        train_experts(real, network, copied, **FAST)
        assert sums(copied) == sums(made)

    @pytest.mark.parametrize("length", [0, 100, 10_000_000])
    def test_rows_of_another_length(self, copied, length):
        path = copied / "expert_00000.bin"
        path.write_bytes(path.read_bytes()[:100].ljust(length)[:length])
        with pytest.raises(InputError, match=rf"expert_00000\.bin has {length:,} bytes and should have .* cut short"):
            open_buffer(copied)

    def test_rows_that_are_missing_or_cut_short_later(self, copied):
        buffer = open_buffer(copied)
        buffer.rows(0, [0])
        path = copied / "expert_00000.bin"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(InputError, match="cut short"):
            buffer.rows(0, [3])
        path.unlink()
        with pytest.raises(InputError, match="No such file"):
            buffer.rows(0, [3])
        with pytest.raises(InputError, match="is missing"):
            open_buffer(copied)

    def test_an_expert_of_another_buffer(self, tmp_path, copied, real, network):
        train_experts(real, network, tmp_path / "other", seed=9, **FAST)
        for end in ("bin", "json"):
            (copied / f"expert_00001.{end}").write_bytes((tmp_path / "other" / f"expert_00001.{end}").read_bytes())
        with pytest.raises(InputError, match=r"expert_00001\.json belongs to another buffer"):
            open_buffer(copied)

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": "datastill-expert", "version": 2}'])
    def test_damaged_records(self, copied, text):
        (copied / "expert_00000.json").write_text(text)
        with pytest.raises(InputError, match=r"expert_00000\.json"):
            open_buffer(copied)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "datastill-experts", "version": 9}'])
    def test_damaged_meta(self, copied, text):
        (copied / "meta.json").write_text(text)
        with pytest.raises(InputError, match=r"meta\.json"):
            open_buffer(copied)

    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [("config", "snapshots", 1), ("config", "parameters", 3), ("row", "P", 3), ("config", "space", None)],
    )
    def test_meta_that_does_not_agree_with_itself(self, copied, section, key, value):
        meta = json.loads((copied / "meta.json").read_text())
        meta[section][key] = value
        if value is None:
            del meta[section][key]
        (copied / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(InputError, match=r"meta\.json does not describe"):
            open_buffer(copied)

    def test_no_buffer(self, tmp_path):
        with pytest.raises(InputError, match="no folder"):
            open_buffer(tmp_path / "nowhere")
        with pytest.raises(InputError, match="no expert trajectories"):
            open_buffer(tmp_path)

    def test_one_that_fits(self, made, real, network):
        open_buffer(made).check(network, real)
        open_buffer(made).check(make_network(), make_real())

    @pytest.mark.parametrize(
        ("field", "change"),
        [
            ("network.options.width", lambda real: (make_network("convnet:width=8,depth=1"), real)),
            ("network.options.activation", lambda real: (make_network(f"{NET},activation=swish"), real)),
            ("network.name", lambda real: (make_network("mlp"), real)),
            ("space", lambda real: (make_network(), real.with_space(Space()))),
            ("data", lambda real: (make_network(), make_real(seed=2, space=real.space))),
            ("data", lambda real: (make_network(), real.subset(torch.arange(23)))),
            ("weights", lambda real: (make_network(), real.with_weights(torch.ones(24)))),
        ],
    )
    def test_one_that_does_not_names_the_field(self, made, real, field, change):
        other, data = change(real)
        with pytest.raises(InputError, match=rf"do not fit: their {field} is .*, this run's is .*; ") as caught:
            open_buffer(made).check(other, data)
        assert "\n" not in str(caught.value)


class TestLossy:
    def test_half_the_space_where_steps_are_long(self, tmp_path, made, real, network):
        asked = FAST | {"policy": "sgd:lr=2,batch=8"}
        exact = train_experts(real, network, tmp_path / "exact", **asked)
        half = train_experts(real, network, tmp_path / "half", lossy=True, **asked)
        assert half.records[0].dtype == "float16"
        assert (tmp_path / "half" / "expert_00000.bin").stat().st_size * 2 == (
            tmp_path / "exact" / "expert_00000.bin"
        ).stat().st_size
        assert torch.equal(half.rows(0, range(4)), exact.rows(0, range(4)).half().float())
        assert half.describe()["dtypes"] == ["float16"]

    def test_refused_where_they_are_short_and_stored_exactly_without_training_again(
        self, tmp_path, real, network, monkeypatch
    ):
        asked = FAST | {"policy": "sgd:lr=0.001,batch=8"}
        with pytest.raises(UnitsFailed, match=r"Float16 is too coarse for expert 0: .* from epoch 0 to 2 by .* %"):
            train_experts(real, network, tmp_path / "b", lossy=True, **asked)
        assert not sums(tmp_path / "b")
        monkeypatch.setattr(Sgd, "epoch", None)
        assert len(train_experts(real, network, tmp_path / "b", **asked)) == 2

    def test_numbers_too_large_for_it(self, tmp_path, network):
        layout = Layout.of(network(0))
        rows = [torch.full((layout.width,), v) for v in (1.0, 2.0, 1e6)]
        with pytest.raises(InputError, match="too large for float16"):
            files_module.write_expert(tmp_path, 0, layout, rows, config="", lossy=True)
        with pytest.raises(Diverged, match="not finite after epoch 1"):
            files_module.write_expert(tmp_path, 0, layout, [rows[0], rows[0] / 0], config="")
        assert not list(tmp_path.iterdir()), "nothing half-written is left"


MEMORY = """
import re, sys
from pathlib import Path
import torch
from datastill.surrogates.experts import open_buffer

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

def forget():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is used now

open_buffer(sys.argv[1]).rows(0, [0])  # what is loaded at first use
for name in sys.argv[1:3]:
    forget()
    start = peak()
    buffer = open_buffer(name)
    opened = peak()
    for k in buffer.experts:
        buffer.rows(k, [2, 3, 4])
    print(opened - start, peak() - start)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_experts(tmp_path, real):
    """2 experts and 20 of 8 MB: the same peak; opening them reads nothing."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("no /proc here")
    factory = make_network("convnet:width=64,depth=2")
    layout = Layout.of(factory(0))
    generator = Rng(0).generator("rows")
    snapshots = 8_000_000 // (4 * layout.width)
    job = make_job(real, factory, tmp_path, epochs=snapshots - 1)
    block = torch.randn(snapshots, layout.width, generator=generator)
    for name, count in (("few", 2), ("many", 20)):
        files_module.write_record(tmp_path / name / "meta.json", fresh_meta(job))
        for k in range(count):
            files_module.write_expert(tmp_path / name, k, layout, block, config=files_module_digest(job))
    args = [sys.executable, "-c", MEMORY, str(tmp_path / "few"), str(tmp_path / "many")]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    (opened_few, few), (opened_many, many) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert max(opened_few, opened_many) < 2, "opening reads"
    assert few < 6, "an expert of 8 MB was read at once"
    assert many < few + 2


def fresh_meta(job: Any) -> dict[str, Any]:
    from datastill.surrogates.experts.identity import about
    from datastill.surrogates.experts.store import new_meta

    return new_meta(job.config, job.layout, about(job.network, job.real))


def files_module_digest(job: Any) -> str:
    from datastill.store.files import digest

    return digest(job.config)


class TestLegacy:
    @staticmethod
    def trajectories(network: NetworkFactory, experts: int = 2, snapshots: int = 3, first: int = 0) -> list[Any]:
        """As the code of MTT keeps them, but for the missing copy."""
        nets = [[network(10 * (first + k) + e) for e in range(snapshots)] for k in range(experts)]
        return [[[p.detach().cpu().clone() for p in net.parameters()] for net in expert] for expert in nets]

    def test_the_numbers_are_kept_to_the_bit(self, tmp_path, real, network):
        parts = [self.trajectories(network, first=0), self.trajectories(network, first=2)]
        for k, part in enumerate(parts):
            torch.save(part, tmp_path / f"replay_buffer_{k}.pt")
        buffer = import_reference_buffer(tmp_path, network, real, tmp_path / "out")
        assert buffer.experts == (0, 1, 2, 3)
        assert buffer.epochs == 2
        for k, expert in enumerate([*parts[0], *parts[1]]):
            rows = torch.stack([torch.cat([t.flatten() for t in snapshot]) for snapshot in expert])
            assert torch.equal(buffer.rows(k, range(3)), rows)
        assert set(buffer.meta["imported"]["files"]) == {"replay_buffer_0.pt", "replay_buffer_1.pt"}
        assert buffer.describe()["by_epoch"][0]["train_loss"] is None
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        buffer.check(network, real)
        sampler, context = sampler_of(tmp_path / "out", real, network, max_start=1)
        assert sampler.draw(context).targets.shape == (2, buffer.size)

    def test_files_are_taken_by_their_numbers(self, tmp_path, real, network):
        for k in (2, 10, 1):
            torch.save(self.trajectories(network, experts=1, first=k), tmp_path / f"replay_buffer_{k}.pt")
        buffer = import_reference_buffer(tmp_path, network, real, tmp_path / "out")
        wanted = [torch.cat([p.detach().flatten() for p in network(10 * k).parameters()]) for k in (1, 2, 10)]
        assert all(torch.equal(buffer.rows(k, [0])[0], row) for k, row in enumerate(wanted))

    def test_snapshots_that_alias_the_live_weights(self, tmp_path, real, network):
        """What `p.detach().cpu()` leaves on a CPU."""
        net = network(0)
        expert = []
        for _ in range(3):
            expert.append([p.detach().cpu() for p in net.parameters()])
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(1)
        torch.save([expert], tmp_path / "replay_buffer_0.pt")
        with pytest.raises(InputError, match=r"All snapshots of expert 0 .* live weights .* Train experts anew"):
            import_reference_buffer(tmp_path / "replay_buffer_0.pt", network, real, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_hostile_pickle_is_refused_and_not_run(self, tmp_path, real, network):
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "owned"),)

        torch.save([[Evil()]], tmp_path / "a.pt")
        (tmp_path / "b.pt").write_bytes(pickle.dumps([Evil()]))
        for name in ("a.pt", "b.pt"):
            with pytest.raises(InputError, match=r"refused|not a sound"):
                import_reference_buffer(tmp_path / name, network, real, tmp_path / "out")
        assert not (tmp_path / "owned").exists()
        assert not (tmp_path / "out").exists()

    def test_a_file_that_claims_more_than_it_holds(self, tmp_path, real, network):
        expert = self.trajectories(network, experts=1)[0]
        torch.save([expert] * 50, tmp_path / "a.pt")
        with pytest.raises(InputError, match="claim more numbers than the file holds"):
            import_reference_buffer(tmp_path / "a.pt", network, real, tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t["a"], "must be a list of experts"),
            ([], "must be a list of experts"),
            ([[[torch.zeros(2)]]], "two or more snapshots"),
            ([[[torch.zeros(2)], [torch.zeros(2)]]], "has 1 tensors, and convnet.* has 6"),
            ([[["x"] * 6] * 2], "not an ordinary tensor"),
            ([[[torch.zeros(2)] * 6] * 2], r"is \(2,\), and \(4, 3, 3, 3\) in convnet"),
            ([[[torch.zeros(2, dtype=torch.int64)] * 6] * 2], "not an ordinary tensor"),
        ],
    )
    def test_files_that_hold_something_else(self, tmp_path, real, network, change, words):
        torch.save({"a": 1} if callable(change) else change, tmp_path / "a.pt")
        with pytest.raises(InputError, match=words):
            import_reference_buffer([tmp_path / "a.pt"], network, real, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_numbers_that_are_not_finite_and_other_lengths(self, tmp_path, real, network):
        trajectories = self.trajectories(network)
        trajectories[1][2][0][0] = float("nan")
        torch.save(trajectories, tmp_path / "a.pt")
        with pytest.raises(DatastillError, match=r"Expert 1 .* not finite after epoch 2"):
            import_reference_buffer(tmp_path / "a.pt", network, real, tmp_path / "out")
        torch.save([self.trajectories(network)[0], self.trajectories(network, snapshots=4)[1]], tmp_path / "a.pt")
        with pytest.raises(InputError, match="has 4 snapshots, and those before it 3"):
            import_reference_buffer(tmp_path / "a.pt", network, real, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_bad_paths(self, tmp_path, real, network, made):
        with pytest.raises(InputError, match="does not exist"):
            import_reference_buffer(tmp_path / "no.pt", network, real, tmp_path / "out")
        with pytest.raises(InputError, match=r"no replay_buffer_\*\.pt"):
            import_reference_buffer(tmp_path, network, real, tmp_path / "out")
        with pytest.raises(InputError, match="Name the files"):
            import_reference_buffer([], network, real, tmp_path / "out")
        with pytest.raises(InputError, match="is there already"):
            import_reference_buffer(tmp_path / "no.pt", network, real, made)


def context_of(real: RealSet, network: NetworkFactory, steps: int = 10, seed: int = 0, **task: Any) -> Context:
    asked = Task(real, 1, network, seed=seed, **task)
    plan = Plan(init=make_init("noise"), decoder=Pixels(), steps=steps)
    block = Block(0, torch.arange(asked.classes), asked.labels)
    return Context(asked, plan, block, Rng(seed), steps=steps)


def sampler_of(
    source: Any, real: RealSet, network: NetworkFactory, steps: int = 10, seed: int = 0, **window: Any
) -> tuple[Experts, Context]:
    sampler, context = Experts(source, **window), context_of(real, network, steps, seed)
    sampler.begin(context)
    return sampler, context


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, real: RealSet) -> Path:
    """Five experts of twelve epochs of a very small network."""
    folder = tmp_path_factory.mktemp("experts") / "many"
    train_experts(
        real, make_network("convnet:width=1,depth=1,norm=none"), folder, **FAST | {"experts": 5, "epochs": 12}
    )
    return folder


class TestSampler:
    tiny = property(lambda self: make_network("convnet:width=1,depth=1,norm=none"))

    def test_a_segment(self, many, real):
        sampler, context = sampler_of(many, real, self.tiny, max_start=4, min_start=1, span=3)
        buffer = open_buffer(many)
        for context.step in range(10):
            segment = sampler.draw(context)
            assert isinstance(segment, Segment)
            t = segment.epoch
            assert 1 <= t < 4
            assert torch.equal(segment.start, buffer.rows(segment.expert, [t])[0])
            assert torch.equal(segment.targets, buffer.rows(segment.expert, [t + 1, t + 2, t + 3]))
            assert segment.network.training
            assert sum(p.numel() for p in segment.network.parameters()) == len(segment.start)

    def test_every_expert_once_in_a_pass_in_a_new_order(self, many, real):
        sampler, context = sampler_of(many, real, self.tiny, max_start=2)
        orders = []
        for turn in range(6):
            drawn = []
            for context.step in range(5 * turn, 5 * turn + 5):
                drawn.append(sampler.draw(context).expert)
            assert sorted(drawn) == [0, 1, 2, 3, 4]
            orders.append(tuple(drawn))
        assert len(set(orders)) > 3

    def test_starts_are_uniform_below_the_bound(self, many, real):
        sampler, context = sampler_of(many, real, self.tiny, max_start=9, min_start=2)
        starts = []
        for context.step in range(2000):
            starts.append(sampler.draw(context).epoch)
        counts = np.bincount(starts, minlength=9)
        assert counts[:2].sum() == 0
        assert len(counts) == 9
        assert stats.chisquare(counts[2:]).pvalue > 0.001

    def test_a_window_that_grows(self, many, real):
        window = Growing(first=2, last=8, until=0.5)
        bounds = [window(step / 100) for step in range(100)]
        assert bounds == [min(8, 2 + (6 * step) // 50) for step in range(100)]
        sampler, context = sampler_of(many, real, self.tiny, steps=100, max_start=window, min_start=1)
        for context.step in range(100):
            assert 1 <= sampler.draw(context).epoch < bounds[context.step]

    def test_draws_depend_on_the_step_alone(self, many, real):
        """A resumed run draws what the uninterrupted one does, and another seed something else."""
        whole, context = sampler_of(many, real, self.tiny, max_start=8)
        drawn = {}
        for context.step in range(20):
            segment = whole.draw(context)
            whole.advance(context)
            drawn[context.step] = (segment.expert, segment.epoch)
        late, context = sampler_of(many, real, self.tiny, max_start=8)
        late.load(whole.state())
        for context.step in (13, 4, 19):
            segment = late.draw(context)
            assert (segment.expert, segment.epoch) == drawn[context.step]
        other, context = sampler_of(many, real, self.tiny, max_start=8, seed=1)
        again = []
        for context.step in range(20):
            segment = other.draw(context)
            again.append((segment.expert, segment.epoch))
        assert again != list(drawn.values())

    def test_experts_that_changed_are_not_gone_on_with(self, tmp_path, many, real):
        grown = tmp_path / "grown"
        grown.mkdir()
        for path in many.iterdir():
            if "00004" not in path.name:
                (grown / path.name).write_bytes(path.read_bytes())
        state = sampler_of(many, real, self.tiny, max_start=2)[0].state()
        sampler, _ = sampler_of(grown, real, self.tiny, max_start=2)
        with pytest.raises(InputError, match="not those that this run began with"):
            sampler.load(state)

    @pytest.mark.parametrize(
        ("window", "words"),
        [
            ({"max_start": 12}, r"end after epoch 13 \(max_start - 1 \+ span\).* end after epoch 12"),
            ({"max_start": Growing(2, 12, 0.5)}, "end after epoch 13"),
            ({"max_start": lambda p: 2 if p < 0.5 else 30}, "end after epoch 31"),
            ({"max_start": 0}, "No epoch is left"),
            ({"max_start": 3, "min_start": 3}, "No epoch is left"),
            ({"max_start": Growing(2, 8, 0.5), "min_start": 2}, "No epoch is left"),
            ({"max_start": 3, "span": 0}, "span >= 1"),
            ({"max_start": 3, "min_start": -1}, "min_start >= 0"),
        ],
    )
    def test_windows_that_do_not_fit_are_refused_before_anything_is_done(self, many, real, window, words):
        with pytest.raises(InputError, match=words):
            sampler_of(many, real, self.tiny, **window)

    def test_the_widest_window_that_fits(self, many, real):
        sampler, context = sampler_of(many, real, self.tiny, max_start=11)
        assert max(sampler.draw(replace(context, step=k)).epoch for k in range(60)) == 10

    def test_growing_backwards(self):
        with pytest.raises(InputError, match="growing window"):
            Growing(5, 4, 0.5)
        with pytest.raises(InputError, match="growing window"):
            Growing(1, 4, 0.0)

    def test_an_expert_that_stands_still(self, tmp_path, real):
        layout = Layout.of(self.tiny(0))
        job = make_job(real, self.tiny, tmp_path, epochs=4)
        row = torch.randn(layout.width, generator=Rng(0).generator("row"))
        files_module.write_record(tmp_path / "meta.json", fresh_meta(job))
        files_module.write_expert(
            tmp_path, 0, layout, [row, row, row, row + 1, row + 2], config=files_module_digest(job)
        )
        sampler, context = sampler_of(tmp_path, real, self.tiny, max_start=3)
        starts = {sampler.draw(replace(context, step=k)).epoch for k in range(30)}
        assert starts == {1, 2}, "the segment that does not move is drawn again"
        sampler, context = sampler_of(tmp_path, real, self.tiny, max_start=1)
        with pytest.raises(Diverged, match=r"Expert 0 .* does not move between epoch 0 and 2"):
            sampler.draw(context)

    def test_no_expert_or_no_beginning(self, tmp_path, many, real):
        (tmp_path / "meta.json").write_bytes((many / "meta.json").read_bytes())
        with pytest.raises(InputError, match="holds no finished expert"):
            sampler_of(tmp_path, real, self.tiny, max_start=2)
        with pytest.raises(InputError, match="not open"):
            Experts(many, max_start=2).draw(context_of(real, self.tiny))

    def test_one_that_does_not_fit_the_task(self, many, real):
        with pytest.raises(InputError, match="do not fit"):
            sampler_of(many, real, make_network(), max_start=2)


def endpoint(context: Context) -> torch.Tensor:
    """One student step from the start of a segment, against its end (MTT with N = 1)."""
    segment = context.surrogate
    assert isinstance(segment, Segment)
    names = [name for name, _ in segment.network.named_parameters()]
    shapes = [p.shape for p in segment.network.parameters()]
    theta = segment.start.clone().requires_grad_()
    split = theta.split([s.numel() for s in shapes])
    weights = {n: t.view(s) for n, t, s in zip(names, split, shapes, strict=True)}
    logits = torch.func.functional_call(segment.network, weights, (context.synthetic.x,))
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, context.synthetic.y), theta, create_graph=True)
    reached = theta - 0.1 * grad
    end = segment.targets[-1]
    return (reached - end).square().sum() / (segment.start - end).square().sum()


@dataclass(frozen=True, kw_only=True)
class OneStep(Method):
    """A trajectory match of one student step, for these tests."""

    steps: int = 6  #: image updates
    experts: str = ""  #: a buffer to take; none trains experts
    max_start: int = 2  #: bound on start epochs

    def build(self, task: Task) -> Plan:
        asked = {"experts": 2, "epochs": 5, "stop_after": self.max_start + 1, "policy": "sgd:lr=0.1,batch=8"}
        unit = ExpertsUnit(path=self.experts or None, **asked)
        return Plan(
            init=make_init("real"),
            decoder=Pixels(),
            objective=endpoint,
            surrogates=Experts(unit, max_start=self.max_start),
            update={"images": PixelSgd(lr=10.0, momentum=0.5)},
            labels=HardLabels(),
            steps=self.steps,
            prepare=(unit,),
        )


class TestUnit:
    def run(self, out: Path | None, **hyper: Any) -> Any:
        return distill(OneStep, make_real(), ipc=1, network=NET, out=out, device="cpu", **hyper)

    def test_experts_are_trained_into_the_run_and_reused(self, tmp_path, monkeypatch):
        first = self.run(tmp_path / "run")
        (folder,) = [p for p in (tmp_path / "run" / "prepare").iterdir() if p.is_dir()]
        assert (folder.parent / f"{folder.name}.safetensors").is_file()
        buffer = open_buffer(folder)
        assert len(buffer) == 2
        assert buffer.epochs == 3
        assert torch.equal(self.run(None).images, first.images), "in a temporary folder the same"
        monkeypatch.setattr(Sgd, "epoch", None)  # nothing is trained from here on
        again = self.run(tmp_path / "given", experts=str(folder))
        assert torch.equal(again.images, first.images)

    def test_a_run_that_is_resumed_equals_one_that_was_not(self, tmp_path):
        from datastill.core.plan import Callback

        class Stop(Callback):
            def after_step(self, context: Context) -> None:
                if context.step == 3:
                    os.kill(os.getpid(), signal.SIGINT)

        whole = self.run(tmp_path / "whole")
        with pytest.raises(Interrupted):
            self.run(tmp_path / "stopped", callbacks=(Stop(),))
        assert torch.equal(self.run(tmp_path / "stopped", resume=True).images, whole.images)

    def test_stopped_while_experts_were_trained(self, tmp_path, monkeypatch):
        whole = self.run(tmp_path / "whole")
        original = Sgd.epoch

        def interrupted(policy, net, data, epoch):
            if epoch.index == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return original(policy, net, data, epoch)

        with monkeypatch.context() as patch:
            patch.setattr(Sgd, "epoch", interrupted)
            with pytest.raises(Interrupted, match="Stopped while experts were trained; nothing was saved"):
                self.run(None)
            with pytest.raises(Interrupted, match="add --resume to go on"):
                self.run(tmp_path / "stopped")
        assert torch.equal(self.run(tmp_path / "stopped", resume=True).images, whole.images)

    def test_a_run_folder_may_be_moved(self, tmp_path):
        from datastill.core.plan import Callback

        class Stop(Callback):
            def after_step(self, context: Context) -> None:
                if context.step == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted):
            self.run(tmp_path / "a", callbacks=(Stop(),))
        (tmp_path / "a").rename(tmp_path / "b")
        assert self.run(tmp_path / "b", resume=True).images.shape == (3, 3, 6, 5)

    def test_experts_that_do_not_fit_or_are_gone(self, tmp_path, made, many):
        with pytest.raises(InputError, match="do not fit: their network"):
            self.run(tmp_path / "a", experts=str(many))
        with pytest.raises(InputError, match="no folder"):
            self.run(tmp_path / "b", experts=str(tmp_path / "nowhere"))
        with pytest.raises(InputError, match="end after epoch 4"):
            self.run(tmp_path / "c", experts=str(made), max_start=3)
        task = Task(make_real(), 1, make_network(), folder=tmp_path)
        unit = ExpertsUnit(experts=1, epochs=2)
        with pytest.raises(InputError, match="not prepared"):
            unit.open(task, {})
        gone = {"path": torch.tensor(list(b"prepare/experts-0"), dtype=torch.uint8)}
        with pytest.raises(InputError, match="are gone from"):
            unit.open(task, gone)

    def test_its_key_and_cost(self, made, real, network):
        task = Task(real, 1, network)
        unit = ExpertsUnit(experts=2, epochs=3)
        assert unit.key(task) == ExpertsUnit(experts=2, epochs=3, workers=2).key(task)
        others = [ExpertsUnit(experts=3, epochs=3), ExpertsUnit(experts=2, epochs=3, seed=1), ExpertsUnit(path=made)]
        assert all(other.key(task) != unit.key(task) for other in others)
        json.dumps([other.key(task) for other in others])
        assert unit.key(task) != unit.key(replace(task, seed=1))
        fixed = ExpertsUnit(seed=3)
        assert fixed.key(task) == fixed.key(replace(task, seed=1)), "one buffer for all seeds of a run"
        assert unit.macs(task) == 3 * 3 * 2 * 24 * network.macs
        assert ExpertsUnit(path=made).macs(task) == 0

    def test_a_temporary_buffer_goes_with_its_unit(self, real, network):
        task, unit = Task(real, 1, network), ExpertsUnit(experts=1, epochs=2, policy="sgd:batch=8")
        buffer: ExpertBuffer = unit.open(task, unit.run(task))
        assert buffer.path.is_dir()
        del unit
        assert not buffer.path.exists()


def test_policies_are_given_by_name_or_as_objects():
    assert get_policy("sgd") == Sgd()
    assert get_policy("sgd: lr = 0.5 , batch=3") == Sgd(lr=0.5, batch=3)
    assert get_policy(Heavy()) == Heavy()
    assert sgd is not None
