"""TESLA: MTT with soft labels of experts, and a gradient of constant memory (Cui et al., ICML 2023, arXiv:2211.10586).

L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2
as in MTT; the student learns what the expert at theta*_{t+M} takes the synthetic images for (soft label assignment).

- Needs: experts, as MTT.
- Cost: 11 * student_steps * (images of a student step) network passes a step, in the memory of one student step, and
  one pass over the set for its labels; before that the experts, as for MTT.
- Departs: the gradient is MTT's, exact and of constant memory too (adjoint); the published one, `engine=frozen_path`,
  which `recipe="paper"` takes, is another direction; final labels are a mean over experts, not those of the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from datastill.core.errors import InputError
from datastill.core.ranges import Count, Few
from datastill.core.registry import method
from datastill.methods.mtt import MTT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from datastill.core.plan import Plan, Task


@method("tesla", paper="arXiv:2211.10586", family="trajectory")
@dataclass(frozen=True, kw_only=True)
class TESLA(MTT):
    """Lead a student to where experts went, on labels that the experts give."""

    paper_values: ClassVar[dict[str, Any]] = {"engine": "frozen_path"}

    steps: Count = 10_000  #: image updates
    soft_labels: bool = False  #: labels are what experts take the images for; off, they are the classes, as in MTT
    label_experts: Few = 10  #: experts over which the final labels are averaged

    def build(self, task: Task) -> Plan:
        """MTT's plan, with labels from the experts that it follows."""
        plan = super().build(task)
        if not self.soft_labels:
            return plan
        from datastill.labels.from_experts import ExpertLabels

        if self.canvas > 1:
            raise InputError("Soft labels belong to whole images, not to crops; leave canvas at 1, or soft_labels off.")
        learned: Any = plan.student
        labels = ExpertLabels(plan.surrogates, self.label_experts)  # type: ignore[arg-type]

        def student(leaves: Mapping[str, Tensor]) -> dict[str, Any]:
            return {**learned(leaves), "labels": labels.describe()}

        return replace(plan, labels=labels, student=student)
