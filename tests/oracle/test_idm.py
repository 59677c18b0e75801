"""IDM against its loop written out, its identity with DM, and the pool of networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, load_real
from datastill.augment.dsa import Dsa
from datastill.core import running
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import synthesize
from datastill.core.plan import Block, Callback, Task
from datastill.core.rng import Rng
from datastill.core.snapshot import Snapshot
from datastill.data import RealSet
from datastill.decoders.multi_formation import MultiFormation
from datastill.distillation.result import rising
from datastill.methods.idm import IDM
from datastill.models import resolve_network
from datastill.sampling.inits import MixReal
from datastill.store import checkpoint
from datastill.store.checkpoint import read_snapshot
from datastill.surrogates.pool import Pool
from datastill.training.hard import Schedule

NETWORK = "convnet:width=8,depth=2"
SMALL = {"real_batch": 12, "net_steps": 2, "net_batch": 20}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, ipc: int = 1, network: str = NETWORK) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory)


def trained_once(network: Any, optimizer: torch.optim.SGD, real: RealSet, step: int, born: int, steps: int) -> float:
    """`steps` updates on 20 real images each, on the library's draws; the percentage that was right."""
    rng = Rng(0)
    order = torch.randperm(len(real), generator=rng.generator("net-data", 0, step, born, 0))[: 20 * steps]
    shuffled = order[
        torch.randperm(20 * steps, generator=Rng(rng.derive("net-training", 0, step, born)).generator("order", 0))
    ]
    right = 0
    for part in shuffled.split(20):
        batch = real.batch(part)
        logits = network(batch.x)
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.y).backward()
        optimizer.step()
        right += int((logits.argmax(1) == batch.y).sum())
    return 100 * right / (20 * steps)


def literal_idm(task: Task, method: IDM, augment: Dsa | None) -> Tensor:
    """The paper's loop: a list of networks, and one momentum optimizer that is stepped class after class."""
    real, rng, y = task.real, Rng(task.seed), task.labels
    decoder = MultiFormation(method.factor, pad=0.0)
    images = MixReal(method.factor).images(task, Block(0, torch.arange(len(y)), y), None)[0].clone()  # type: ignore[arg-type]
    images.requires_grad_()
    optimizer = torch.optim.SGD([images], lr=method.image_lr, momentum=method.image_momentum)
    pool: list[list[Any]] = []

    def join(born: int) -> None:
        network = task.network(rng.derive("surrogate", 0, born))
        sgd = torch.optim.SGD(network.parameters(), lr=method.net_lr, momentum=0.9, weight_decay=5e-4)
        pool.append([born, network, sgd, 0.0])

    for k in range(method.pool_start, 0, -1):
        join(-k)
    for step in range(method.steps):
        if step % method.interval == 0:
            join(step)
            if len(pool) > method.pool:
                pool.pop(0)
        _, network, _, percent = pool[int(torch.randint(len(pool), (), generator=rng.generator("pool", 0, step)))]
        batch = real.of_classes(range(10), method.real_batch, rng.generator("real", 0, step))
        record = augment and augment.draw(10, real.shape, rng.generator("augment", 0, step))
        for c in range(10):
            x = batch.x[batch.y == c]
            decoded = decoder.decode({"images": images[y == c]}, y[y == c])
            s = decoded.x
            if augment:
                x, s = (augment.apply(one, record, rows=torch.full((len(one),), c)) for one in (x, s))
            loss = (network.embed(x).mean(0).detach() - network.embed(s).mean(0)).square().sum()
            loss = loss + method.ce_weight * percent * F.cross_entropy(network(s), torch.full((len(s),), c))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step + 1 < method.steps:
            order = torch.randperm(len(pool), generator=rng.generator("pool-trained", 0, step))
            for position in order[: method.trained].tolist():
                born, network, sgd, _ = pool[position]
                pool[position][3] = trained_once(network, sgd, real, step, born, method.net_steps)
    return images.detach()


@pytest.mark.parametrize("augment", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_idm_is_the_papers_algorithm(digits: RealSet, augment: str) -> None:
    task = task_of(digits, ipc=2)
    method = IDM(steps=7, pool=4, pool_start=2, interval=3, augment=augment, ce_weight=0.05, image_lr=0.2, **SMALL)
    start = MixReal(2).images(task, Block(0, torch.arange(20), task.labels), None)[0]  # type: ignore[arg-type]
    ours = synthesize(method.build(task), task).codes["images"]
    literal = literal_idm(task, method, None if augment == "none" else Dsa(augment))
    moved = (ours - start).abs().max()
    assert moved > 1e-2
    assert (ours - literal).abs().max() < 2e-3 * moved
    without = synthesize(IDM(**{**vars(method), "ce_weight": 0.0}).build(task), task).codes["images"]
    assert (ours - without).abs().max() > 2e-2 * moved, "labels must matter"


def test_without_labels_and_with_fresh_networks_it_is_dm(digits: RealSet) -> None:
    """Weight 0, factor 1, a pool of the newest network alone, joint momentum: DM, bit for bit."""
    shared = {"ipc": 2, "network": NETWORK, "steps": 5, "real_batch": 16, "augment": "color_crop", "image_lr": 0.7}
    dm = distill("dm", digits, init="real", **shared)
    plain = {"ce_weight": 0.0, "factor": 1, "init": "real", "pool": 1, "interval": 1, "trained": 0, "sequential": False}
    idm = distill("idm", digits, **plain, **shared)
    assert torch.equal(dm.images, idm.images)


class TestPool:
    def pool(self, task: Task, **changes: Any) -> Pool:
        rules = {"start": 3, "most": 6, "interval": 4, "trained": 2, "updates": 2}
        return Pool(task.network, schedule=Schedule(1, batch=20), **{**rules, **changes})

    def context(self, task: Task, steps: int) -> Context:
        plan = IDM(steps=steps, **SMALL).build(task)  # type: ignore[arg-type]
        return Context(task, plan, Block(0, torch.arange(10), task.labels), Rng(0), steps=steps)

    def test_first_in_first_out(self, digits: RealSet) -> None:
        task = task_of(digits, network="convnet:width=4,depth=1")
        pool, context = self.pool(task, trained=0), self.context(task, 40)
        pool.begin(context)
        for step in range(30):
            context.step = step
            pool.draw(context)
            assert len(pool.born) == min(3 + math.ceil((step + 1) / 4), 6)
            assert pool.born == sorted(pool.born)
            pool.advance(context)
        assert pool.born == [8, 12, 16, 20, 24, 28]

    def test_every_network_is_drawn_and_trained(self, digits: RealSet) -> None:
        task = task_of(digits, network="convnet:width=4,depth=1")
        pool, context = self.pool(task, interval=1000), self.context(task, 100)
        pool.begin(context)
        drawn, untrained = set(), []
        for step in range(40):
            context.step = step
            drawn.add(id(pool.draw(context)))
            untrained.append(pool.accuracy == 0)
            pool.advance(context)
        assert len(drawn) == 4
        assert untrained[0]
        assert not any(untrained[-10:])
        assert pool.accuracy > 0.3

    def test_accuracy_is_of_the_last_training(self, digits: RealSet) -> None:
        """A script of the network's answers: all wrong at first, then right in a quarter of the images."""
        task = task_of(digits, network="convnet:width=4,depth=1")
        pool, context = self.pool(task, start=0, trained=1), self.context(task, 100)
        pool.begin(context)
        labels = digits.labels

        network = pool.draw(context)
        answers = iter([0, 0, 5, 5, 20, 10])  # of 20 images in each of two updates of three trainings
        forward = type(network).forward

        def scripted(self: Any, x: Tensor) -> Tensor:
            logits = forward(self, x)
            if not torch.is_grad_enabled():
                return logits
            matches = [int(((x_i - every).abs().flatten(1).amax(1) < 1e-6).nonzero()[0]) for x_i in x]
            wanted = labels[torch.tensor(matches)]
            wanted = torch.where(torch.arange(20) < next(answers), wanted, (wanted + 1) % 10)
            return logits + 1e3 * F.one_hot(wanted, 10)

        every = digits.batch(torch.arange(len(digits))).x
        network.forward = scripted.__get__(network)  # type: ignore[method-assign]
        found = []
        for _ in range(3):
            pool.advance(context)
            found.append(100 * pool.accuracy)
        assert found == [0.0, 25.0, 75.0]

    def test_a_checkpoint_holds_what_was_trained_and_copies_nothing(self, digits: RealSet) -> None:
        task = task_of(digits)
        pool, context = self.pool(task, trained=1), self.context(task, 100)
        pool.begin(context)
        pool.draw(context)
        assert set(pool.state()) == {"born", "trainings", "accuracy"}
        assert pool.parts == []
        pool.advance(context)
        state = pool.state()
        (member,) = {name.split("/")[0] for name in state if "/" in name}
        assert pool.parts == [member]
        weights = task.network(0).state_dict()
        assert {name.removeprefix(f"{member}/") for name in state if "/" in name} == {
            f"{kind}/{name}" for kind in ("weight", "momentum") for name in weights
        }
        trained = next(m for m in pool.members if m.part == member)
        assert trained.network is not None
        assert state[f"{member}/weight/head.weight"].data_ptr() == trained.network.head.weight.data_ptr()  # type: ignore[union-attr]

    def test_a_finished_block_keeps_no_networks(self, digits: RealSet) -> None:
        task, written = task_of(digits), []

        class Kept:
            def due(self, step: int) -> bool:
                return True

            def write(self, block: int, snapshot: Snapshot) -> None:
                written.append(len(snapshot.group("surrogates")))

            def read(self, block: int) -> None:
                return None

        synthesize(IDM(steps=3, **SMALL).build(task), task, checkpointer=Kept())  # type: ignore[arg-type]
        assert written == [3 + 2 * 20, 3 + 3 * 20, 3]


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, context: Context) -> None:
        if context.step == self.step:
            raise Stop


def test_a_plan_runs_twice(digits: RealSet) -> None:
    """As estimates and budgets have it: the pool begins anew."""
    task = task_of(digits)
    plan = IDM(steps=4, **SMALL).build(task)  # type: ignore[arg-type]
    synthesize(plan, task, stop_after=2)
    again, once = (synthesize(p, task).codes["images"] for p in (plan, IDM(steps=4, **SMALL).build(task)))  # type: ignore[arg-type]
    assert torch.equal(again, once)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("step", [1, 6])
def test_stopped_and_resumed(digits: RealSet, tmp_path: Any, norm: str, step: int) -> None:
    shared = {"ipc": 1, "network": f"{NETWORK},norm={norm}", "steps": 12, "pool": 5, "interval": 3, **SMALL}
    whole = distill("idm", digits, **shared)
    with pytest.raises(Stop):
        distill("idm", digits, out=tmp_path / "run", callbacks=[StopAt(step)], checkpoint_seconds=0.0, **shared)
    again = distill("idm", digits, out=tmp_path / "run", resume=True, **shared)
    assert torch.equal(whole.images, again.images)


def test_a_loss_that_rises_with_what_networks_know_is_no_fault(digits: RealSet) -> None:
    hyper = {"steps": 40, "ce_weight": 5.0, "pool_start": 0, "interval": 1000, "image_lr": 1e-6, **SMALL}
    task = task_of(digits, network="convnet:width=4,depth=1")
    assert rising(synthesize(IDM(**hyper).build(task), task))  # type: ignore[arg-type]
    made = distill("idm", digits, ipc=1, network="convnet:width=4,depth=1", **hyper)
    assert not [note for note in made.manifest["notes"] if "loss rose" in note]


class TestCheckpoints:
    def stopped(self, real: RealSet, out: Path, step: int, **changes: Any) -> dict[str, Any]:
        """A run with a checkpoint after every step, up to this one; the rest of it as keywords."""
        shared = {"ipc": 1, "network": NETWORK, "steps": 12, "pool": 4, "interval": 2, "trained": 1, **SMALL, **changes}
        with pytest.raises(Stop):
            distill("idm", real, out=out, callbacks=[StopAt(step)], checkpoint_seconds=0.0, **shared)
        return {**shared, "out": out, "resume": True}

    def test_each_network_is_written_once(self, digits: RealSet, tmp_path: Path, monkeypatch: Any) -> None:
        """After a step one network is new; what is left of others goes."""
        written: list[str] = []
        write = checkpoint.write_tensors

        def told(path: Path, *args: Any) -> None:
            written.append(path.name)
            write(path, *args)

        monkeypatch.setattr(checkpoint, "write_tensors", told)
        shared = self.stopped(digits, tmp_path / "run", 8)
        parts = [name for name in written if "surrogates" in name]
        assert len(parts) == 7 == len(set(parts))  # the eighth step ended before its checkpoint
        there = {path.name for path in (tmp_path / "run" / "checkpoints").glob("block-00000.*.safetensors")}
        named = read_snapshot(tmp_path / "run" / "checkpoints" / "block-00000.safetensors").meta["parts"]["surrogates"]
        assert there == {f"block-00000.surrogates.{name}.safetensors" for name in named}
        written.clear()
        distill("idm", digits, **shared, checkpoint_seconds=0.0)
        assert not set(parts) & {name for name in written if "surrogates" in name} - {parts[-1]}
        left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
        assert [name for name in left if name.endswith(".safetensors")] == ["block-00000.safetensors"]

    def test_a_kill_between_a_part_and_its_checkpoint(
        self, digits: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, count = checkpoint.write_snapshot, [0]

        def killed(path: Path, snapshot: Snapshot) -> None:
            count[0] += 1
            if count[0] == 6:
                raise Stop
            write(path, snapshot)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_snapshot", killed)
            shared = self.stopped(digits, tmp_path / "run", 99)
        again = distill("idm", digits, **shared)
        whole = distill("idm", digits, **{k: v for k, v in shared.items() if k not in ("out", "resume")})
        assert torch.equal(again.images, whole.images)

    @pytest.mark.parametrize("damage", ["gone", "other"])
    def test_a_part_that_is_not_what_was_written(self, digits: RealSet, tmp_path: Path, damage: str) -> None:
        shared = self.stopped(digits, tmp_path / "run", 5)
        part = next((tmp_path / "run" / "checkpoints").glob("block-00000.surrogates.*.safetensors"))
        if damage == "gone":
            part.unlink()
        else:
            part.write_bytes(part.read_bytes()[:-4] + b"\0\1\2\3")
        with pytest.raises(InputError, match=part.name):
            distill("idm", digits, **shared)

    def test_a_part_lies_beside_its_checkpoint(self, tmp_path: Path) -> None:
        checkpointer = checkpoint.Checkpointer(tmp_path, {})
        meta = {"step": 1, "finished": False, "skipped": 0, "in_a_row": 0, "seconds": 0.0, "config": {}}
        hostile = Snapshot({"codes": {"images": torch.zeros(1)}}, {**meta, "parts": {"surrogates": ["../../x"]}})
        checkpoint.write_snapshot(checkpointer.path(0), hostile)
        with pytest.raises(InputError, match="parts"):
            checkpointer.read(0)


def test_a_large_pool_is_not_kept_twice(digits: RealSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Before each step of a user's network the state is kept, unless there is too much of it."""
    sizes: list[bool] = []
    kept = running.Running.kept

    def told(self: Any) -> Any:
        found = kept(self)
        sizes.append(found is not None)
        return found

    monkeypatch.setattr(running.Running, "kept", told)

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
        )

    shared = {"ipc": 1, "network": network, "steps": 4, **SMALL}
    for limit, wanted in ((2**26, [True] * 4), (3000, [True, False, False, False])):
        sizes.clear()
        monkeypatch.setattr(running, "MOST_KEPT_OF_NETWORKS", limit)
        distill("idm", digits, out=tmp_path / str(limit), **shared)
        assert sizes == wanted
