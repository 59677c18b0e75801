"""Matching Training Trajectories (MTT; Cazenavette et al., CVPR 2022, arXiv:2203.11932).

L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2
with theta* the weights of an expert, a network trained on the real set, after epochs t and t + M, and theta_N where a
student arrives that starts at theta*_t and takes N steps on the synthetic set at the learned rate alpha.

- Needs: experts, trained once for a real set and a network family, or a folder of them (`experts`).
- Cost: 11 * student_steps * (images of a student step) network passes a step, in the memory of one student step;
  before that 3 * expert_count * (max_start - 1 + span) passes over the real set for the experts.
- Departs: the exact gradient comes from an adjoint recursion instead of N kept graphs; the last step is the result and
  no test image is read; snapshots are copies on a CPU too; all draws follow from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datastill.core.errors import InputError
from datastill.core.ranges import (
    Amount,
    AnyRate,
    Count,
    Few,
    Momentum,
    Rate,
    RateOrAuto,
    Seed,
    Share,
    Tiles,
)
from datastill.core.registry import method
from datastill.surrogates.expert_cost import PaysForExperts, overhead_macs

if TYPE_CHECKING:
    from datastill.core.plan import Decoder, Init, Plan, Task, UpdateRule
    from datastill.surrogates.experts import ExpertsUnit

#: Where no rate is given: the RMS of the first steps, of pixels in units of the Space and of alpha relative to itself.
_PIXEL_STEP, _ALPHA_STEP = 0.02, 0.02


@method("mtt", paper="arXiv:2203.11932", family="trajectory")
@dataclass(frozen=True, kw_only=True)
class MTT(PaysForExperts):
    """Lead a student in a few steps to where an expert went in whole epochs."""

    compiles: ClassVar[bool] = False
    voids: ClassVar[dict[str, tuple[str, ...]]] = {
        "experts": (
            "expert_count", "expert_epochs", "expert_policy", "expert_lr", "expert_batch", "expert_part", "expert_seed",
        )
    }  # fmt: skip

    steps: Count = 5_000  #: image updates
    student_steps: Few = 20  #: N, steps of the student on the synthetic set
    span: Few = 2  #: M, epochs of the expert that the student is to make up for
    max_start: Few = 20  #: bound (exclusive) on the epoch t at which a student starts; late epochs move little
    batch_syn: Amount = 0  #: synthetic images per student step; 0 is all of them
    image_lr: RateOrAuto = 0.0  #: SGD learning rate of the pixels; 0 takes it from the first gradients
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    student_lr: Rate = 0.01  #: alpha, the student's learning rate, at the start
    lr_lr: RateOrAuto = 0.0  #: learning rate of alpha; 0 takes it from the first gradients
    lr_momentum: Momentum = 0.5  #: SGD momentum of alpha
    #: what moves: the logarithm of alpha, alpha itself ("raw", as published), or nothing ("fixed")
    lr_kind: Literal["log", "raw", "softplus", "fixed"] = "log"
    init: str = "real"  #: start from distinct "real" images or from "noise"
    canvas: Tiles = 1  #: side of a stored image in images; above 1 every step sees random crops of it (textures)
    canvas_samples: Few = 1  #: crops of each canvas in a step
    augment: str = "auto"  #: DSA strategy of students and experts, "none", or "auto": all, no flip for digits
    #: how gradients pass the student: "adjoint", "full_unroll" (both exact), "frozen_path", "truncated" to 8 steps
    engine: Literal["adjoint", "full_unroll", "frozen_path", "truncated"] = "adjoint"
    experts: str = ""  #: folder of expert trajectories (`datastill experts train`) to take; none trains them
    expert_count: Few = 100  #: networks to train on the real set
    expert_epochs: Few = 50  #: their epochs at most; they stop after max_start - 1 + span, where the last segment ends
    expert_policy: str = "sgd"  #: how they are trained: "sgd", or "selecmix" against a bias; numbers as selecmix:q=0.5
    expert_lr: AnyRate = 0.01  #: their learning rate, constant, plain SGD
    expert_batch: Count = 256  #: real images per step of an expert
    expert_part: Share = 1.0  #: part of the real images that makes an epoch of an expert
    expert_seed: Seed = 0  #: of the experts; not the run's, so that runs of all seeds share them

    def build(self, task: Task) -> Plan:
        """Segments of experts, students, pixels and alpha."""
        from datastill.augment.strategies import make_augment
        from datastill.core.plan import Plan
        from datastill.engines.hypergradient import SyntheticLr
        from datastill.objectives.trajectory_match import TrajectoryMatch
        from datastill.surrogates.experts import Experts

        self._check()
        unit, rate = self.experts_unit(), SyntheticLr(self.lr_kind, self.student_lr)
        init, decoder = self._images(task)
        return Plan(
            init=init,
            decoder=decoder,
            objective=TrajectoryMatch(
                steps=self.student_steps,
                batch=self.batch_syn or None,
                engine=self.engine,
                lr=self.student_lr,
                lr_kind=self.lr_kind,
            ),
            surrogates=Experts(unit, span=self.span, max_start=self.max_start),
            augment=make_augment(self.augment, task.real.name, task.real.shape),
            update=self._rules(rate),
            steps=self.steps,
            prepare=[unit],
            network=task.network,
            shared={} if self.lr_kind == "fixed" else {"lr": rate.leaf()},
            student=lambda leaves: {"lr": float(rate.alpha(leaves.get("lr")))},
        )

    def _check(self) -> None:
        if not self.experts and self.max_start - 1 + self.span > self.expert_epochs:
            raise InputError(
                f"The last segment ends after epoch {self.max_start - 1 + self.span} (max_start - 1 + span), and there "
                f"are {self.expert_epochs} epochs of an expert; lower max_start, or raise expert_epochs."
            )

    def _images(self, task: Task) -> tuple[Init, Decoder]:
        """Where images start, and what is stored of them."""
        from datastill.decoders.pixels import Pixels
        from datastill.decoders.texture import Texture
        from datastill.sampling.canvases import CanvasInit
        from datastill.sampling.inits import make_init

        init = make_init(self.init)
        if self.canvas == 1:
            return init, Pixels()
        if task.real.space.kind == "zca":
            raise InputError(
                "Crops of a canvas (canvas > 1) do not go with ZCA, which whitens whole images; use another --space."
            )
        if not isinstance(self.init, str):
            raise InputError('Canvases (canvas > 1) start from "real" images or from "noise", not from given images.')
        return CanvasInit(self.canvas, noise=self.init == "noise"), Texture(self.canvas, self.canvas_samples)

    def experts_unit(self) -> ExpertsUnit:
        """The experts that are trained, or taken from their folder."""
        from datastill.surrogates.experts import ExpertsUnit
        from datastill.surrogates.experts.policies import get_policy

        policy = get_policy(self.expert_policy)
        numbers = {"lr": self.expert_lr, "batch": self.expert_batch, "part": self.expert_part}
        for part in self.expert_policy.partition(":")[2].split(","):
            if (name := part.partition("=")[0].strip()) in numbers:
                raise InputError(
                    f"Give expert_{name} (--expert-{name}) and leave {name} out of {self.expert_policy!r}."
                )
        return ExpertsUnit(
            experts=self.expert_count,
            epochs=self.expert_epochs,
            stop_after=min(self.expert_epochs, self.max_start - 1 + self.span),
            policy=replace(policy, **numbers),  # type: ignore[type-var]
            augment=self.augment,
            seed=self.expert_seed,
            span=self.span,
            path=self.experts or None,
        )

    def _rules(self, rate: Any) -> dict[str, UpdateRule]:
        """How the pixels and alpha move."""
        from datastill.core.update import Sgd
        from datastill.engines.hypergradient import Calibrated, KeepPositive, Watched

        images: UpdateRule = Calibrated(_PIXEL_STEP, self.image_momentum)
        if self.image_lr:
            images = Watched(self.image_lr, self.image_momentum)
        if self.lr_kind == "fixed":
            return {"images": images}
        slope = float(rate.slope(rate.leaf()))
        alpha: UpdateRule = Calibrated(_ALPHA_STEP * self.student_lr / slope, self.lr_momentum)
        if self.lr_lr:
            alpha = Sgd(rate.step_size(self.lr_lr), self.lr_momentum)
        return {"images": images, "lr": KeepPositive(alpha) if self.lr_kind == "raw" else alpha}

    def macs_per_step(self, task: Task) -> float:
        """A student step is a gradient, about three passes, and the gradient of one, about eight.

        What N student steps cost beside their arithmetic is counted too, as its equivalent.
        """
        images = len(task.labels) * self.canvas_samples
        passes = 11 * self.student_steps * min(self.batch_syn or images, images)
        return passes * task.network.macs + self.student_steps * overhead_macs(task)
