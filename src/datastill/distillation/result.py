"""From what the loop made to a distilled set with its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datastill.augment.strategies import strategy_for
from datastill.core.cost import environment, peak_memory_bytes
from datastill.core.errors import Diverged, Interrupted
from datastill.core.loop import Outcome
from datastill.core.plan import ByNetwork, Plan, Remarks
from datastill.distillation.job import Job
from datastill.distillation.remarks import hyper_of
from datastill.distillation.runfile import file_of
from datastill.models import spec_of
from datastill.store.artifact import DistilledSet
from datastill.store.checkpoint import plain


def artifact_of(job: Job, plan: Plan, outcome: Outcome, prepare_seconds: float, compiled: bool) -> DistilledSet:
    """The distilled set, not yet saved.

    Args:
        prepare_seconds: what the preparation took, whenever that was; that of overrides (weights) comes on top.
        compiled: whether compiled code did it.

    Raises:
        Diverged: what was made holds numbers that are not finite.
    """
    if not all(bool(torch.isfinite(code).all()) for code in outcome.codes.values() if code.is_floating_point()):
        raise Diverged("The images are not finite after the last step; lower the learning rates.")
    task, real = job.task, job.task.real
    student = {} if plan.student is None else dict(plan.student(outcome.shared))
    losses = outcome.losses
    changes = {override.option: override.describe() for override in job.overrides}
    prepare_seconds += sum(float(told.get("seconds", 0)) for told in changes.values())
    manifest = {
        "method": job.method_name,
        "family": job.family,
        **_own_file(job),
        "hyper": hyper_of(job.method),
        "recipe": {"asked": job.recipe, "published": job.published.name if job.published else None},
        "ipc": task.ipc,
        "seed": task.seed,
        "classes": {"names": list(real.class_names), "label_ids": list(real.label_ids)},
        "labels": "hard" if outcome.y.ndim == 1 else "soft",
        "label_kind": plan.labels.kind,
        "shape": list(real.shape),
        "space": real.space.to_dict(),
        "decoder": plan.decoder.describe(),
        "data": {**real.describe(), "fingerprint": real.with_weights(None).fingerprint},
        "network": {**task.network.describe(), "spec": spec_of(task.network)},
        "student": {**student, "protocol": _student_protocol(job, student, plan.labels.kind)},
        "cost": {
            "steps": int(losses.shape[1]) if losses.ndim == 2 else 0,
            "blocks": int(losses.shape[0]),
            "seconds": round(outcome.seconds, 3),
            "prepare_seconds": round(prepare_seconds, 3),
            "precision": task.precision,
            "compile": compiled,
            "skipped_steps": outcome.skipped,
            "peak_memory_bytes": peak_memory_bytes(task.device),
            **environment(task.device),
        },
        **changes,
        "notes": [*job.remarks, *outcome.notes, *_skipped(outcome), *_of_objective(plan, outcome)],
    }
    kept = outcome.shared if plan.keep is None else {name: outcome.shared[name] for name in plan.keep}
    extra = {**outcome.extra, **kept}
    if outcome.y.ndim > 1:
        extra["classes"] = task.labels
    if real.captions is not None:
        manifest["captions"] = [real.captions.texts[i] for i in real.captions.nearest(outcome.y)]
    by_network = plan.decoder if isinstance(plan.decoder, ByNetwork) else None
    weights = {} if by_network is None else by_network.carried
    made = DistilledSet(outcome.codes, outcome.y, real.space, plain(manifest), extra, decoder_weights=weights)
    made.manifest["notes"] += [by_network.note()] if by_network is not None and by_network.note() else []
    judged = isinstance(plan.objective, Remarks)  # by who knows what its losses are
    made.manifest["notes"] += [*([] if judged else rising(outcome)), *strayed(made)]
    return made


def _own_file(job: Job) -> dict[str, str]:
    """The name of the file of a method that is not built in."""
    file = file_of(job.method)
    return {} if file is None else {"method_file": file.name}


def _of_objective(plan: Plan, outcome: Outcome) -> list[str]:
    """What an objective with a `note` has to say about the losses of each block."""
    objective = plan.objective
    if not isinstance(objective, Remarks):
        return []
    return sorted({text for losses in outcome.losses if (text := objective.note(losses))})


def _skipped(outcome: Outcome, window: int = 200, most: float = 0.2) -> list[str]:
    """A sentence where more than a fifth of 200 consecutive steps, or of all, changed nothing."""
    bad = (~torch.isfinite(outcome.losses)).double()
    width = min(window, bad.shape[1]) if bad.ndim == 2 else 0
    share = float(bad.unfold(1, width, 1).mean(2).max()) if width and bad.numel() else 0.0
    share = max(share, outcome.skipped / max(1, bad.numel()))
    if share <= most:
        return []
    return [
        f"up to {100 * share:.0f} % of {width} steps in a row were skipped (numbers not finite, or the loss refused): "
        "lower the learning rates, and in trajectory matching the bound on start epochs (max_start)"
    ]


def rising(outcome: Outcome, least: int = 40, most: float = 2.0) -> list[str]:
    """A sentence where the loss ends well above where it began."""
    losses = outcome.losses
    if losses.ndim != 2 or losses.shape[1] < least:
        return []
    quarter = losses.shape[1] // 4
    begin, end = losses[:, :quarter].nanmedian(1).values, losses[:, -quarter:].nanmedian(1).values
    worst = int((end / begin.clamp_min(1e-12)).nan_to_num().argmax())
    if not float(end[worst]) > most * float(begin[worst]) > 0:
        return []
    return [
        f"the loss rose, from {float(begin[worst]):.3g} in the first quarter of the steps to {float(end[worst]):.3g} "
        "in the last: the learning rate of the images is too high for this network (--image-lr)"
    ]


def strayed(made: DistilledSet, most: float = 0.05) -> list[str]:
    """A sentence where pixels are farther outside of the range of data than it is wide; whitened ones have no range."""
    if made.space.kind == "zca":
        return []
    pixels = made.space.decode(made.images)
    share = float(((pixels < -1) | (pixels > 2)).double().mean())
    if share <= most:
        return []
    return [
        f"{100 * share:.0f} % of the pixels are far outside of the range of images (from {float(pixels.min()):.3g} to "
        f"{float(pixels.max()):.3g}, where images have 0 to 1): lower the learning rate of the images (--image-lr)"
    ]


def _student_protocol(job: Job, student: Mapping[str, Any], kind: str) -> str:
    """What "auto" evaluates with: the recipe's own protocol for a paper run, else a quick one that fits the data.

    The same for every method on one data set, so that defaults compare methods and not protocols; but for sets that
    come with a learning rate, which `mtt-quick-v1` takes, and learned targets, which need a squared error. A plan may
    name another one, where a set is to be used in a way of its own.
    """
    if job.recipe != "auto" and job.published is not None and job.published.protocol:
        return job.published.protocol
    if "protocol" in student:
        return str(student["protocol"])
    if kind == "regression":
        return "frepo-quick-v1"
    if kind == "pairs":
        return "vl-v1"
    if student.get("labels") == "teacher":
        return "soft-quick-v1"
    if "lr" in student:
        return "mtt-quick-v1"
    real = job.task.real
    return "dc-v1" if strategy_for(real.name, real.shape) == "none" else "dsa-quick-v1"


def onward(folder: Path | None) -> str:
    """How a run that was ended goes on."""
    return f"What was done is in {folder}; add --resume to go on." if folder is not None else "Nothing was saved."


def stopped(stop: BaseException, folder: Path | None) -> Interrupted:
    """What was done, and how to go on."""
    return Interrupted(f"{str(stop) or 'Stopped.'} {onward(folder)}")
