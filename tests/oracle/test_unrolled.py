"""DD: the adjoint of a loss after learned steps, against autograd through all of them, closed forms and differences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datastill import load_real
from datastill.core.loop import gradients
from datastill.core.plan import Task
from datastill.core.registry import get_method
from datastill.core.rng import Rng
from datastill.core.running import start
from datastill.data import RealSet
from datastill.engines import hypergradient as hg
from datastill.engines.flat import FlatModel
from datastill.models import resolve_network
from datastill.training.few_steps import positions_of

T, N, CLASSES = 5, 6, 3


def draw(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=Rng(0).generator(name), dtype=torch.float64)


class Case:
    """A small ConvNet in float64, six images in three turns, five steps, a loss on real images."""

    def __init__(self, soft: bool = False) -> None:
        factory = resolve_network("convnet:width=4,depth=1", channels=1, classes=CLASSES, size=(6, 6))
        self.model = FlatModel(factory(0).double())
        self.theta, self.x, self.raw = self.model.flatten(), draw("x", N, 1, 6, 6), draw("raw", T)
        self.y = draw("y", N, CLASSES) if soft else torch.arange(N) % CLASSES
        self.real, self.labels = draw("real", 9, 1, 6, 6), torch.arange(9) % CLASSES
        self.order = positions_of(torch.tensor([0, 0, 1, 1, 2, 2]), T)

    def inner(self, theta: Tensor, x: Tensor, y: Tensor, i: int) -> Tensor:
        target = y[self.order[i]]
        target = target.softmax(1) if target.is_floating_point() else target
        return F.cross_entropy(self.model(theta, x[self.order[i]]), target)

    def loss(self, x: Tensor, y: Tensor, raw: Tensor, last: int = T) -> Tensor:
        """By autograd through the last steps; those before are constants."""
        theta = self.theta.clone().requires_grad_()
        for i in range(T):
            constant = i < T - last
            images, labels, sizes = (t.detach() if constant else t for t in (x, y, F.softplus(raw)))
            (g,) = torch.autograd.grad(self.inner(theta, images, labels, i), theta, create_graph=True)
            theta = theta - sizes[i] * g
            theta = theta.detach().requires_grad_() if constant else theta
        return F.cross_entropy(self.model(theta, self.real), self.labels)

    def terminal(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        leaf = theta.detach().requires_grad_()
        loss = F.cross_entropy(self.model(leaf, self.real), self.labels)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def adjoint(self, last: int | None = None, chunk: int | None = None) -> hg.terminal.TerminalGradients:
        steps = tuple(hg.InnerStep(index, None, 0) for index in self.order)
        loss_fn = hg.cross_entropy_of_logits if self.y.is_floating_point() else None
        student = hg.Student(self.model, self.x, self.y, hg.InnerPlan(N, steps), loss_fn=loss_fn, chunk=chunk)
        return hg.adjoint_of_loss(student, self.theta, F.softplus(self.raw), self.terminal, last=last)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("chunk", [None, 1])
def test_the_adjoint_is_the_unroll(soft: bool, chunk: int | None) -> None:
    case = Case(soft)
    found = case.adjoint(chunk=chunk)
    leaves = [t.clone().requires_grad_() for t in (case.x, case.raw, *([case.y] if soft else []))]
    loss = case.loss(leaves[0], leaves[2] if soft else case.y, leaves[1])
    wanted = torch.autograd.grad(loss, leaves)
    assert float(found.loss) == pytest.approx(float(loss.detach()), abs=1e-12)
    assert (found.x - wanted[0]).abs().max() < 1e-6
    assert (found.sizes * case.raw.sigmoid() - wanted[1]).abs().max() < 1e-6
    assert wanted[1].abs().min() > 1e-4
    if soft:
        assert (found.y - wanted[2]).abs().max() < 1e-6


def test_pixels_and_raw_sizes_move_the_loss_as_the_gradient_says() -> None:
    case, eps = Case(), 1e-6
    found = case.adjoint()

    def difference(x: Tensor, raw: Tensor) -> float:
        ends = [case.loss(case.x + sign * x, case.y, case.raw + sign * raw).detach() for sign in (eps, -eps)]
        return float(ends[0] - ends[1]) / (2 * eps)

    for pixel in ((0, 0, 1, 2), (3, 0, 4, 4), (5, 0, 0, 5)):
        one = torch.zeros_like(case.x)
        one[pixel] = 1
        assert difference(one, torch.zeros(T)) == pytest.approx(float(found.x[pixel]), rel=1e-4, abs=1e-9)
    for t in range(T):
        slope = float(found.sizes[t] * case.raw[t].sigmoid())
        assert difference(torch.zeros_like(case.x), torch.eye(T)[t]) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("last", [1, 3])
def test_a_window_treats_what_is_before_it_as_constant(last: int) -> None:
    case = Case()
    found, whole = case.adjoint(last), case.adjoint(T)
    x, raw = case.x.clone().requires_grad_(), case.raw.clone().requires_grad_()
    wanted = torch.autograd.grad(case.loss(x, case.y, raw, last), [x, raw])
    assert torch.allclose(found.x, wanted[0], atol=1e-10)
    assert torch.allclose(found.sizes * case.raw.sigmoid(), wanted[1], atol=1e-10)
    assert torch.equal(whole.x, case.adjoint().x)
    assert not torch.allclose(found.x, whole.x, atol=1e-6)


def test_one_step_of_a_linear_model_has_a_closed_form() -> None:
    """<X'(XW - Y)/n, V> has the gradient ((XW - Y) V' + X V W')/n in X, with V the real gradient after the step."""
    d, n, m = 4, 5, 7
    x, y, w = draw("x", n, d), draw("y", n, CLASSES), draw("w", d, CLASSES)
    real, wanted, a = draw("real", m, d), draw("wanted", m, CLASSES), 0.3

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().sum(1).mean()

    def terminal(theta: Tensor) -> tuple[Tensor, Tensor]:
        residual = real @ theta.view(d, CLASSES) - wanted
        return 0.5 * residual.square().sum(1).mean(), (real.T @ residual / m).flatten()

    step = hg.InnerStep(torch.arange(n), None, 0)
    student = hg.Student(
        lambda t, images: images.flatten(1) @ t.view(d, CLASSES),
        x.view(n, 1, 2, 2),
        y,
        hg.InnerPlan(n, (step,)),
        loss_fn=squared,
    )
    sizes = torch.tensor([a], dtype=torch.float64)
    found = hg.adjoint_of_loss(student, w.flatten(), sizes, terminal)
    residual = x @ w - y
    after = w - a * x.T @ residual / n
    v = real.T @ (real @ after - wanted) / m
    assert torch.allclose(found.x.flatten(1), -a * (residual @ v.T + x @ v @ w.T) / n, atol=1e-12)
    assert float(found.sizes) == pytest.approx(-float((x.T @ residual / n * v).sum()))


def test_one_step_is_gradient_matching_by_inner_products_after_the_step() -> None:
    """Identity 9 of the family."""
    case = Case()
    case.order = case.order[:1]
    case.raw = case.raw[:1]
    found, a = case.adjoint(), F.softplus(case.raw)[0]
    x, theta = case.x.clone().requires_grad_(), case.theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(case.inner(theta, x, case.y, 0), theta, create_graph=True)
    v = case.terminal(case.theta - a * g.detach())[1]
    (wanted,) = torch.autograd.grad(-a * (g @ v), x)
    assert torch.allclose(found.x, wanted, atol=1e-12)


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.mark.parametrize("first_weights", ["random", "fixed"])
def test_the_method_has_these_gradients(digits: RealSet, first_weights: str) -> None:
    """Through the loop, with weighted real images in chunks, softplus, and several images of a class in a turn."""
    weighted = digits.with_weights(torch.linspace(0.1, 2, len(digits)))
    network = resolve_network("convnet:width=4,depth=1", channels=1, classes=10, size=(8, 8))
    task = Task(weighted, 4, network)
    method = get_method("dd").cls(steps=3, per_turn=2, rounds=2, real_batch=7, first_weights=first_weights)
    plan = method.build(task)
    context = start(plan, task, next(iter(plan.partition.blocks(task.labels))), [], {}).context
    context.surrogate = plan.surrogates.draw(context)
    loss, grads = gradients(context, None)
    batch = plan.sampler.draw(weighted, context)
    model = FlatModel(context.surrogate)
    theta = context.codes.get("start_weights", model.flatten()).double().requires_grad_()
    assert torch.equal(theta.detach().float(), model.flatten()) == (first_weights == "random")
    x, raw = (context.codes[name].double().requires_grad_() for name in ("images", "raw_steps"))
    assert raw.shape == (4,)
    network = context.surrogate.double()
    double = FlatModel(network)
    turns = torch.tensor([0, 0, 1, 1]).repeat(10)
    for i in range(4):
        here = turns == i % 2
        inner = F.cross_entropy(double(theta, x[here]), task.labels[here])
        (g,) = torch.autograd.grad(inner, theta, create_graph=True)
        theta = theta - F.softplus(raw[i]) * g
    each = F.cross_entropy(double(theta, batch.x.double()), batch.y, reduction="none")
    wanted = (each * batch.weight).sum() / batch.weight.sum()
    by_hand = torch.autograd.grad(wanted, [x, raw])
    assert float(loss) == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name, gradient in zip(("images", "raw_steps"), by_hand, strict=True):
        assert (grads[name] - gradient).norm() < 1e-3 * gradient.norm()
    assert set(grads) == {"images", "raw_steps"}
    cut = dataclasses.replace(plan, objective=dataclasses.replace(plan.objective, clip=1e-3))
    context = start(cut, task, next(iter(plan.partition.blocks(task.labels))), [], {}).context
    context.surrogate = cut.surrogates.draw(context)
    small = gradients(context, None)[1]
    assert torch.stack([g.norm() for g in small.values()]).norm() == pytest.approx(1e-3, rel=1e-3)
