"""DM against the literal per-class loop of the published algorithm, and its identities."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from datastill import distill, load_real
from datastill.augment.dsa import Dsa
from datastill.core.context import Context, class_means
from datastill.core.errors import InputError
from datastill.core.loop import gradients
from datastill.core.plan import Block, Plan, Task
from datastill.core.rng import Rng
from datastill.core.update import Sgd
from datastill.data import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.preparation import check_plan
from datastill.methods.dm import DM
from datastill.models import resolve_network
from datastill.objectives.feature_means import FeatureMeans
from datastill.sampling.inits import Given, RandomReal
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.fresh import Fresh


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def make_task(real: RealSet, ipc: int, network: str = "convnet:width=8,depth=2", seed: int = 0) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


def literal_dm(real: RealSet, task: Task, steps: int, real_batch: int, lr: float, momentum: float) -> Tensor:
    """The published loop, one class at a time, with autograd through everything."""
    images = RandomReal().images(task, Block(0, torch.arange(len(task.labels)), task.labels), None)[0]
    images = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=lr, momentum=momentum)
    y, rng = task.labels, Rng(task.seed)
    for step in range(steps):
        network = task.network(rng.derive("surrogate", 0, step)).train()
        batch = real.of_classes(range(real.classes), real_batch, rng.generator("real", 0, step))
        loss = torch.tensor(0.0)
        for c in range(real.classes):
            target = network.embed(batch.x[batch.y == c]).detach().mean(0)
            loss = loss + (target - network.embed(images[y == c]).mean(0)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images.detach()


@pytest.mark.parametrize(
    "network",
    [
        "convnet:width=8,depth=2",
        "convnet:width=8,depth=2,norm=none",
        "convnet:width=8,depth=2,norm=group",
        "mlp",
    ],
)
def test_fast_path_is_the_literal_loop(digits: RealSet, network: str) -> None:
    task = make_task(digits, ipc=3, network=network)
    literal = literal_dm(digits, task, steps=4, real_batch=20, lr=1.0, momentum=0.5)
    fast = distill("dm", digits, ipc=3, network=network, steps=4, real_batch=20, image_lr=1.0, image_momentum=0.5)
    moved = (fast.images - digits.batch(fast.extra["selected"]).x).abs().max()
    assert moved > 1e-3, "the images must have moved"
    assert (fast.images - literal).abs().max() < 1e-3 * moved


def one_step(task: Task, plan: Plan, codes: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
    """Loss per class and gradient of the images."""
    context = Context(task, plan, Block(0, torch.arange(len(codes)), task.labels), Rng(task.seed), step=step, steps=9)
    context.codes = {"images": codes}
    context.surrogate = plan.surrogates.draw(context) if plan.surrogates else None
    loss, grads = gradients(context, None)
    return loss, grads["images"]


def plan_of(task: Task, **changes: object) -> Plan:
    return dataclasses.replace(DM(steps=9, real_batch=16).build(task), **changes)


def test_loss_vanishes_on_the_same_images(digits: RealSet) -> None:
    """S_c = B_c with one augmentation for both: nothing to match, nothing to move."""
    task = make_task(digits, ipc=5)

    class Same:
        def draw(self, real: RealSet, context: Context):
            return real.batch(torch.cat([real.class_index(c)[:5] for c in range(10)]))

    codes = Same().draw(digits, None).x
    for augment in (None, Dsa("color_crop_cutout_flip_scale_rotate")):
        plan = plan_of(task, sampler=Same(), augment=augment)
        loss, grad = one_step(task, plan, codes)
        assert loss.max() < 1e-8
        assert grad.abs().max() < 1e-4
        other_loss, _ = one_step(task, plan, codes.roll(5, 0))
        assert other_loss.min() > 1e-3, "images of the wrong class must cost"


def test_invariant_to_order_within_a_class(digits: RealSet) -> None:
    task = make_task(digits, ipc=4)
    plan = plan_of(task)
    codes = torch.randn(40, 1, 8, 8, generator=Rng(0).generator("x"))
    order = torch.cat([torch.randperm(4, generator=Rng(c).generator("p")) + 4 * c for c in range(10)])
    loss, grad = one_step(task, plan, codes)
    permuted, moved = one_step(task, plan, codes[order])
    assert torch.allclose(loss, permuted, rtol=1e-4)
    assert torch.allclose(grad[order], moved, atol=1e-5)


class Flat(torch.nn.Module):
    """f = flatten, then a linear layer that the objective never reaches."""

    def __init__(self, channels: int, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.flatten = torch.nn.Flatten()
        self.head = torch.nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(x))


def test_identity_features_have_the_closed_form(digits: RealSet) -> None:
    """With f = flatten the gradient is 2/ipc (mean S - mean B), and one step of lr ipc/2 makes the means equal."""
    ipc = 3
    factory = resolve_network(Flat, channels=1, classes=10, size=(8, 8))
    task = Task(digits, ipc, factory, 0)
    plan = plan_of(task, sampler=ClassBatches(10**6))
    codes = torch.randn(10 * ipc, 1, 8, 8, generator=Rng(0).generator("x"))
    _, grad = one_step(task, plan, codes)
    all_real = digits.batch(torch.arange(len(digits)))
    real_means = class_means(all_real.x.flatten(1), all_real.y, 10)
    means = class_means(codes.flatten(1), task.labels, 10)
    expected = (2 / ipc) * (means - real_means)[task.labels].view_as(grad)
    assert torch.allclose(grad, expected, atol=1e-5)
    after = codes - ipc / 2 * grad
    assert torch.allclose(class_means(after.flatten(1), task.labels, 10), real_means, atol=1e-5)


def test_unequal_classes_and_weights(digits: RealSet) -> None:
    """Classes of different size use their own counts; equal weights change no bit; weight 0 removes a sample."""
    rows = torch.cat([digits.class_index(c)[: 3 + c] for c in range(10)])
    uneven = digits.subset(rows)
    task = make_task(uneven, ipc=2)
    codes = torch.randn(20, 1, 8, 8, generator=Rng(0).generator("x"))
    plain_loss, plain_grad = one_step(task, plan_of(task), codes)
    weighted = dataclasses.replace(task, real=uneven.with_weights(torch.ones(len(uneven))))
    loss, grad = one_step(weighted, plan_of(weighted), codes)
    assert torch.equal(loss, plain_loss)
    assert torch.equal(grad, plain_grad)
    keep = torch.ones(len(uneven))
    dropped = uneven.class_index(9)[0]
    keep[dropped] = 0
    all_of_them = plan_of(task, sampler=ClassBatches(10**6))
    zeroed = dataclasses.replace(task, real=uneven.with_weights(keep))
    removed = dataclasses.replace(task, real=uneven.subset(keep.nonzero().squeeze(1)))
    a, b = one_step(zeroed, all_of_them, codes)[0], one_step(removed, all_of_them, codes)[0]
    assert torch.allclose(a, b, rtol=1e-4)
    assert not torch.allclose(a, one_step(task, all_of_them, codes)[0], rtol=1e-4)


@pytest.mark.parametrize("network", ["convnet:width=8,depth=2,norm=batch", "torchvision/resnet18"])
def test_batch_norm_has_the_statistics_of_real_images_on_both_sides(digits: RealSet, network: str) -> None:
    """The literal loop, one class at a time, on networks whose batch norm is written out."""
    task = make_task(digits, ipc=2, network=network)
    codes = torch.randn(20, 1, 8, 8, generator=Rng(0).generator("x"))
    loss, grad = one_step(task, plan_of(task, surrogates=Fresh(task.network, frozen=True)), codes)
    rng = Rng(0)
    network_ = task.network(rng.derive("surrogate", 0, 0)).requires_grad_(False).train()
    with_statistics_of(network_, digits.of_classes(range(10), 16, rng.generator("batch-norm", 0, 0)).x)
    batch = digits.of_classes(range(10), 16, rng.generator("real", 0, 0))
    leaf, losses = codes.clone().requires_grad_(), []
    for c in range(10):
        real = network_.embed(batch.x[batch.y == c]).mean(0).detach()
        losses.append((network_.embed(leaf[task.labels == c]).mean(0) - real).square().sum())
    assert torch.allclose(loss, torch.stack(losses), rtol=1e-3)
    expected = torch.autograd.grad(torch.stack(losses).sum(), leaf)[0]
    assert torch.allclose(grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def with_statistics_of(network: torch.nn.Module, x: Tensor) -> None:
    """Replace batch norm by an affine map with the mean and the unbiased variance that `x` has there."""
    layers = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    seen: dict[int, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, given: seen.__setitem__(id(m), given[0])) for m in layers]
    with torch.no_grad():
        network(x)
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        values = seen[id(layer)].transpose(0, 1).flatten(1)
        mean, variance = values.mean(1), values.var(1, unbiased=True)
        scale = layer.weight.detach() / (variance + layer.eps).sqrt()
        shift = layer.bias.detach() - mean * scale

        def affine(z: Tensor, scale: Tensor = scale, shift: Tensor = shift) -> Tensor:
            view = (1, -1, *[1] * (z.ndim - 2))
            return z * scale.view(view) + shift.view(view)

        layer.forward = affine  # type: ignore[method-assign]


def test_frozen_statistics_change_nothing_without_batch_norm(digits: RealSet) -> None:
    task = make_task(digits, ipc=2)
    codes = torch.randn(20, 1, 8, 8, generator=Rng(0).generator("x"))
    frozen, plain = (one_step(task, plan_of(task, surrogates=Fresh(task.network, frozen=f)), codes) for f in (1, 0))
    assert all(torch.equal(a, b) for a, b in zip(frozen, plain, strict=True))


def test_a_real_side_that_is_replaced_has_no_statistics_beside_it(digits: RealSet) -> None:
    """A mechanism in the place of the reduction must see all that is taken of real images."""
    plan = dataclasses.replace(DM(steps=1).build(make_task(digits, 1)), reduce=lambda v, y, w, context: v)
    assert check_plan(plan, "dm") is plan
    with_norm = DM(steps=1).build(make_task(digits, 1, "convnet:width=8,depth=2,norm=batch"))
    with pytest.raises(InputError, match="on networks without batch norm"):
        check_plan(dataclasses.replace(with_norm, reduce=plan.reduce), "dm")


def test_chunks_change_nothing(digits: RealSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time, or all at once: the same loss and gradient."""
    task = make_task(digits, ipc=4)
    codes = torch.randn(40, 1, 8, 8, generator=Rng(0).generator("x"))
    augment = Dsa("color_crop_cutout_flip_scale_rotate")
    plan = plan_of(task, augment=augment)
    whole = one_step(task, plan, codes)
    monkeypatch.setattr(Context, "chunk", 3)
    pieces = one_step(task, plan, codes)
    assert torch.allclose(whole[0], pieces[0], rtol=1e-4)
    assert torch.allclose(whole[1], pieces[1], atol=1e-5)


def test_loss_falls_with_a_fixed_network(digits: RealSet) -> None:
    """A direction test without a threshold on accuracy: the loss on one network falls by a fifth."""
    task = make_task(digits, ipc=1)

    class Fixed:
        def __init__(self) -> None:
            self.network = task.network(1).requires_grad_(False)

        def begin(self, context: Context) -> None: ...

        def draw(self, context: Context):
            return self.network

        def advance(self, context: Context) -> None: ...

        def state(self) -> dict[str, Tensor]:
            return {}

        def load(self, state: dict[str, Tensor]) -> None: ...

    from datastill.core.loop import synthesize

    plan = Plan(
        init=Given(torch.randn(10, 1, 8, 8, generator=Rng(0).generator("x"))),
        decoder=Pixels(),
        objective=FeatureMeans(),
        surrogates=Fixed(),
        sampler=ClassBatches(64),
        update={"images": Sgd(lr=1.0, momentum=0.5)},
        steps=60,
    )
    losses = synthesize(plan, task).losses[0]
    assert losses[-20:].mean() < 0.8 * losses[:20].mean()
