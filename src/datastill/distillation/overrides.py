"""What a run changes in a method's plan: how real images are drawn, and on which networks it matches.

A method names its choices and knows nothing of these; they exchange one axis for another object of the same contract.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.core.plan import Plan
from datastill.sampling.samplers import ClassBatches, ClassEpochs
from datastill.sampling.weighted import WeightedClassBatches
from datastill.surrogates.fresh import Fresh

if TYPE_CHECKING:
    from datastill.distillation.job import Job


def planned(job: Job) -> Plan:
    """The method's plan with what the run changes in it.

    Raises:
        InputError: the method has nothing of the kind that is to be changed.
    """
    return on_surrogates(job, drawn_by_weight(job, job.method.build(job.task)))


def drawn_by_weight(job: Job, plan: Plan) -> Plan:
    """The plan with real images drawn in proportion to their weights, where `debias` asks for that.

    Raises:
        InputError: the method makes steps and does not draw class batches.
    """
    if job.debias is None or not job.debias.get("draw") or job.task.real.weights is None or not plan.steps:
        return plan
    if not isinstance(plan.sampler, ClassBatches | ClassEpochs):
        raise InputError(
            f"{job.method_name} does not draw class batches of real images; leave draw=true out of debias."
        )
    return replace(plan, sampler=WeightedClassBatches(plan.sampler.n))


def takes_surrogates(job: Job) -> bool:
    """Whether the method matches on fresh random networks, which others can stand in for."""
    return isinstance(job.method.build(job.task).surrogates, Fresh)


def on_surrogates(job: Job, plan: Plan) -> Plan:
    """The plan on networks that were trained to resist a bias, where `surrogates` asks for them.

    Raises:
        InputError: the method does not take fresh random networks.
    """
    if job.surrogates is None:
        return plan
    from datastill.surrogates.debiased import DebiasedPool

    if not isinstance(plan.surrogates, Fresh):
        raise InputError(
            f"{job.method_name} does not match on fresh random networks, so none can stand in for them; of the methods "
            "here dm and dm-fast do, and mtt takes expert_policy=selecmix."
        )
    units = job.surrogates.units(plan.surrogates.factory)
    return replace(plan, surrogates=DebiasedPool(units), prepare=[*plan.prepare, *units])
