"""CAFE and DataDAM against literal loops over classes, and their identities with DM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill import distill, load_real
from datastill.augment.dsa import Dsa
from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.loop import gradients, synthesize
from datastill.core.plan import Block, Callback, Plan, Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.methods.cafe import CAFE, halved
from datastill.methods.datadam import DataDAM
from datastill.methods.dm import DM
from datastill.models import resolve_network
from datastill.objectives.layer_means import LayerMeans, discriminative, spatial_attention
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.adaptive import AdaptivelyTrained, at_rest, on_the_move
from datastill.surrogates.fresh import Fresh

NETWORK = "convnet:width=8,depth=2"
ALL = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def task_of(real: RealSet, ipc: int = 2, network: Any = NETWORK) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory)


def one_step(task: Task, plan: Plan, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Loss per class and gradient of the images, on a fresh network."""
    context = Context(task, plan, Block(0, torch.arange(len(codes)), task.labels), Rng(task.seed), steps=9)
    context.codes = {"images": codes}
    context.surrogate = Fresh(task.network).draw(context)
    loss, grads = gradients(context, None)
    return loss, grads["images"]


def noise(task: Task) -> Tensor:
    return torch.randn(len(task.labels), *task.real.shape, generator=Rng(0).generator("x"))


def drawn(task: Task, n: int = 16) -> Batch:
    """The real batch of the first step, and the network of it in `fresh`."""
    return task.real.of_classes(range(task.classes), n, Rng(task.seed).generator("real", 0, 0))


def fresh(task: Task) -> Any:
    return task.network(Rng(task.seed).derive("surrogate", 0, 0)).train()


def attention(layer: Tensor, power: float) -> Tensor:
    """z of the paper, image by image."""
    rows = []
    for one in layer:
        a = sum(channel.abs() ** power for channel in one).flatten()
        rows.append(a / a.norm() if a.norm() > 0 else a)
    return torch.stack(rows)


def naive_datadam(task: Task, codes: Tensor, power: float, names: Sequence[str], joint: bool = False) -> Tensor:
    """100 SAM + 100 lambda MMD, one class at a time, or all classes in one pass per side."""
    network, batch, total = fresh(task), drawn(task), torch.tensor(0.0)
    taps = [*names, "flat"]
    if joint:
        both = {y: network.taps(x, taps) for x, y in ((batch.x, "real"), (codes, "synthetic"))}
    for c in range(task.classes):
        if joint:
            real = {n: v[batch.y == c].detach() for n, v in both["real"].items()}
            own = {n: v[task.labels == c] for n, v in both["synthetic"].items()}
        else:
            real = {n: v.detach() for n, v in network.taps(batch.x[batch.y == c], taps).items()}
            own = network.taps(codes[task.labels == c], taps)
        for name in names:
            difference = attention(real[name], power).mean(0) - attention(own[name], power).mean(0)
            total = total + 100 * difference.square().sum()
        total = total + 100 * 0.01 * (real["flat"].mean(0) - own["flat"].mean(0)).square().sum()
    return total


class TestDataDAM:
    @pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
    @pytest.mark.parametrize("network", ["convnet:width=8,depth=3", "convnet:width=4,depth=2,norm=none,pool=max"])
    def test_one_step_is_the_literal_loop(self, digits: RealSet, network: str, power: float) -> None:
        task = task_of(digits, network=network)
        plan = DataDAM(real_batch=16, power=power, augment="none").build(task)
        loss, grad = one_step(task, plan, noise(task))
        leaf = noise(task).requires_grad_()
        literal = naive_datadam(task, leaf, power, ["relu1", "relu2"][: 2 if "depth=3" in network else 1])
        torch.testing.assert_close(loss.sum(), literal.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grad, torch.autograd.grad(literal, leaf)[0], rtol=1e-3, atol=1e-5)
        assert grad.abs().max() > 1e-2

    def test_batch_norm_takes_one_pass_per_side(self, digits: RealSet) -> None:
        """The network of the released code: a loop over classes gives other numbers."""
        task = task_of(digits, network=NETWORK + ",norm=batch")
        loss, _ = one_step(task, DataDAM(real_batch=16, augment="none").build(task), noise(task))
        joint, loop = (naive_datadam(task, noise(task), 4.0, ["relu1"], joint=way) for way in (True, False))
        torch.testing.assert_close(loss.sum(), joint.detach(), rtol=1e-4, atol=1e-5)
        assert (loop / joint - 1).abs() > 1e-2

    @pytest.mark.parametrize("network", ["mlp", "convnet:width=8,depth=1"])
    def test_without_attention_it_is_dm(self, digits: RealSet, network: str) -> None:
        """100 lambda DM; these networks have no layer before the last activation that attends to places."""
        shared = {"ipc": 2, "network": network, "steps": 4, "real_batch": 16, "augment": "color_crop"}
        dm = distill("dm", digits, **shared, image_lr=3.0)
        ours = distill("datadam", digits, **shared, image_lr=1.0, scale=100.0, mean_weight=0.03)
        moved = (dm.images - digits.batch(dm.extra["selected"]).x).abs().max()
        assert moved > 1e-3
        assert (dm.images - ours.images).abs().max() < 1e-3 * moved

    def test_attention_forgets_scale_and_order_of_channels(self) -> None:
        maps = torch.randn(5, 6, 4, 3, generator=Rng(0).generator("maps"))
        z = spatial_attention(maps, 4.0)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(spatial_attention(1e-12 * maps, 4.0), z)
        torch.testing.assert_close(spatial_attention(1e12 * maps[:, [3, 1, 5, 0, 2, 4]], 4.0), z)
        one = maps[:, :1].abs()
        torch.testing.assert_close(spatial_attention(one, 1.0), F.normalize(one.flatten(1), dim=1))

    def test_a_map_of_zeros_has_no_direction(self) -> None:
        maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
        z = spatial_attention(maps, 4.0)
        assert torch.equal(z, torch.zeros(2, 16))
        assert torch.isfinite(torch.autograd.grad(z.sum(), maps)[0]).all()


def naive_cafe(task: Task, codes: Tensor, weights: dict[str, float], beta: float) -> Tensor:
    """The paper's two terms, one class at a time."""
    network, batch, total = fresh(task), drawn(task), torch.tensor(0.0)
    for c in range(task.classes):
        real = network.taps(batch.x[batch.y == c], weights)
        own = network.taps(codes[task.labels == c], weights)
        for name, w in weights.items():
            total = total + w * (real[name].detach().mean(0) - own[name].mean(0)).square().sum()
    centers = torch.stack([network.embed(codes[task.labels == c]).mean(0) for c in range(task.classes)])
    for x, y in zip(batch.x, batch.y, strict=True):
        logits = torch.stack([network.embed(x[None])[0].detach() @ center for center in centers])
        total = total - beta * logits.log_softmax(0)[y]
    return total


class TestCAFE:
    @pytest.mark.parametrize(
        ("network", "weights"),
        [
            ("convnet:width=8,depth=1", {"pool1": 1, "flat": 1, "relu1": 1}),
            ("convnet:width=8,depth=2", {"pool2": 1, "flat": 1, "relu2": 1, "relu1": 0.1}),
            ("convnet:width=8,depth=3", {"pool3": 1, "flat": 1, "relu3": 1, "relu2": 0.1, "relu1": 0.1}),
        ],
    )
    def test_one_step_is_the_literal_loop(self, digits: RealSet, network: str, weights: dict[str, float]) -> None:
        """The last pooled map and the features are the same numbers: together they weigh 2."""
        task = task_of(digits, network=network)
        plan = CAFE(real_batch=16, discrimination=0.03).build(task)
        loss, grad = one_step(task, plan, noise(task))
        leaf = noise(task).requires_grad_()
        literal = naive_cafe(task, leaf, weights, 0.03)
        torch.testing.assert_close(loss.sum(), literal.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad, torch.autograd.grad(literal, leaf)[0], rtol=1e-3, atol=1e-4)

    def test_each_term_moves_the_images(self, digits: RealSet) -> None:
        task = task_of(digits)
        features, both = (
            one_step(task, CAFE(real_batch=16, discrimination=beta).build(task), noise(task))[1] for beta in (0.0, 0.03)
        )
        assert not torch.allclose(features, both, rtol=1e-2, atol=1e-3)

    def test_features_alone_are_dm(self, digits: RealSet) -> None:
        task = task_of(digits)
        plan = DM(real_batch=16, augment=ALL).build(task)
        a, b = (
            one_step(task, dataclasses.replace(plan, objective=objective), noise(task))
            for objective in (plan.objective, LayerMeans({}, features=1.0))
        )
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_discrimination_is_a_classifier_of_class_means(self) -> None:
        """Unequal weights of one class do not change what the class counts; weight 0 removes an image."""
        generator = Rng(0).generator("x")
        features, means = torch.randn(6, 4, generator=generator), torch.randn(3, 4, generator=generator)
        y = torch.tensor([0, 0, 1, 1, 2, 2])
        found = discriminative(features, means, y, None, [0, 1, 2])
        each = torch.stack([-(f @ means.T).log_softmax(0)[c] for f, c in zip(features, y, strict=True)])
        torch.testing.assert_close(found, torch.stack([each[y == c].sum() for c in range(3)]))
        torch.testing.assert_close(discriminative(features, means, y, torch.full((6,), 7.0), [0, 1, 2]), found)
        weighted = discriminative(features, means, y, torch.tensor([1.0, 0, 1, 1, 1, 3]), [0, 1, 2])
        torch.testing.assert_close(weighted, torch.stack([2 * each[0], each[2:4].sum(), (each[4] + 3 * each[5]) / 2]))
        two = discriminative(features[2:], means, y[2:], None, [1, 2])
        torch.testing.assert_close(two[1], -(features[2:4] @ means[1:].T).log_softmax(1)[:, 0].sum())

    def test_the_rate_is_halved_three_times(self) -> None:
        found = [halved(step / 2000) for step in (0, 1199, 1200, 1599, 1600, 1799, 1800, 1999)]
        assert found == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]

    def test_weights_of_the_network_get_no_gradient(self, digits: RealSet) -> None:
        class Look(Callback):
            def after_step(self, context: Context) -> None:
                assert not any(p.requires_grad for p in context.surrogate.parameters())  # type: ignore[attr-defined]

        class Untrained(AdaptivelyTrained):
            def advance(self, context: Context) -> None:
                """Nothing."""

        task = task_of(digits)
        plan = CAFE(steps=2, real_batch=8, query=4).build(task)
        surrogates = Untrained(task.network, cap=1, query=4)
        synthesize(dataclasses.replace(plan, surrogates=surrogates), task, callbacks=[Look()])
        assert surrogates.network is not None
        assert all(p.grad is None for p in surrogates.network.parameters())


#: Both methods as plans on a task.
PLANS = {"datadam": partial(DataDAM, real_batch=16), "cafe": partial(CAFE, real_batch=16, discrimination=0.0)}


@pytest.mark.parametrize("name", PLANS)
class TestBoth:
    def test_loss_vanishes_on_the_same_images(self, digits: RealSet, name: str) -> None:
        task = task_of(digits, ipc=5)

        class Same:
            def draw(self, real: RealSet, context: Context) -> Batch:
                return real.batch(torch.cat([real.class_index(c)[:5] for c in range(10)]))

        codes = Same().draw(digits, None).x  # type: ignore[arg-type]
        plan = dataclasses.replace(PLANS[name](augment=ALL).build(task), sampler=Same())
        loss, grad = one_step(task, plan, codes)
        assert loss.max() < 1e-6
        assert grad.abs().max() < 1e-3
        assert one_step(task, plan, codes.roll(5, 0))[0].min() > 1e-3

    def test_chunks_change_nothing(self, digits: RealSet, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        task = task_of(digits, ipc=3)
        changes = {"discrimination": 0.03} if name == "cafe" else {}
        plan = PLANS[name](augment=ALL, **changes).build(task)
        whole = one_step(task, plan, noise(task))
        monkeypatch.setattr(Context, "chunk", 4)
        torch.testing.assert_close(one_step(task, plan, noise(task)), whole, rtol=1e-3, atol=1e-4)

    def test_weights_of_images(self, digits: RealSet, name: str) -> None:
        """Equal weights change no bit; an image of weight 0 is as if it were not there."""
        task, dropped = task_of(digits), digits.class_index(9)[0]
        everything = dataclasses.replace(PLANS[name]().build(task), sampler=ClassBatches(10**6))
        codes, keep = noise(task), torch.ones(len(digits))
        plain = one_step(task, everything, codes)
        equal = one_step(
            dataclasses.replace(task, real=digits.with_weights(torch.ones(len(digits)))), everything, codes
        )
        assert torch.equal(plain[0], equal[0])
        keep[dropped] = 0
        zeroed, removed = (
            one_step(dataclasses.replace(task, real=real), everything, codes)[0]
            for real in (digits.with_weights(keep), digits.subset(keep.nonzero().squeeze(1)))
        )
        torch.testing.assert_close(zeroed, removed, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(zeroed[9], plain[0][9], rtol=1e-5)


class TestStopRules:
    @pytest.mark.parametrize(
        ("accuracies", "rest"),
        [
            ([], False),
            ([0.5] * 9, False),
            ([0.5] * 10, True),
            ([0.1, *[0.5] * 10], True),
            ([*[0.5] * 9, 0.545], False),
            ([0.5 + 0.004 * k for k in range(10)], True),
        ],
    )
    def test_at_rest(self, accuracies: list[float], rest: bool) -> None:
        assert at_rest(accuracies, 10, 0.04) == rest

    @pytest.mark.parametrize(
        ("accuracies", "moved"),
        [([], False), ([0.5], False), ([0.5, 0.531], True), ([0.5, 0.529], False), ([0.1, *[0.5] * 10], False)],
    )
    def test_on_the_move(self, accuracies: list[float], moved: bool) -> None:
        assert on_the_move(accuracies, 10, 0.03) == moved

    @pytest.mark.parametrize(
        ("script", "passes", "networks"),
        [
            (lambda query: 0.5, 20, 2),  # flat: the cap ends each training, and the tenth match the network
            (lambda query: query / 100, 4, 1),  # a point a query: four passes bring more than three points
        ],
    )
    def test_scripted_accuracies(self, digits: RealSet, script: Any, passes: int, networks: int) -> None:
        """Twelve matches: how many networks there were, and how many passes between the first and second match."""
        told: list[tuple[int, int]] = []

        class Scripted(AdaptivelyTrained):
            queries = 0

            def _accuracy(self, network: nn.Module, context: Context, epoch: int) -> float:
                self.queries += 1
                return float(script(self.queries))

            def train(self, network: Any, context: Context, *key: Any) -> None:
                told.append((context.step, int(key[0])))

        task = task_of(digits, network="convnet:width=4,depth=1")
        plan = CAFE(steps=12, real_batch=8).build(task)
        surrogates = Scripted(task.network, cap=20, query=4)
        seen: list[int] = []

        class Look(Callback):
            def after_step(self, context: Context) -> None:
                seen.append(id(context.surrogate))

        synthesize(dataclasses.replace(plan, surrogates=surrogates), task, callbacks=[Look()])
        assert len(set(seen)) == networks
        assert max(epoch for step, epoch in told if step == 0) == passes
        assert not [step for step, _ in told if step == 9 and networks == 2]
        assert [step for step, _ in told if step == 10]


def test_a_plan_runs_twice(digits: RealSet) -> None:
    """As estimates and budgets have it: the first step begins with a network of its own."""
    task, method = task_of(digits), CAFE(steps=3, real_batch=8, query=2, inner=2)
    plan = method.build(task)
    synthesize(plan, task, stop_after=2)
    again, once = (synthesize(p, task).codes["images"] for p in (plan, method.build(task)))
    assert torch.equal(again, once)


@pytest.mark.parametrize("name", ["cafe", "datadam"])
def test_stopped_and_resumed(name: str, digits: RealSet, tmp_path: Any) -> None:
    class Stop(Exception):
        pass

    class StopAt5(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 5:
                raise Stop

    shared = {"ipc": 1, "network": NETWORK, "steps": 14, "real_batch": 8, "augment": "color_crop"}
    shared |= {"query": 2, "inner": 3} if name == "cafe" else {}
    whole = distill(name, digits, **shared)
    with pytest.raises(Stop):
        distill(name, digits, out=tmp_path / "run", callbacks=[StopAt5()], checkpoint_seconds=0.0, **shared)
    again = distill(name, digits, out=tmp_path / "run", resume=True, **shared)
    assert torch.equal(whole.images, again.images)


def test_augmentation_is_shared_by_both_sides(digits: RealSet) -> None:
    """One draw per class for real images, features of the discriminative term, and synthetic images."""
    task = task_of(digits)
    plan = CAFE(real_batch=16, discrimination=0.03, augment=ALL).build(task)
    loss, grad = one_step(task, plan, noise(task))
    augment = Dsa(ALL)
    record = augment.draw(10, digits.shape, Rng(0).generator("augment", 0, 0))
    batch = drawn(task)

    class Seen:
        """The same batch, augmented already."""

        def draw(self, real: RealSet, context: Context) -> Batch:
            return dataclasses.replace(batch, x=augment.apply(batch.x, record, rows=batch.y))

    plain = dataclasses.replace(plan, sampler=Seen(), augment=None)
    other, _ = one_step(task, plain, augment.apply(noise(task), record, rows=task.labels))
    torch.testing.assert_close(loss, other, rtol=1e-4, atol=1e-5)
    assert grad.abs().max() > 0
