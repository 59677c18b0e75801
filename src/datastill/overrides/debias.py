"""Real images weighted against a bias in them, see `datastill.debias`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from datastill.core.errors import InputError
from datastill.core.overrides import Override

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task
    from datastill.core.registry import Method
    from datastill.core.runtime import Runtime


@dataclass(frozen=True)
class Weights(Override):
    """Weights by density ("kde"), by loss or by bias labels ("oracle"); draw=true draws images by them instead."""

    option = "debias"
    label = "weights against a bias"
    default = "none"
    weighs = True
    help = "weigh real images against a bias: none, kde (by density; as in kde:variance=0.05), loss, or oracle"

    asked: str
    report: Mapping[str, Any] = field(default_factory=dict)  #: on the weights, once they are there

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See `debias.reweight.way_of`."""
        from datastill.debias.reweight import way_of

        if text == "none":
            return None
        way_of(text)
        return cls(text)

    def begin(self, real: Any, seed: int, runtime: Runtime) -> tuple[Any, Self]:
        """The set with a weight per image."""
        from datastill.debias.reweight import weighted_set

        weighted, report = weighted_set(real, self.asked, seed, runtime.device.type, runtime.progress)
        return weighted, replace(self, report=report)

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        """Real images drawn in proportion to their weights, where `draw` asks for that; weights need no exchange."""
        if not self.report.get("draw") or task.real.weights is None:
            return plan
        drawn = by_weight(plan)
        if drawn is None:
            raise InputError(f"{method} does not draw class batches of real images; leave draw=true out of debias.")
        return drawn

    def config(self) -> dict[str, Any]:
        """The weights themselves are part of the data's fingerprint."""
        return {"drawn_by_weight": True} if self.report.get("draw") else {}

    def describe(self) -> dict[str, Any]:
        """What was asked for, and the report on the weights."""
        return {"asked": self.asked, **self.report}

    def notes(self, method: Method) -> tuple[str, ...]:
        """Warnings about the weights, and about a teacher that they do not reach."""
        said = tuple(self.report.get("warnings", ()))
        if method.teacher:
            said += ("the teacher was brought as it is: weights against a bias do not reach what it has learned",)
        return said

    @classmethod
    def schema(cls) -> Any:
        """The report on the weights."""
        from datastill.debias.reweight import Weighed

        return Weighed

    @classmethod
    def told(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """Real images weighted by so and so."""
        return "Real images weighted by", str(record.get("asked", record["how"]))

    @classmethod
    def text(cls, record: Mapping[str, Any]) -> str:
        """As asked; "" for weights that were given by hand."""
        return str(record.get("asked", ""))

    @classmethod
    def phrase(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """For the card."""
        return ", real images weighted against a bias", cls.told(record)[1]


def by_weight(plan: Plan) -> Plan | None:
    """The plan with real images drawn in proportion to their weights; None where it draws no class batches.

    One without steps stays as it is: coresets take weights into what they select.
    """
    from datastill.core.plan import DrawsByWeight, PerClass
    from datastill.sampling.weighted import WeightedClassBatches

    if not plan.steps:
        return plan
    if isinstance(plan.sampler, DrawsByWeight):
        return replace(plan, sampler=plan.sampler.by_weight())
    count = plan.sampler.per_class if isinstance(plan.sampler, PerClass) else None
    return None if count is None else replace(plan, sampler=WeightedClassBatches(count))


OVERRIDE = Weights
