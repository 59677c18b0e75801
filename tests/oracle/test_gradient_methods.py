"""DC, DSA and IDC: identities between them, and their loops against ones written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import distill, load_real
from datastill.core.loop import synthesize
from datastill.core.plan import Plan, Task
from datastill.core.rng import Rng
from datastill.core.update import SequentialSgd, Sgd
from datastill.data import RealSet
from datastill.decoders.multi_formation import MultiFormation
from datastill.distillation.job import prepare_job
from datastill.methods.dc import DC, loops
from datastill.methods.idc import IDC
from datastill.models import resolve_network
from datastill.objectives.gradient_match import GradientMatch
from datastill.sampling.inits import Noise
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.on_synthetic import TrainedOnSynthetic

NETWORK = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, ipc: int = 2, seed: int = 0) -> Task:
    factory = resolve_network(NETWORK, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


class TestIdentities:
    def test_dsa_without_augmentation_is_dc(self, digits: RealSet) -> None:
        shared = {"ipc": 2, "network": NETWORK, "steps": 4, "outer": 2, "inner": 1, "real_batch": 16, "init": "real"}
        dc = distill("dc", digits, **shared)
        dsa = distill("dsa", digits, augment="none", **shared)
        assert torch.equal(dc.images, dsa.images)

    def test_idc_with_dc_parts_is_dc(self, digits: RealSet) -> None:
        """Factor 1, rows of all matrices, a network trained on the synthetic set, joint momentum: DC's update."""
        task = task_of(digits)
        dc = DC(steps=4, outer=2, inner=3, real_batch=16).build(task)
        idc = IDC(steps=4, outer=2, factor=1, image_lr=0.1, sequential=False, augment="none").build(task)
        parts = {
            "init": Noise(),
            "decoder": MultiFormation(factor=1),
            "objective": GradientMatch(distance="row-cosine", layers="matrices"),
            "surrogates": TrainedOnSynthetic(task.network, outer=2, epochs=3),
            "sampler": ClassBatches(16),
        }
        same = dataclasses.replace(idc, **parts)
        a, b = (synthesize(plan, task).codes["images"] for plan in (dc, same))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)

    def test_sequential_without_momentum_is_joint(self, digits: RealSet) -> None:
        task = task_of(digits)
        base = DC(steps=3, outer=1, inner=1, real_batch=16).build(task)
        made = [
            synthesize(dataclasses.replace(base, update={"images": rule}), task).codes["images"]
            for rule in (Sgd(lr=0.1, momentum=0.0), SequentialSgd(lr=0.1, momentum=0.0, rows=task.labels))
        ]
        torch.testing.assert_close(made[0], made[1], rtol=1e-6, atol=1e-7)


def literal_dc(plan: Plan, task: Task, steps: int, outer: int, inner: int, real_batch: int, lr: float) -> Tensor:
    """The paper's algorithm as a script would have it, on the library's draws: class after class, whole batches."""
    rng, real = Rng(task.seed), task.real
    images = torch.stack(
        [torch.randn(real.shape, generator=rng.generator("noise", i)) for i in range(len(task.labels))]
    )
    images.requires_grad_()
    optimizer = torch.optim.SGD([images], lr=lr, momentum=0.5)
    for step in range(steps):
        if step % outer == 0:
            network = task.network(rng.derive("surrogate", 0, step))
        batch = real.of_classes(list(range(task.classes)), real_batch, rng.generator("real", 0, step))
        weights = list(network.parameters())
        loss = torch.tensor(0.0)
        for c in range(task.classes):
            x, y = batch.x[batch.y == c], batch.y[batch.y == c]
            wanted = torch.autograd.grad(F.cross_entropy(network(x), y), weights)
            mine = task.labels == c
            out = network(images[mine])
            got = torch.autograd.grad(F.cross_entropy(out, task.labels[mine]), weights, create_graph=True)
            for a, b in zip(got, wanted, strict=True):
                if a.ndim > 1:
                    loss = loss + (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % outer and step + 1 < steps:
            plain = torch.optim.SGD(network.parameters(), lr=0.01)
            for p in range(inner):  # one batch holds the whole set, so the order does not matter
                assert len(images) <= 256
                assert p >= 0
                plain.zero_grad()
                F.cross_entropy(network(images.detach()), task.labels).backward()
                plain.step()
    return images.detach()


def test_dc_is_the_papers_algorithm(digits: RealSet) -> None:
    task = task_of(digits)
    plan = DC(steps=5, outer=3, inner=4, real_batch=20).build(task)
    ours = synthesize(plan, task).codes["images"]
    torch.testing.assert_close(ours, literal_dc(plan, task, 5, 3, 4, 20, 0.1), rtol=1e-3, atol=1e-4)


class TestSchedules:
    @pytest.mark.parametrize(
        ("ipc", "expected"),
        [(1, (1, 1)), (2, (2, 50)), (9, (9, 50)), (10, (10, 50)), (15, (15, 33)), (50, (50, 10)), (100, (100, 2))],
    )
    def test_loops(self, ipc: int, expected: tuple[int, int]) -> None:
        assert loops(ipc) == expected

    def test_a_size_without_a_recipe_says_so(self, digits: RealSet) -> None:
        job = prepare_job("dc", digits, ipc=3, recipe="paper")
        assert (job.method.outer, job.method.inner, job.method.steps) == (3, 50, 3000)  # type: ignore[attr-defined]
        assert any("no recipe" in note for note in job.notes)

    def test_the_learning_rate_of_idc_follows_size(self, digits: RealSet) -> None:
        made = IDC(base_lr=5e-3).for_task(task_of(digits, ipc=1))
        assert made.image_lr == pytest.approx(5e-4)
        large = load_real(((torch.arange(20 * 3 * 64 * 64) % 251).view(20, 3, 64, 64).byte(), torch.arange(20) % 2))
        assert IDC(base_lr=5e-3).for_task(task_of(large, ipc=10)).image_lr == pytest.approx(2e-2)


class TestRuns:
    @pytest.mark.parametrize("name", ["dc", "idc"])
    def test_killed_between_matches_and_resumed(self, name: str, digits: RealSet, tmp_path) -> None:
        """A checkpoint inside a trajectory keeps the network, and its momentum."""
        shared = {"network": NETWORK, "ipc": 1, "steps": 7, "outer": 5, "real_batch": 8}
        shared |= {"net_images": 40} if name == "idc" else {"inner": 2}

        class Stop(Exception):
            pass

        from datastill.core.plan import Callback

        class StopAt3(Callback):
            def after_step(self, context) -> None:
                if context.step == 4:
                    raise Stop

        whole = distill(name, digits, **shared)
        with pytest.raises(Stop):
            distill(name, digits, out=tmp_path / "run", callbacks=[StopAt3()], checkpoint_seconds=0.0, **shared)
        again = distill(name, digits, out=tmp_path / "run", resume=True, **shared)
        assert torch.equal(whole.images, again.images)

    def test_batch_norm_is_frozen_while_matching(self, digits: RealSet) -> None:
        made = distill("dc", digits, ipc=1, network=NETWORK + ",norm=batch", steps=3, outer=3, inner=1, real_batch=8)
        assert torch.isfinite(made.images).all()

    def test_idc_stores_pixels_and_decodes_more_images(self, digits: RealSet, tmp_path) -> None:
        from datastill import load_distilled

        distill("idc", digits, ipc=1, network=NETWORK, steps=4, outer=2, net_images=24, out=tmp_path / "idc")
        made = load_distilled(tmp_path / "idc")
        assert made.images.shape == (40, 1, 8, 8)
        assert made.codes["images"].shape == (10, 1, 8, 8)
        assert made.codes["images"].min() >= 0
        assert made.codes["images"].max() <= 1
        assert torch.bincount(made.hard_labels).tolist() == [4] * 10
