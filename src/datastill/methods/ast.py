"""Alignment with Smooth Trajectories (AST: Shen et al., arXiv:2310.10541).

L = sum_j beta_j || theta_{s_j} - theta*_{t+j} ||^2 / || theta*_t - theta*_{t+j} ||^2
over the epochs j = 1 .. M of a segment, met after s_j = j floor(N/M) student steps, the last after N. Students have
momentum, start from perturbed weights, and their loss is damped for early segments and amplified for late ones.

- Needs: experts that are strong and smooth (policy `smooth`), in 3.6 times the time of MTT's.
- Cost: as MTT, and one pass over the candidates of the start.
- Departs: the gradient passes momentum and all terms by an exact adjoint recursion; clusters of the start are as many
  as images, at most ten, and no class comes out empty; at most 1,000 candidates a class (`--recipe paper` takes all).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datastill.core.errors import InputError
from datastill.core.ranges import Amount, AnyRate, Momentum, Weight
from datastill.core.registry import method
from datastill.methods._own_experts import OwnExperts

if TYPE_CHECKING:
    from datastill.core.plan import Decoder, Init, Plan, Task


@method("ast", paper="arXiv:2310.10541", family="trajectory")
@dataclass(frozen=True, kw_only=True)
class AST(OwnExperts):
    """Lead a steadier student along trajectories of experts that are strong and smooth."""

    paper_values: ClassVar[dict[str, Any]] = {"candidates": 0}

    init: str = "clusters"  #: start from images near centroids of an expert's logits, or as in mtt: "real", "noise"
    candidates: Amount = 1_000  #: most real images of a class that the start clusters; 0 is all
    student_momentum: Momentum = 0.9  #: of the student's steps
    perturbation: Weight = 1.0  #: noise on the convolutions of a start, relative to a weight over all of its layer
    balanced: bool = True  #: damp the student's loss for early segments and amplify it for late ones
    #: how epochs between start and end of a segment are matched: "all" alike, "adaptive" (later ones more), or "none"
    intermediate: Literal["none", "all", "adaptive"] = "all"
    #: how experts are trained: "smooth", with numbers as in smooth:penalty=1, or another policy
    expert_policy: str = "smooth"
    expert_lr: AnyRate = 0.003  #: their learning rate in the first half of the epochs

    def build(self, task: Task) -> Plan:
        """MTT's plan, with another student and perturbed starts."""
        from datastill.surrogates.experts.perturbed import PerturbedExperts

        plan = super().build(task)
        objective = replace(
            plan.objective,  # type: ignore[type-var]
            momentum=self.student_momentum,
            balance=self.max_start if self.balanced else 0,
            intermediate=self.intermediate,
        )
        experts = PerturbedExperts(
            self.experts_unit(), span=self.span, max_start=self.max_start, perturbation=self.perturbation
        )
        return replace(plan, objective=objective, surrogates=experts if self.perturbation else plan.surrogates)

    def _check(self) -> None:
        super()._check()
        if self.intermediate != "none" and self.student_steps < self.span:
            raise InputError(
                f"A student of {self.student_steps} steps cannot meet {self.span} epochs on its way; raise "
                "student_steps to span at least, or take intermediate=none."
            )

    def _images(self, task: Task) -> tuple[Init, Decoder]:
        from datastill.decoders.pixels import Pixels
        from datastill.sampling.representative import Candidates
        from datastill.surrogates.experts.starts import ExpertClusters

        if self.init != "clusters":
            return super()._images(task)
        if self.canvas > 1:
            raise InputError('Canvases (canvas > 1) start from "real" images or from "noise"; give init=real.')
        return ExpertClusters(self.experts_unit(), Candidates(self.candidates)), Pixels()
