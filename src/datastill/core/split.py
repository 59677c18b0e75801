"""A step of the loop over several ranks: each computes the objective for its share of the classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Grads, Plan, Synthetic, Task
from datastill.core.rng import Rng

#: Methods whose objective is `ByClass`, for people.
SHARED = "acc-dd, datadam, dc, dm, dm-fast, dream, dsa, idc, idc-i and idm"


@runtime_checkable
class ByClass(Protocol):
    """An objective that is a sum over classes, each of its own images alone, given the networks of the step."""

    def couples(self, context: Context) -> str:
        """Why classes cannot be computed apart, as the end of a sentence; "" where they can.

        Asked in each step, and before the first, when the context has no surrogate and no synthetic images yet.
        """
        ...


def refuse_unsplit(plan: Plan, task: Task, method: str) -> None:
    """Refuse a plan that several ranks cannot share.

    Raises:
        InputError: why, and what to do instead.
    """
    ranks = task.runtime.ranks
    if ranks.alone:
        return
    end = "run it without torchrun"
    if plan.objective is None or not plan.steps:
        raise InputError(f"{method} makes no steps, so there is nothing for {ranks.count} ranks to share; {end}.")
    blocks = list(plan.partition.blocks(task.labels))
    if not isinstance(plan.objective, ByClass):
        instead = "take --workers or --shard for its blocks" if len(blocks) > 1 else end
        raise InputError(
            f"The objective of {method} ({type(plan.objective).__name__}) is no sum over classes, so ranks cannot "
            f"share it; {instead}. Of the methods here {SHARED} can be shared."
        )
    fewest = min(len(block.classes) for block in blocks)
    if fewest < ranks.count:
        raise InputError(f"{ranks.count} ranks cannot share {fewest} classes; start at most {fewest}.")
    if plan.reduce is not None or plan.labels.kind != "classes":
        what = "a reduction of its own" if plan.reduce is not None else f"labels that are {plan.labels.kind}"
        raise InputError(f"{method} has {what} here, which ranks cannot share; {end}.")
    _refuse_coupled(Context(task, plan, blocks[0], Rng(task.seed)))


def _refuse_coupled(context: Context) -> None:
    objective = context.plan.objective
    why = objective.couples(context) if isinstance(objective, ByClass) else ""
    if why:
        count = context.task.runtime.ranks.count
        raise InputError(f"The classes of a step cannot be computed apart by {count} ranks, since {why}.")


def share(context: Context, view: Synthetic) -> tuple[Synthetic, Tensor | None]:
    """What of the synthetic set this rank looks at, and where that is; all of it for one that is alone.

    Raises:
        InputError: the objective couples the classes in this step.
    """
    ranks = context.task.runtime.ranks
    if ranks.alone:
        return view, None
    _refuse_coupled(context)
    own = torch.tensor(ranks.own(context.block.classes), device=view.y.device)
    places = torch.isin(view.y, own).nonzero().squeeze(1)
    return Synthetic(view.x[places], view.y[places]), places


def whole(grads: Grads, places: Tensor | None, view: Synthetic) -> Grads:
    """Gradients of a rank's share as those of all decoded images, zeros for the others."""
    if places is None:
        return grads
    return replace(grads, x=torch.zeros_like(view.x).index_copy(0, places.to(grads.x.device), grads.x.to(view.x.dtype)))


def put_together(context: Context, loss: Tensor, grads: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of all ranks; notes on the way whether any of them was asked to stop.

    Raises:
        RankFailed: one of them has failed.
    """
    ranks = context.task.runtime.ranks
    if ranks.alone:
        return loss, grads
    met = ranks.meet((float(loss.sum()), context.stop_asked))
    context.stop_asked = any(asked for _, asked in met)
    return torch.tensor(sum(one for one, _ in met)), ranks.summed(grads)
