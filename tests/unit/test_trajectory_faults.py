"""Trajectory matching under faults: SIGKILL at any moment of a run, and numbers that are not finite within one."""

from __future__ import annotations

import dataclasses
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datastill import distill, load_distilled, load_real
from datastill.core.context import Context
from datastill.core.loop import synthesize
from datastill.core.plan import Grads, Plan, Task
from datastill.core.snapshot import Snapshot
from datastill.data import RealSet
from datastill.methods.mtt import MTT
from datastill.methods.tesla import TESLA
from datastill.models import resolve_network
from datastill.store.checkpoint import Checkpointer, write_snapshot
from datastill.surrogates.experts import open_buffer, train_experts
from forked import Forked

NETWORK = "convnet:width=8,depth=1"
SETTINGS: dict[str, Any] = {"student_steps": 2, "max_start": 7, "student_lr": 0.05, "seed": 3}
SETTINGS |= {"expert_count": 4, "expert_epochs": 8, "expert_batch": 32, "expert_lr": 0.05}


def start(folder: Path, steps: int) -> Forked:
    """A run in a process of its own: experts first, then steps with a checkpoint after each."""
    shared: dict[str, Any] = {"ipc": 1, "network": NETWORK, "resume": True, "checkpoint_seconds": 0.0}
    return Forked(distill, "mtt", "digits", steps=steps, out=folder, **shared, **SETTINGS)


def stamps(paths: Iterator[Path]) -> dict[Path, int]:
    """When files were written, of those that are there at this moment."""
    found = {}
    for path in paths:
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def check_kills(tmp_path: Path, kills: int, seed: int, steps: int) -> None:
    """Kill a run while its experts are trained and while it takes steps; look at what is left; finish; compare."""
    straight, killed, moments = tmp_path / "straight", tmp_path / "killed", random.Random(seed)
    assert start(straight, steps).wait() == 0
    (whole,) = (p for p in (straight / "prepare").iterdir() if p.is_dir())
    buffer = killed / "prepare" / whole.name
    hits = {"partial": 0, "checkpoints": 0}
    for k in range(kills):
        at = "partial" if k < (kills + 1) // 2 else "checkpoints"
        watched = buffer / "partial" if at == "partial" else killed / "checkpoints"
        before, process = stamps(watched.glob("*.safetensors")), start(killed, steps)
        while process.poll() is None and stamps(watched.glob("*.safetensors")) in ({}, before):
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.05))
        process.kill()
        hits[at] += process.wait() == -signal.SIGKILL
        check_experts(buffer, whole)
    assert all(hits.values()), f"no kill hit one of the two: {hits}"
    assert start(killed, steps).wait() == 0
    assert (buffer / "meta.json").read_bytes() == (whole / "meta.json").read_bytes()
    assert sorted(p.name for p in buffer.iterdir()) == sorted(p.name for p in whole.iterdir())
    check_experts(buffer, whole)
    one, other = load_distilled(straight), load_distilled(killed)
    assert torch.equal(one.images, other.images)
    assert one.manifest["student"] == other.manifest["student"]
    assert (straight / "losses.safetensors").read_bytes() == (killed / "losses.safetensors").read_bytes()


def check_experts(found: Path, whole: Path) -> None:
    """Whatever counts as an expert is a whole one, the same bytes as without kills."""
    if not (found / "meta.json").is_file():
        return
    buffer = open_buffer(found)
    buffer.verify()
    for k in buffer.experts:
        name = f"expert_{k:05d}.bin"
        assert (found / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_killed_in_experts_and_in_steps(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=2, seed=0, steps=60)


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=16, seed=1, steps=120)


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.fixture(scope="module")
def buffer(digits: RealSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three experts of four epochs."""
    folder = tmp_path_factory.mktemp("experts") / "buffer"
    train_experts(digits, task_of(digits).network, folder, experts=3, epochs=4, policy="sgd:lr=0.05,batch=64")
    return str(folder)


def task_of(real: RealSet) -> Task:
    factory = resolve_network(NETWORK, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, 1, factory)


class Keep(Checkpointer):
    """Keeps a copy of every step's snapshot."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {}, every_steps=1)
        self.kept: list[Snapshot] = []

    def write(self, block: int, snapshot: Snapshot) -> None:
        groups = {g: {n: t.clone() for n, t in named.items()} for g, named in snapshot.groups.items()}
        self.kept.append(Snapshot(groups, dict(snapshot.meta)))


BAD = 3  #: the step whose numbers are not finite


def with_a_fault(plan: Plan, where: str) -> Plan:
    """The plan with one step whose loss, gradient or expert is not finite."""
    objective: Any = plan.objective

    def broken(context: Context) -> Grads:
        if where == "expert" and context.step == BAD:
            segment: Any = context.surrogate
            targets = segment.targets.clone()
            targets[-1, 5] = torch.nan
            context.surrogate = dataclasses.replace(segment, targets=targets)
        if where == "images that blow up" and context.step == BAD:
            assert context.synthetic is not None
            context.synthetic = dataclasses.replace(context.synthetic, x=1e30 * context.synthetic.x)
        found: Grads = objective(context)
        if context.step != BAD or where in ("expert", "images that blow up"):
            return found
        bad: dict[str, Tensor] = {name: leaf.clone() for name, leaf in found.leaves.items()}
        x, loss = found.x.clone(), found.loss
        if where == "one pixel":
            x[4, 0, 2, 2] = torch.inf
        elif where == "loss":
            loss = loss * torch.nan
        else:
            bad["lr"] = bad["lr"] * torch.nan
        return Grads(loss, x, bad)

    return dataclasses.replace(plan, objective=broken)


@pytest.mark.parametrize("where", ["loss", "one pixel", "alpha", "expert", "images that blow up"])
@pytest.mark.parametrize(
    "changes",
    [
        {"image_lr": 2.0, "lr_lr": 1e-4, "lr_kind": "raw"},
        {"engine": "full_unroll"},  # rates from the first gradients, of which the bad one would be one
        {"engine": "frozen_path", "image_lr": 2.0, "soft_labels": True},
    ],
    ids=["given rates", "measured rates", "soft labels"],
)
def test_a_step_that_is_not_finite_changes_nothing_but_a_counter(
    where: str, changes: dict[str, Any], digits: RealSet, buffer: str, tmp_path: Path
) -> None:
    task, kind = task_of(digits), TESLA if "soft_labels" in changes else MTT
    method = kind(steps=7, experts=buffer, student_steps=4, max_start=3, student_lr=0.05, **changes)
    plan = with_a_fault(method.build(task), where)
    keeper = Keep(tmp_path)
    prepared = {"experts": dict(plan.prepare[0].run(task))}
    outcome = synthesize(plan, task, prepared=prepared, checkpointer=keeper)
    before, after, later = keeper.kept[BAD - 1 : BAD + 2]
    assert before.groups.keys() == after.groups.keys() >= {"codes", "update:images", "update:lr", "surrogates"}
    for group, named in before.groups.items():
        if group != "losses":
            assert all(torch.equal(t, after.groups[group][n]) for n, t in named.items()), group
    changed = {name for name, value in before.meta.items() if after.meta[name] != value}
    assert changed - {"seconds"} == {"step", "skipped", "in_a_row"}
    assert (after.meta["skipped"], after.meta["in_a_row"]) == (1, 1)
    assert (later.meta["skipped"], later.meta["in_a_row"]) == (1, 0)
    assert any(not torch.equal(t, later.groups["codes"][n]) for n, t in after.groups["codes"].items())
    assert outcome.skipped == 1
    assert not torch.isfinite(outcome.losses[0, BAD]) or where in ("one pixel", "alpha")
    assert all(torch.isfinite(t).all() for t in (*outcome.codes.values(), *outcome.shared.values(), outcome.y))


def test_a_fault_costs_the_later_steps_nothing(digits: RealSet, buffer: str, tmp_path: Path) -> None:
    """From the state after the fault on, a run without it takes the same steps: nothing of it is carried on."""
    task = task_of(digits)
    plan = MTT(steps=7, experts=buffer, student_steps=4, max_start=3, image_lr=2.0).build(task)
    prepared = {"experts": dict(plan.prepare[0].run(task))}
    bad = synthesize(with_a_fault(plan, "loss"), task, prepared=prepared, checkpointer=(kept := Keep(tmp_path)))
    folder = tmp_path / "again"
    snapshot = kept.kept[BAD]
    snapshot.meta |= {"skipped": 0, "in_a_row": 0, "config": {}}
    write_snapshot(Checkpointer(folder, {}).path(0), snapshot)
    again = synthesize(plan, task, prepared=prepared, checkpointer=Checkpointer(folder, {}))
    assert torch.equal(again.codes["images"], bad.codes["images"])
    assert torch.equal(again.shared["lr"], bad.shared["lr"])
    assert again.skipped == 0
