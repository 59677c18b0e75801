"""A block at work: how it starts, what a checkpoint holds of it, and how it ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.guard import Guard
from datastill.core.plan import Block, Callback, Codes, CodesFromContext, LearnedLabels, Plan, Stepper, Task
from datastill.core.rng import Rng
from datastill.core.snapshot import Parted, Snapshot
from datastill.core.usercode import holds_theirs

#: Numbers in the leaves of a block (64 MiB), up to which its state is kept before each step of a user's code.
MOST_KEPT = 2**24
#: Numbers in the state of its surrogates (256 MiB), above which it is not: a pool would be there twice.
MOST_KEPT_OF_NETWORKS = 2**26


@dataclass(frozen=True)
class Apart:
    """Names of the leaves that are none of the decoder's."""

    labels: tuple[str, ...] = ()  #: a row for each stored image; what they end as, the final labels say
    shared: tuple[str, ...] = ()  #: of the whole set


@dataclass
class Running:
    """A block at work."""

    context: Context
    steppers: dict[str, Stepper]
    guard: Guard
    losses: list[float]
    extra: dict[str, Tensor]
    apart: Apart = Apart()
    seconds: float = 0.0
    y: Tensor | None = None  #: final labels, once closed
    notes: list[str] = field(default_factory=list)  #: of the update rules, once closed

    def close(self, release: bool) -> None:
        """Final labels and notes of a finished block; with `release`, networks and optimizer states go.

        Hundreds of blocks of large images would fill a card otherwise.
        """
        context = self.context
        self.y = context.plan.labels.final(context).detach().cpu()
        self.notes = _notes(self.steppers)
        if not release:
            return
        context.codes = {n: leaf.detach().cpu() for n, leaf in context.codes.items()}
        context.surrogate, context.synthetic, context.state, self.steppers = None, None, {}, {}

    def snapshot(self, finished: bool) -> Snapshot:
        context = self.context
        groups = {
            "codes": {n: leaf.detach() for n, leaf in context.codes.items()},
            "state": context.state,
            "extra": self.extra,
            "losses": {"losses": torch.tensor(self.losses, dtype=torch.float32)},
        }
        for name, stepper in self.steppers.items():
            groups[f"update:{name}"] = stepper.state()
        surrogates = context.plan.surrogates
        parts: dict[str, Collection[str]] = {}
        if surrogates is not None:
            groups["surrogates"] = dict(surrogates.state())
        if isinstance(surrogates, Parted):
            parts["surrogates"] = surrogates.parts
        for callback in context.callbacks:
            if callback.name:
                groups[f"callback:{callback.name}"] = callback.state()
        meta = {
            "step": context.step,
            "finished": finished,
            "skipped": self.guard.skipped,
            "in_a_row": self.guard.in_a_row,
            "seconds": self.seconds,
        }
        return Snapshot(groups, meta, parts)

    def runs_theirs(self) -> bool:
        """Whether code that the user brought is at work, and the state small enough to be kept at every step."""
        context = self.context
        if sum(leaf.numel() for leaf in context.codes.values()) > MOST_KEPT:
            return False
        return holds_theirs([context.plan, context.task.network, *context.callbacks])

    def kept(self) -> Snapshot | None:
        """A snapshot that later steps do not change; None where the surrogates' state is too large."""
        now = self.snapshot(finished=False)
        if sum(t.numel() for t in now.group("surrogates").values()) > MOST_KEPT_OF_NETWORKS:
            return None
        return replace(now, groups={g: {n: t.clone() for n, t in named.items()} for g, named in now.groups.items()})

    def restore(self, snapshot: Snapshot) -> None:
        context = self.context
        for name, value in snapshot.group("codes").items():
            context.codes[name].copy_(value)
        context.state = {n: t.to(context.device) for n, t in snapshot.group("state").items()}
        self.extra = snapshot.group("extra")
        self.losses = snapshot.group("losses")["losses"].tolist()
        for name, stepper in self.steppers.items():
            stepper.load(snapshot.group(f"update:{name}"))
        if context.plan.surrogates is not None:
            context.plan.surrogates.load(snapshot.group("surrogates"))
        for callback in context.callbacks:
            if callback.name and f"callback:{callback.name}" in snapshot.groups:
                callback.load(snapshot.group(f"callback:{callback.name}"))
            elif callback.name:
                callback.start(context)  # it was not there when the run began
        context.step = int(snapshot.meta["step"])
        self.guard.skipped = context.skipped = int(snapshot.meta["skipped"])
        self.guard.in_a_row = int(snapshot.meta["in_a_row"])
        self.seconds = float(snapshot.meta["seconds"])


def restore(running: Running, stored: Snapshot) -> None:
    """Go on from a snapshot; one that does not fit, whoever made it, is refused in a sentence."""
    context = running.context
    try:
        for group, fresh in (("codes", context.codes), ("extra", running.extra)):
            if _kinds(stored.group(group)) != _kinds(fresh):
                raise ValueError(f"its {group} have other names, shapes or types")
        running.restore(stored)
        if context.step > context.steps or len(running.losses) != context.step:
            raise ValueError("its steps are not those of its losses")
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0][:200]
        raise InputError(
            f"The checkpoint of block {context.block.key} does not fit this run ({reason}); remove it to start the "
            "block again."
        ) from error


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def start(
    plan: Plan,
    task: Task,
    block: Block,
    callbacks: Sequence[Callback],
    prepared: dict[str, dict[str, Tensor]],
) -> Running:
    """The block with its leaves: those of the decoder, of learned labels, and of the whole set.

    Raises:
        InputError: leaves of the whole set in a block that is a part of it, or leaves that cannot be told
            apart, or a rule for a leaf that is not there.
    """
    context = Context(task, plan, block, Rng(task.seed), callbacks, steps=plan.steps, prepared=prepared)
    images, extra = plan.init.images(task, block, context)
    images, decoder = images.to(task.device), plan.decoder
    if isinstance(decoder, CodesFromContext):
        _add(context, decoder.begin(context, images, extra))
    else:
        _add(context, decoder.encode(images))
    learned: Codes = {}
    if isinstance(plan.labels, LearnedLabels):
        learned = _add(context, plan.labels.leaves(context, images, extra))
        for name, leaf in learned.items():
            if not leaf.ndim or len(leaf) != len(block.y):
                raise InputError(f"{name} are learned labels of {len(block.y)} images, and are {list(leaf.shape)}.")
    shared = _add(context, plan.shared(context) if callable(plan.shared) else plan.shared)
    _check_shared(plan, shared, whole=len(block.y) == len(task.labels))
    unknown = sorted(set(plan.update) - set(context.codes))
    if unknown:
        raise InputError(f"There is an update rule for {unknown[0]!r}, and the leaves are {sorted(context.codes)}.")
    bound = {name: plan.update[name].bind(leaf) for name, leaf in context.codes.items() if name in plan.update}
    if plan.surrogates is not None:
        plan.surrogates.begin(context)
    apart = Apart(labels=tuple(learned), shared=tuple(shared))
    return Running(context, bound, Guard(), [], extra, apart)


def _add(context: Context, leaves: Mapping[str, Tensor]) -> Codes:
    """Copies of the leaves, which now stand among the codes of the context."""
    twice = sorted(set(leaves) & set(context.codes))
    if twice:
        raise InputError(f"Two leaves of this plan are called {twice[0]!r}; give one of them another name.")
    added = {name: leaf.detach().to(context.device).clone() for name, leaf in leaves.items()}
    context.codes = {**context.codes, **added}
    return added


def _check_shared(plan: Plan, shared: Codes, whole: bool) -> None:
    if shared and not whole:
        raise InputError(
            f"{', '.join(shared)} belongs to the whole set, so all of it is one block; take the partition AllAtOnce."
        )
    unknown = sorted(set(plan.keep or ()) - set(shared))
    if unknown:
        raise InputError(f"The plan keeps {unknown[0]!r}, and the leaves of its whole set are {sorted(shared)}.")


def _notes(steppers: dict[str, Stepper]) -> list[str]:
    """What update rules have to say about their leaf."""
    said = {name: stepper.note() for name, stepper in steppers.items()}
    return [f"{name}: {note}" for name, note in said.items() if note]
