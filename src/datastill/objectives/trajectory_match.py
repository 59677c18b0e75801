"""Matching training trajectories (MTT: Cazenavette et al., CVPR 2022, arXiv:2203.11932), with options of AST and DATM.

L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2

N student steps on the synthetic set lead from an expert's weights theta*_t to theta_N; the expert trained on real data
from theta*_t to theta*_{t+M}. The gradient goes to the images, to the student's learning rate and to learned labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Grads
from datastill.engines import hypergradient as hg
from datastill.engines.flat import FlatModel
from datastill.engines.hypergradient.lr import Kind
from datastill.models import couples_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from datastill.models.base import Network

Engine = Literal["adjoint", "full_unroll", "frozen_path", "truncated"]
Intermediate = Literal["none", "all", "adaptive"]

#: Leaves beside the images that the match has gradients of.
_LEAVES = ("lr", "lr_text", "labels")
#: An expert that moved less than this, relative to the squared norm of where it went, gives no direction.
_STANDSTILL = 1e-12


class Segment(Protocol):
    """A piece of an expert's training, as surrogates hand it out."""

    @property
    def start(self) -> Tensor:
        """theta*_t, (P,), perturbed or not."""

    @property
    def targets(self) -> Tensor:
        """theta*_{t+1} .. theta*_{t+M}, (M, P)."""

    @property
    def epoch(self) -> int:
        """t."""

    @property
    def network(self) -> Network:
        """The architecture, in the mode the student trains in, on the device; its parameters in the order of theta."""


def intermediate_steps(steps: int, epochs: int) -> list[int]:
    """Student steps at which epochs t+1 .. t+M are matched: j floor(N/M), and N for the last (AST)."""
    return [j * (steps // epochs) for j in range(1, epochs)] + [steps]


def intermediate_weights(epochs: int, intermediate: Intermediate) -> list[float]:
    """beta_j of epochs t+1 .. t+M: 1 for "all", j/M for "adaptive", the last alone for "none"."""
    if intermediate == "none":
        return [0.0] * (epochs - 1) + [1.0]
    return [1.0 if intermediate == "all" else j / epochs for j in range(1, epochs)] + [1.0]


def balance(epoch: int, epochs: int) -> float:
    """nu of AST: log_5(t - h + 8) from the middle h = floor(T/2) of the start epochs on, 1 / log_5(h - t + 8) before.

    Early segments, where experts move far, are damped; late ones amplified.
    """
    h = epochs // 2
    return math.log(epoch - h + 8, 5) if epoch >= h else 1 / math.log(h - epoch + 8, 5)


def stands_still(start: Tensor, targets: Sequence[Tensor]) -> bool:
    """Whether a target is as good as equal to the start, so that no distance can be relative to their own."""
    return any(float((start - t).square().sum()) <= _STANDSTILL * float(t.square().sum()) for t in targets)


@dataclass(frozen=True)
class TrajectoryMatch:
    """N student steps from an expert's weights towards where the expert went.

    The learning rate is the leaf `lr` if there is one; learned labels are the leaf `labels`. A segment on which the
    expert stands still, or a loss above `threshold`, makes the loss non-finite, so that the loop skips the step.

    Raises:
        InputError: an option out of range; when called, a segment that does not belong to its network.
    """

    steps: int  #: N
    batch: int | None = None  #: synthetic images per student step; None is all of them
    engine: Engine = "adjoint"  #: how the gradient is taken; "frozen_path" and "truncated" are biased
    momentum: float = 0.0  #: of the student
    weight_decay: float = 0.0  #: of the student
    lr: float = 0.01  #: the student's learning rate where it is not a leaf
    lr_kind: Kind = "raw"  #: what the leaf `lr` holds
    labels: Literal["probabilities", "logits"] = "probabilities"  #: what labels (n, C) are
    intermediate: Intermediate = "none"  #: whether epochs between t and t+M are matched too, and how they weigh
    balance: int = 0  #: AST's balanced inner loss over so many start epochs; 0 is off
    threshold: float | None = None  #: skip the step where the loss is above (DATM)
    last: int = 8  #: student steps that "truncated" goes through
    reference_half: bool = False  #: half the pixel gradient with "frozen_path", as TESLA's released script has it

    def __post_init__(self) -> None:
        known = {"engine": Engine, "intermediate": Intermediate, "labels": Literal["probabilities", "logits"]}
        for name, kind in known.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"Unknown {name} {getattr(self, name)!r}. {nearest(getattr(self, name), get_args(kind))}"
                )
        if self.steps < 0 or (self.batch is not None and self.batch < 1) or self.balance < 0 or self.last < 1:
            raise InputError("A trajectory match needs steps and balance >= 0, and batch and last >= 1.")
        hg.SyntheticLr(self.lr_kind, self.lr)

    def __call__(self, context: Context) -> Grads:
        """The loss, 0-dim, its gradient for every decoded image, and those of the leaves `lr` and `labels`."""
        segment = cast("Segment", context.surrogate)
        assert context.synthetic is not None
        x, y = context.synthetic.x.detach(), context.synthetic.y.detach().to(context.device)
        model = FlatModel(segment.network)
        start, terms = segment.start.detach(), self.terms_of(segment, model)
        if start.shape != (model.size,):
            raise InputError(f"The expert has {start.numel()} weights and its network {model.size}.")
        if stands_still(start, [term.target for term in terms]):
            return _skipped(context, x)
        channels, height, width = x.shape[1:]
        rng = context.rng.child("student", context.block.key, context.step)
        plan = hg.draw_plan(len(x), self.steps, self.batch, context.plan.augment, (channels, height, width), rng)
        rate = hg.SyntheticLr(self.lr_kind, self.lr)
        found = self._engine()(
            model,
            start,
            x,
            y,
            self.alpha(rate, context).detach().to(start),
            plan,
            terms,
            **self.student_options(segment, model, y, context),
        )
        if self.threshold is not None and float(found.loss) > self.threshold:
            return _skipped(context, x)
        return Grads(found.loss, found.x, {**self.rate_slopes(found, rate, context), **_label_leaves(found, context)})

    def student_options(self, segment: Segment, model: FlatModel, y: Tensor, context: Context) -> dict[str, Any]:
        """How the student learns, see `hg.Student`."""
        return {
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "scale": balance(segment.epoch, self.balance) if self.balance else 1.0,
            "loss_fn": hg.cross_entropy_of_logits if self.labels == "logits" and y.is_floating_point() else None,
            "augment": context.plan.augment,
            "chunk": None if _coupled(segment.network, context) else context.chunk,
        }

    def alpha(self, rate: hg.SyntheticLr, context: Context) -> Tensor:
        """The student's learning rate."""
        return rate.alpha(context.codes.get("lr"))

    def rate_slopes(self, found: hg.HyperGradients, rate: hg.SyntheticLr, context: Context) -> dict[str, Tensor]:
        """The gradient of the leaf of the learning rate, if there is one, shaped like it."""
        if "lr" not in context.codes:
            return {}
        leaf = context.codes["lr"].detach()
        return {"lr": found.alpha.to(leaf).reshape(leaf.shape) * rate.slope(leaf)}

    def note(self, losses: Tensor) -> str:
        """A warning where the losses (steps,) of a run did not fall; empty where they did, or are too few to tell."""
        finite = losses[torch.isfinite(losses)]
        part = max(10, len(finite) // 10)
        if len(finite) < 2 * part:
            return ""
        first, last = float(finite[:part].mean()), float(finite[-part:].mean())
        if last < first:
            return ""
        return f"the distance to the experts did not fall ({first:.3g} at first, {last:.3g} in the end): lower image_lr"

    def terms_of(self, segment: Segment, model: FlatModel) -> list[hg.MatchTerm]:
        """What is matched, in the weights of a network."""
        return self.terms(segment)

    def terms(self, segment: Segment) -> list[hg.MatchTerm]:
        """What is matched, and after how many student steps."""
        targets, epochs = segment.targets.detach(), len(segment.targets)
        places = zip(
            intermediate_steps(self.steps, epochs),
            intermediate_weights(epochs, self.intermediate),
            targets,
            strict=True,
        )
        return [hg.MatchTerm(step, target, weight) for step, weight, target in places if weight]

    def _engine(self) -> Callable[..., hg.HyperGradients]:
        if self.engine == "truncated":
            return partial(hg.truncated, last=self.last)
        if self.engine == "frozen_path":
            return partial(hg.frozen_path, reference_half=self.reference_half)
        return hg.full_unroll if self.engine == "full_unroll" else hg.adjoint


def _coupled(network: Network, context: Context) -> bool:
    family = context.plan.network or context.task.network
    return couples_samples(network) or family.couples_samples


def _label_leaves(found: hg.HyperGradients, context: Context) -> dict[str, Tensor]:
    """The gradient of learned labels, where there are any."""
    if "labels" not in context.codes:
        return {}
    shape = context.codes["labels"].shape
    if found.y is None or found.y.shape != shape:
        raise InputError(
            f"Learned labels of shape {tuple(shape)} need a decoder that gives one image for each, with that label."
        )
    return {"labels": found.y}


def _skipped(context: Context, x: Tensor) -> Grads:
    """What the loop's guard does not apply."""
    leaves = {name: torch.zeros_like(leaf) for name, leaf in context.codes.items() if name in _LEAVES}
    return Grads(x.new_tensor(float("inf")), torch.zeros_like(x), leaves)
