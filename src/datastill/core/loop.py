"""The one loop: over independent blocks, then over steps. See docs/architecture.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import Diverged, InputError, Interrupted, RanAway
from datastill.core.guard import Guard
from datastill.core.interrupt import stop_between_steps
from datastill.core.plan import Block, Callback, Codes, Decoder, Grads, Plan, Stepper, Synthetic, Task, TwoPass
from datastill.core.precision import casting
from datastill.core.rng import isolated
from datastill.core.running import Running, restore, start
from datastill.core.snapshot import Checkpoints
from datastill.core.split import put_together, share, whole
from datastill.core.usercode import blaming, checked_loss


@dataclass
class Outcome:
    """What synthesis made.

    Attributes:
        codes: leaves of the synthetic images, on the CPU, in the order of the set.
        y: final labels, (N,) or (N, C).
        shared: leaves of the whole set (`Plan.shared`), on the CPU.
        extra: further named tensors for the artifact (the indices of the real start, say).
        losses: loss of every step, (blocks, steps) float32.
        skipped: steps that were not finite.
        seconds: time spent on steps, earlier parts of a resumed run included.
        notes: what update rules have to say, a sentence each.
    """

    codes: Codes
    y: Tensor
    shared: Codes = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    losses: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    skipped: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def synthesize(
    plan: Plan,
    task: Task,
    *,
    callbacks: Sequence[Callback] = (),
    checkpointer: Checkpoints | None = None,
    prepared: dict[str, dict[str, Tensor]] | None = None,
    stop_after: int | None = None,
) -> Outcome:
    """Run every block of a plan and put the synthetic set together.

    Args:
        stop_after: end each block after so many steps, without changing the schedule (estimates, tests).

    Raises:
        Diverged: too many non-finite steps in a row, or numbers that ran away.
        Interrupted: Ctrl-C; a checkpoint was written if there is a checkpointer.
        InputError: leaves of the plan do not go together, or the whole set's with several blocks.
    """
    y = task.labels
    blocks = list(plan.partition.blocks(y))
    done = []
    for block in blocks:
        running = run_block(plan, task, block, callbacks, checkpointer, prepared or {}, stop_after)
        with blaming(lambda: "after the last step"):
            running.close(release=len(blocks) > 1)
        done.append((block, running))
    return _assemble(y, done)


def run_block(
    plan: Plan,
    task: Task,
    block: Block,
    callbacks: Sequence[Callback] = (),
    checkpointer: Checkpoints | None = None,
    prepared: dict[str, dict[str, Tensor]] | None = None,
    stop_after: int | None = None,
) -> Running:
    """One block, from its checkpoint if there is one, to its end; a function of the plan, the task and the block."""
    with blaming(lambda: "before the first step"):
        running = start(plan, task, block, callbacks, prepared or {})
    reading = lambda: checkpointer.read(block.key) if checkpointer is not None else None  # noqa: E731
    stored = task.runtime.ranks.made_by_first(reading)
    if stored is not None:
        restore(running, stored)
    else:
        for callback in callbacks:
            callback.start(running.context)
    if stored is None or not stored.meta["finished"]:
        _run_steps(running, checkpointer, stop_after)
    return running


def _run_steps(running: Running, checkpointer: Checkpoints | None, stop_after: int | None) -> None:
    context = running.context
    last = context.steps if stop_after is None else min(context.steps, stop_after)
    keeping = checkpointer is not None and running.runs_theirs()
    with stop_between_steps() as stop:
        while context.step < last:
            before = running.kept() if keeping else None
            context.stop_asked = stop.requested
            try:
                _timed_step(running)
            except RanAway:
                raise  # the last checkpoint is better than what there is now
            except Exception as error:
                good = running.snapshot(finished=False) if isinstance(error, Diverged) else before
                if checkpointer is not None and good is not None:
                    checkpointer.write(context.block.key, good)
                raise
            unfinished = context.step < last
            stopping = stop.requested if context.task.runtime.ranks.alone else context.stop_asked
            if checkpointer is not None and unfinished and (stopping or checkpointer.due(context.step)):
                checkpointer.write(context.block.key, running.snapshot(finished=False))
            if stopping and unfinished:
                raise Interrupted(f"Stopped after step {context.step} of {context.steps}.")
    with torch.no_grad():
        for stepper in running.steppers.values():
            stepper.finish()
    if checkpointer is not None:
        checkpointer.write(context.block.key, running.snapshot(finished=True))


def _timed_step(running: Running) -> None:
    """One step, with its loss, its time and those who look on; what the user's code does wrong is told as theirs."""
    context, started = running.context, time.perf_counter()
    with blaming(lambda: f"at step {context.step + 1} of {context.steps}", lambda: context.surrogate):
        one_step(context, running.steppers, running.guard)
    running.losses.append(context.loss)
    context.step += 1
    running.seconds += time.perf_counter() - started
    for callback in context.callbacks:
        callback.after_step(context)  # may end the run by whatever it raises


def one_step(context: Context, steppers: dict[str, Stepper], guard: Guard) -> None:
    """One image update: draw a surrogate, match, guard, update, project, advance."""
    plan, codes = context.plan, context.codes
    assert plan.objective is not None
    generator = context.generator("decode")
    record = plan.decoder.draw(generator)
    if plan.surrogates is not None:
        context.surrogate = plan.surrogates.draw(context)
        context.task.runtime.ranks.align(context.surrogate)
    undo = _copy(codes, steppers) if any(s.early for s in steppers.values()) else None
    for stepper in steppers.values():
        stepper.before()
    with context.task.runtime.ranks.telling():
        loss, grads = gradients(context, record)
    loss, grads = put_together(context, loss, grads)
    context.loss = float(loss.sum())
    if guard.accepts(loss, grads, context.step):
        with torch.no_grad():
            for name, stepper in steppers.items():
                stepper.after(grads[name], context.progress)
            plan.decoder.project(codes, context, "step")
        guard.holds({name: codes[name] for name in steppers}, context.step)
    elif undo is not None:
        undo()
    context.skipped = guard.skipped
    if plan.surrogates is not None:
        plan.surrogates.advance(context)


def gradients(context: Context, record: object) -> tuple[Tensor, Codes]:
    """The loss, and the gradients of the codes: through autograd, or through the decoder's `backward`."""
    plan, codes = context.plan, context.codes
    assert plan.objective is not None
    leaves = {name: leaf.detach().requires_grad_(leaf.is_floating_point()) for name, leaf in codes.items()}
    moving = [name for name in leaves if name in plan.update]
    view: Synthetic | None = None
    context.codes = leaves  # with graph, for labels and objectives that move leaves
    try:
        with torch.enable_grad():
            y = plan.labels.during(context)
            view = _view(plan.decoder, leaves, y, record)
            context.synthetic = view
            context.synthetic, places = share(context, view)
            drawing = isolated(context.seed("dropout"))  # networks may draw from the global generator
            with casting(context.device, context.task.precision), drawing:
                out = plan.objective(context)
            if isinstance(out, Grads):
                with torch.no_grad():
                    grads = dict(plan.decoder.backward(codes, y, record, whole(out, places, view).x))
                grads |= {name: g.detach() for name, g in out.leaves.items()}
                return out.loss.detach(), _complete(grads, moving)
            out = checked_loss(out, moving, plan.objective, context.surrogate)
            through = [view.x] if isinstance(plan.decoder, TwoPass) else []
            sources = [*(leaves[n] for n in moving), *through]
            found = torch.autograd.grad(out.sum(), sources, allow_unused=True)
        grads = {name: grad for name, grad in zip(moving, found, strict=False) if grad is not None}
        if through and found[-1] is not None:
            grads |= plan.decoder.backward(leaves, y, record, found[-1])
        return out.detach(), _complete(grads, moving)
    finally:
        context.codes = codes
        if view is not None:
            context.synthetic = Synthetic(view.x.detach(), view.y.detach())


def _view(decoder: Decoder, leaves: Codes, y: Tensor, record: object) -> Synthetic:
    """The synthetic set as an objective sees it: with a graph to the leaves, or from the images on."""
    view = decoder.decode(leaves, y, record)
    if not isinstance(decoder, TwoPass):
        return view
    return Synthetic(view.x.detach().requires_grad_(), view.y)


def _complete(grads: Mapping[str, Tensor | None], moving: Sequence[str]) -> Codes:
    """The gradients, where each leaf with a rule has one."""
    for name in moving:
        if grads.get(name) is None:
            raise InputError(f"The leaf {name!r} has an update rule, and the objective gives no gradient of it.")
    return {name: grad for name, grad in grads.items() if grad is not None}


def _copy(codes: Codes, steppers: dict[str, Stepper]) -> Callable[[], None]:
    """What to call to bring codes and update rules back to where they are now."""
    kept = {name: leaf.detach().clone() for name, leaf in codes.items()}
    states = {name: {k: v.clone() for k, v in s.state().items()} for name, s in steppers.items()}

    def undo() -> None:
        for name, value in kept.items():
            codes[name].copy_(value)
        for name, stepper in steppers.items():
            stepper.load(states[name])

    return undo


def _assemble(y: Tensor, done: list[tuple[Block, Running]]) -> Outcome:
    """Blocks back into the order of the synthetic set."""
    leaves = [(block, running.context.codes) for block, running in done]
    apart = done[0][1].apart
    shared = {name: done[0][1].context.codes[name].detach().cpu() for name in apart.shared}
    others = {*apart.labels, *apart.shared}
    finals = [(block, {"y": running.y}) for block, running in done if running.y is not None]
    losses = torch.tensor([running.losses for _, running in done], dtype=torch.float32)
    return Outcome(
        codes=_in_order([(block, {n: t for n, t in codes.items() if n not in others}) for block, codes in leaves], y),
        y=_in_order(finals, y)["y"],
        shared=shared,
        extra=_in_order([(block, running.extra) for block, running in done], y),
        losses=losses,
        skipped=sum(running.guard.skipped for _, running in done),
        seconds=sum(running.seconds for _, running in done),
        notes=[note for _, running in done for note in running.notes],
    )


def _in_order(parts: list[tuple[Block, Codes]], y: Tensor) -> Codes:
    """Named tensors of blocks, indexed by image along their first axis, as those of the whole set."""
    found: Codes = {}
    for block, named in parts:
        for name, tensor in named.items():
            piece = tensor.detach().cpu()
            if name not in found:
                found[name] = torch.empty(len(y), *piece.shape[1:], dtype=piece.dtype)
            found[name][block.index] = piece
    return found
