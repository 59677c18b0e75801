"""Vision-language distillation by trajectories (Wu et al., TMLR 2024, arXiv:2308.07545): pairs instead of classes.

L = sum over towers b of ||theta_N^b - theta*_{t+M}^b||^2 / ||theta*_t^b - theta*_{t+M}^b||^2
with theta^img the weights of an image network and theta^txt those of a projection of sentences, both trained by the
contrastive loss of pairs; images and vectors of sentences are learned, and a student's rate for each tower.

- Needs: experts of both towers, trained once for a real set of pairs and a network family.
- Cost: as MTT, 11 * student_steps * (pairs of a student step) passes of the image network a step.
- Departs: one temperature, 1/0.07, everywhere (the released inner loop multiplies by its logarithm); the text tower is
  evaluated at its own rate; all candidates are ranked; the last step is the result, and no test pair is read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.ranges import AnyRate, Count, Few, Momentum, Rate, RateOrAuto
from datastill.core.registry import method
from datastill.methods.mtt import MTT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor

    from datastill.core.plan import Plan, Task, UpdateRule

#: RMS of the first steps of sentences' vectors, in units of their own RMS.
_TEXT_STEP = 0.02


@method("vl-mtt", paper="arXiv:2308.07545", family="vision-language")
@dataclass(frozen=True, kw_only=True)
class VLMTT(MTT):
    """Lead two towers to where experts on image-sentence pairs went."""

    takes: ClassVar[tuple[str, ...]] = ("pairs",)
    paper_values: ClassVar[dict[str, Any]] = {"max_start": 2, "student_lr": 0.1, "expert_lr": 0.1}

    steps: Count = 50_000  #: updates of the pairs
    student_steps: Few = 8  #: N, steps of the student on the synthetic pairs
    span: Few = 1  #: M, epochs of the expert that the student is to make up for
    max_start: Few = 4  #: bound (exclusive) on the epoch t at which a student starts
    student_lr: Rate = 0.03  #: alpha of both towers at the start; the paper takes 0.1 for pretrained ones
    text_lr: RateOrAuto = 0.0  #: SGD learning rate of the sentences' vectors; 0 takes it from the first gradients
    text_momentum: Momentum = 0.5  #: SGD momentum of the sentences' vectors
    augment: str = "none"  #: DSA strategy of students and experts, "none", or "auto"
    expert_count: Few = 20  #: pairs of towers to train on the real set
    expert_epochs: Few = 10  #: their epochs at most; they stop after max_start - 1 + span
    expert_policy: str = "contrastive"  #: how they are trained; numbers as contrastive:lr_text=0.05
    expert_lr: AnyRate = 0.03  #: their learning rate, constant; above 0.1 towers from scratch do not learn
    expert_batch: Count = 128  #: pairs per step of an expert

    def usual_network(self) -> str:
        """A small image tower: pairs are learned from scratch, and towers of other widths learn them too."""
        return "convnet:width=32,norm=group"

    def build(self, task: Task) -> Plan:
        """MTT's plan for two towers, with sentences beside the images and a rate for each tower."""
        from datastill.engines.hypergradient import SyntheticLr
        from datastill.labels.sentences import SentenceVectors
        from datastill.objectives.pair_trajectory_match import PairTrajectoryMatch
        from datastill.objectives.trajectory_match import TrajectoryMatch

        plan, rate = super().build(task), SyntheticLr(self.lr_kind, self.student_lr)
        match: Any = plan.objective
        pairs = PairTrajectoryMatch(**{f.name: getattr(match, f.name) for f in fields(TrajectoryMatch)})

        def student(leaves: Mapping[str, Tensor]) -> dict[str, Any]:
            found = {name: float(rate.alpha(leaves.get(name))) for name in ("lr", "lr_text")}
            return {**found, "protocol": "vl-v1"}

        shared = {} if self.lr_kind == "fixed" else {"lr": rate.leaf(), "lr_text": rate.leaf()}
        return replace(plan, objective=pairs, labels=SentenceVectors(), shared=shared, student=student)

    def scaled(self, task: Task, seconds: float) -> VLMTT:
        """As MTT, at this method's own rates: those for short experts of classes are too high for towers."""
        return self._at_own_rates(super().scaled(task, seconds))

    def at_pace(self, task: Task, seconds: float, preparation: float, step: float) -> VLMTT:
        """See `scaled`."""
        return self._at_own_rates(super().at_pace(task, seconds, preparation, step))

    def with_cheap_preparation(self, task: Task, seconds: float, given: Collection[str]) -> VLMTT:
        """See `scaled`."""
        return self._at_own_rates(super().with_cheap_preparation(task, seconds, given))

    def _at_own_rates(self, found: VLMTT) -> VLMTT:
        if found.experts:
            return found  # whose rate the student takes
        return replace(found, expert_lr=self.expert_lr, student_lr=self.student_lr)

    def _rules(self, rate: Any) -> dict[str, UpdateRule]:
        """As of MTT; sentences and the second rate move as images and the first do."""
        from datastill.engines.hypergradient import Calibrated, Watched

        rules = super()._rules(rate)
        rules["labels"] = Calibrated(_TEXT_STEP / 16, self.text_momentum)
        if self.text_lr:
            rules["labels"] = Watched(self.text_lr, self.text_momentum)
        if "lr" in rules:
            rules["lr_text"] = rules["lr"]
        return rules
