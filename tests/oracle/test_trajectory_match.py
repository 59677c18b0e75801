"""The objective against the published loop, written out, and against the numbers of the papers' code."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill import load_real
from datastill.augment.dsa import Dsa
from datastill.core.context import Context
from datastill.core.errors import Diverged, InputError
from datastill.core.guard import Guard
from datastill.core.loop import synthesize
from datastill.core.plan import Block, Plan, Synthetic, Task
from datastill.core.rng import Rng
from datastill.core.update import Sgd
from datastill.decoders.pixels import Pixels
from datastill.engines.flat import FlatModel
from datastill.engines.hypergradient import draw_plan
from datastill.models import resolve_network
from datastill.objectives.trajectory_match import (
    TrajectoryMatch,
    balance,
    intermediate_steps,
    intermediate_weights,
)
from datastill.sampling.inits import Given

DSA = Dsa("crop_scale_rotate")
N = 10


@dataclass(frozen=True)
class Piece:
    start: Tensor
    targets: Tensor
    epoch: int
    network: nn.Module
    expert: int = 0


class Scene:
    """Ten digits, an expert's segment of three epochs, and the context of one step."""

    def __init__(self, objective: TrajectoryMatch, network: str = "convnet:width=4,depth=2,norm=group", augment=DSA):
        factory = resolve_network(network, channels=1, classes=10, size=(8, 8))
        self.task = Task(load_real("digits"), 1, factory)
        self.network = factory(1)
        theta = FlatModel(self.network).flatten()
        g = torch.Generator().manual_seed(0)
        targets = theta + 0.05 * torch.randn(3, len(theta), generator=g).cumsum(0)
        self.segment = Piece(theta, targets, 7, self.network)
        self.x = torch.randn(10, 1, 8, 8, generator=g)
        self.objective = objective
        self.plan = Plan(
            Given(self.x),
            Pixels(),
            objective,
            augment=augment,
            steps=3,
            update={"images": Sgd(lr=1.0)},
            surrogates=self,
        )

    def context(self, y: Tensor | None = None, segment: Piece | None = None, **codes: Tensor) -> Context:
        block = Block(0, torch.arange(10), torch.arange(10))
        context = Context(self.task, self.plan, block, Rng(5), step=2)
        context.codes = {"images": self.x, **codes}
        context.synthetic = Synthetic(self.x, block.y if y is None else y)
        context.surrogate = segment or self.segment
        return context

    # the surrogates' side of the loop
    def begin(self, context: Context) -> None: ...

    def advance(self, context: Context) -> None: ...

    def draw(self, context: Context) -> Piece:
        return self.segment

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state) -> None: ...


def literal(scene: Scene, alpha: float, y: Tensor | None = None) -> tuple[Tensor, ...]:
    """One iteration of the published loop, on the plan that the objective draws."""
    context, objective, segment = scene.context(), scene.objective, scene.segment
    augment = scene.plan.augment
    plan = draw_plan(10, objective.steps, objective.batch, augment, (1, 8, 8), context.rng.child("student", 0, 2))
    model = FlatModel(segment.network)
    leaves = [scene.x.clone().requires_grad_(), torch.tensor(alpha, requires_grad=True)]
    labels = context.synthetic.y if y is None else y.clone().requires_grad_()
    thetas = [segment.start.clone().requires_grad_()]
    for step in plan.steps:
        images = augment.apply(leaves[0][step.index], step.record)
        target = labels[step.index] if y is None else labels[step.index].softmax(1)
        loss = F.cross_entropy(model(thetas[-1], images), target)
        (grad,) = torch.autograd.grad(loss, thetas[-1], create_graph=True)
        thetas.append(thetas[-1] - leaves[1] * grad)
    end, count = segment.targets[-1], len(segment.start)
    grand = F.mse_loss(thetas[-1], end, reduction="sum") / count
    grand = grand / (F.mse_loss(segment.start, end, reduction="sum") / count)
    found = torch.autograd.grad(grand, leaves if y is None else [*leaves, labels])
    return (grand.detach(), *found)


def close(a: Tensor, b: Tensor, within: float = 1e-4) -> bool:
    return bool((a - b).norm() <= within * b.norm())


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("engine", ["adjoint", "full_unroll"])
def test_it_is_the_published_loop(batch, engine):
    scene = Scene(TrajectoryMatch(N, batch, engine=engine))
    out = scene.objective(scene.context(lr=torch.tensor([0.05])))
    loss, x, alpha = literal(scene, 0.05)
    assert close(out.loss, loss)
    assert close(out.x, x)
    assert out.leaves["lr"].shape == (1,)
    assert close(out.leaves["lr"], alpha)


def test_learned_labels_and_a_learning_rate_as_a_logarithm():
    scene = Scene(TrajectoryMatch(N, labels="logits", lr_kind="log"))
    y = torch.randn(10, 10, generator=torch.Generator().manual_seed(3))
    out = scene.objective(scene.context(y, lr=torch.tensor(math.log(0.05)), labels=y))
    loss, x, alpha, labels = literal(scene, 0.05, y)
    assert close(out.loss, loss)
    assert close(out.x, x)
    assert close(out.leaves["lr"], 0.05 * alpha)
    assert close(out.leaves["labels"], labels)


def test_without_leaves_the_learning_rate_is_the_one_given():
    scene = Scene(TrajectoryMatch(N, lr=0.05))
    out = scene.objective(scene.context())
    assert not out.leaves
    assert close(out.loss, literal(scene, 0.05)[0])


def test_no_steps_are_no_better_than_not_moving():
    scene = Scene(TrajectoryMatch(0))
    out = scene.objective(scene.context(lr=torch.tensor(0.05)))
    assert out.loss == 1
    assert not out.x.any()


def test_biased_engines_differ_and_the_loss_does_not():
    exact, others = None, []
    for engine in ("adjoint", "frozen_path", "truncated"):
        scene = Scene(TrajectoryMatch(N, engine=engine, last=3, lr=0.1))
        out = scene.objective(scene.context())
        exact = exact or out
        others.append(out)
    for other in others[1:]:
        assert torch.equal(other.loss, exact.loss)
        assert not close(other.x, exact.x, 0.01)
    half = Scene(TrajectoryMatch(N, engine="frozen_path", reference_half=True, lr=0.1))
    assert torch.equal(half.objective(half.context()).x * 2, others[1].x)


def test_networks_that_couple_samples_see_whole_batches():
    scene = Scene(TrajectoryMatch(N, lr=0.05), "convnet:width=4,depth=2,norm=batch")
    out = scene.objective(scene.context())
    assert close(out.x, literal(scene, 0.05)[1])


@pytest.mark.parametrize("why", ["stands still", "threshold"])
def test_steps_that_are_to_be_skipped_change_nothing(why):
    scene = Scene(TrajectoryMatch(N, threshold=0.5 if why == "threshold" else None, lr=1e-4))
    segment = scene.segment
    if why == "stands still":
        segment = replace(segment, targets=segment.start.expand(3, -1) * (1 + 1e-8))
    out = scene.objective(scene.context(segment=segment, lr=torch.tensor(1e-4), labels=torch.zeros(10, 10)))
    assert not Guard().accepts(out.loss, {"images": out.x, **out.leaves}, 0)
    assert set(out.leaves) == {"lr", "labels"}
    assert out.x.shape == scene.x.shape
    if why == "threshold":
        below = Scene(TrajectoryMatch(N, threshold=1.1, lr=1e-4))
        assert torch.isfinite(below.objective(below.context()).loss)


def test_in_the_loop():
    scene = Scene(TrajectoryMatch(N, lr=0.05))
    outcome = synthesize(scene.plan, scene.task)
    assert outcome.skipped == 0
    assert torch.isfinite(outcome.losses).all()
    assert not torch.equal(outcome.codes["images"], scene.x)
    still = Scene(TrajectoryMatch(N, lr=0.05))
    still.segment = replace(still.segment, targets=still.segment.start[None])
    outcome = synthesize(still.plan, still.task)
    assert outcome.skipped == 3
    assert torch.equal(outcome.codes["images"], still.x)
    with pytest.raises(Diverged):
        synthesize(replace(still.plan, steps=30), still.task)


def test_the_images_learn_to_lead_along_a_segment():
    scene = Scene(TrajectoryMatch(N, lr=0.1), augment=None)
    segment = scene.segment
    model, y = FlatModel(segment.network), torch.arange(10)
    real = load_real("digits").test.batch(torch.arange(200))
    theta = segment.start
    for _ in range(8):  # an expert that did train
        leaf = theta.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf, real.x), real.y), leaf)
        theta = theta - 0.1 * g
    scene.segment = replace(segment, targets=theta[None])
    losses, momentum = [], torch.zeros_like(scene.x)
    for _ in range(25):
        out = scene.objective(scene.context(y))
        momentum = 0.5 * momentum + out.x
        scene.x = scene.x - 5 * momentum
        losses.append(float(out.loss))
    assert losses[-1] < 0.6 * losses[0]


def test_intermediate_matches():
    assert intermediate_steps(20, 3) == [6, 12, 20]
    assert intermediate_steps(20, 1) == [20]
    assert intermediate_weights(3, "all") == [1, 1, 1]
    assert intermediate_weights(3, "adaptive") == [1 / 3, 2 / 3, 1]
    scene = Scene(TrajectoryMatch(N, intermediate="adaptive", momentum=0.9, lr=0.05))
    terms = scene.objective.terms(scene.segment)
    assert [(term.step, term.weight) for term in terms] == [(3, 1 / 3), (6, 2 / 3), (10, 1.0)]
    exact = Scene(replace(scene.objective, engine="full_unroll"))
    assert close(scene.objective(scene.context()).x, exact.objective(exact.context()).x)
    assert [term.step for term in TrajectoryMatch(N).terms(scene.segment)] == [10]


def test_the_balanced_inner_loss():
    found = [round(balance(t, 20), 3) for t in (0, 9, 10, 19)]
    assert found == [0.557, 0.732, 1.292, 1.760]
    scene = Scene(TrajectoryMatch(N, balance=20, lr=0.05))
    plain = Scene(TrajectoryMatch(N, lr=0.05 * balance(7, 20)))
    assert close(scene.objective(scene.context()).x, plain.objective(plain.context()).x)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="Unknown engine 'adjont'"):
        TrajectoryMatch(N, engine="adjont")
    with pytest.raises(InputError, match="above zero"):
        TrajectoryMatch(N, lr=-1.0)
    with pytest.raises(InputError, match="batch"):
        TrajectoryMatch(N, batch=0)
    scene = Scene(TrajectoryMatch(N))
    short = replace(scene.segment, start=scene.segment.start[:5])
    with pytest.raises(InputError, match="The expert has 5 weights"):
        scene.objective(scene.context(segment=short))
    with pytest.raises(InputError, match="Learned labels"):
        scene.objective(scene.context(labels=torch.zeros(10, 10)))
