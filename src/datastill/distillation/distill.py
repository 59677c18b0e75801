"""`distill`: from a method's name and real data to an artifact in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from datastill.core import compilation
from datastill.core.errors import Diverged, InputError, Interrupted, UserCodeFailed
from datastill.core.interrupt import Stopped
from datastill.core.loop import synthesize
from datastill.core.plan import Callback, Plan, Progress, silent
from datastill.core.ranges import Count, Processes, Seconds, SecondsOrNone, Seed, checked
from datastill.core.ranks import joined
from datastill.core.registry import Method
from datastill.core.runtime import Runtime
from datastill.core.split import refuse_unsplit
from datastill.core.threads import threads_for
from datastill.core.update import load_optimizers
from datastill.data.places import places_of
from datastill.distillation.among import among, refuse_differing
from datastill.distillation.budget import seconds_of, within
from datastill.distillation.job import CONFIG, Job, RunRecord, as_begun, prepare_job
from datastill.distillation.parallel import Spread, run_apart
from datastill.distillation.preparation import prepare
from datastill.distillation.result import artifact_of, onward, stopped
from datastill.distillation.runfile import RUN_FILE, write_run_file
from datastill.report.card import write_card_and_preview
from datastill.report.tracking import keys_of, tracked, trackers, write_losses
from datastill.store.artifact import MANIFEST, TENSORS, DistilledSet
from datastill.store.checkpoint import Checkpointer, plain, refuse_other
from datastill.store.files import read_sealed, write_sealed, write_tensors
from datastill.store.folders import remove_made
from datastill.store.opening import sound_path
from datastill.store.outputs import RUN, refuse_inside, refuse_out
from datastill.store.rendering import DECODER_FILE

#: What a run that prepares nothing leaves in its folder.
_RUN_FILES = (
    CONFIG, RUN_FILE, MANIFEST, TENSORS, DECODER_FILE, "losses.*", "tensorboard/*", "tensorboard/*/*",
    "snapshots.safetensors", "README.md", "preview.png", "report.html", "comparison.png", "animation.gif",
    "evaluation.json", "checkpoints/block-*.safetensors", "checkpoints/block-*.done", "checkpoints/images-*/*.npy",
    ".datastill.*",
)  # fmt: skip


@checked
def distill(
    method: str | Method | type[Method],
    real: Any,
    *,
    ipc: Count,
    network: Any = None,
    recipe: str = "auto",
    budget: Seconds | str | None = None,
    seed: Seed = 0,
    out: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    precision: str = "float32",
    compile: str = "auto",
    progress: Progress = silent,
    callbacks: Sequence[Callback] = (),
    track: Any = None,
    checkpoint_seconds: SecondsOrNone = 15.0,
    workers: Processes = 1,
    shard: tuple[int, int] | None = None,
    units: str | Path | None = None,
    **options: Any,
) -> DistilledSet:
    """Learn a small synthetic training set.

    Args:
        method: a name (`datastill.methods()` lists them), a method's class, or one with its values.
        real: the real set: anything that `load_real` takes, or what it returned.
        ipc: images per class.
        network: the surrogates' architecture: a name, a class or function that builds one, or a module;
            None takes a ConvNet that fits the image size.
        recipe: "auto" scales the full setting to about two minutes of a laptop, "paper" takes it whole, a name such as
            "dm/cifar10-ipc10" takes that one.
        budget: seconds, or a time such as "5m", to scale to instead, by a measurement at the start; kept as steps.
        seed: of every random draw.
        out: a folder for the run: artifact, checkpoints, log; None keeps the result in memory only.
        resume: go on from the checkpoints in `out`.
        device: "auto", "cpu", "cuda", "mps".
        precision: "float32", or "bf16" for the networks' convolutions and matrix products.
        compile: "on", "off" or "auto": compiled code for the networks, for long runs on a CPU.
        progress: told how a preparation goes, such as the feature network of a coreset; callbacks see the loop. A
            `datastill.Progress` shows both.
        callbacks: hooks into the loop.
        track: where numbers of each step go besides `losses.csv` and `losses.jsonl` in `out`: "tensorboard", a function
            that takes them by name and `step=` (`mlflow.log_metrics`, `wandb.log`), or several of these.
        checkpoint_seconds: time between checkpoints; never changes a result.
        workers: processes for the blocks of a method that has several, one torch thread each, or "ray" or "ray:4" for
            those of a Ray cluster; needs `out`. Callbacks then see nothing of the blocks.
        shard: (i, n) to recover every n-th block from the i-th on alone, for n machines that share `out`; whoever calls
            without it afterwards, with resume, puts the set together.
        units: a folder where experts and other prepared things are kept and found again, for runs that share them;
            None is `out`.
        **options: hyper-parameters of the method, over the recipe's; and what the run changes in any method
            (`datastill.overrides`): `debias` weighs the real images against a bias in them, "kde" (by density) or
            "loss" (of a biased network) with options as in "kde:variance=0.05,power=1", or "oracle", by bias labels,
            for diagnosis; `surrogates` takes networks that resist a bias where the method takes fresh random ones,
            "dfa" or "selecmix", as in "dfa:count=3,steps=600".

    Returns:
        The distilled set; also saved in `out`.

    Raises:
        InputError: something given cannot be used.
        Interrupted: Ctrl-C; what was done is saved in `out`.
        RankFailed: another process of the run has ended.
        ShareDone: with `shard`, once its blocks are done.
        Diverged: too many non-finite steps.
    """
    folder = Path(out) if out is not None else None
    seconds = seconds_of(budget)
    with joined():
        if folder is not None:
            check_out(folder, resume, real)
        hooks = [*callbacks, *trackers(track, folder)]
        if isinstance(progress, Callback) and progress not in hooks:
            hooks.append(progress)
        job = prepare_job(
            method,
            real,
            ipc=ipc,
            network=network,
            recipe=recipe,
            seed=seed,
            runtime=Runtime.of(device, precision, compile, progress),
            folder=folder if units is None else Path(units),
            **options,
        )
        spread = Spread(workers, shard)
        return carry_out(
            job, folder, budget=seconds, resume=resume, callbacks=hooks, every=checkpoint_seconds, spread=spread
        )


def carry_out(
    job: Job,
    folder: Path | None,
    *,
    budget: float | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    every: float = 15.0,
    spread: Spread | None = None,
) -> DistilledSet:
    """Run a settled job: begin its overrides, bring it within its budget, distill.

    Args:
        folder: of the run, which has been checked (`check_out`); None keeps the result in memory only.
        every: seconds between checkpoints.
        budget, resume, callbacks: as `distill` takes them.
    """
    spread = spread or Spread()
    spread.check(folder)
    if job.task.folder not in (None, folder):  # units of several runs
        refuse_inside(sound_path(job.task.folder), places_of(job.task.real))
    with joined() as ranks:
        job, folder, callbacks = among(ranks, job, folder, callbacks, spread, budget)
        job = job.begun()
        if budget is not None:
            job = within(job, budget, folder, resume)
        return run_job(job, folder, callbacks, every, spread)


def run_job(
    job: Job,
    folder: Path | None,
    callbacks: Sequence[Callback],
    checkpoint_seconds: float,
    spread: Spread | None = None,
) -> DistilledSet:
    """Prepare, synthesize, and write the artifact."""
    spread, ranks = spread or Spread(), job.task.runtime.ranks
    stored = ranks.made_by_first(lambda: _stored(folder))
    if stored is not None:
        job = as_begun(job, stored)
    plan = job.plan()
    refuse_unsplit(plan, job.task, job.method_name)
    refuse_differing(ranks, job.config(plan))
    if plan.update:
        load_optimizers()
    with threads_for((plan.network or job.task.network).macs):
        if stored is not None:  # the caller's number comes back afterwards
            torch.set_num_threads(int(stored.get("threads") or torch.get_num_threads()))
        elif spread.pooled:
            torch.set_num_threads(1)
        with spread.holding(folder), tracked(callbacks, folder) as hooks:
            return _run_plan(job, plan, folder, stored, hooks, checkpoint_seconds, spread)


def _stored(folder: Path | None) -> dict[str, Any] | None:
    """The configuration of the run that the folder holds, or None."""
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return dict(read_sealed(folder / CONFIG, RunRecord))


def _run_plan(
    job: Job,
    plan: Plan,
    folder: Path | None,
    stored: dict[str, Any] | None,
    callbacks: Sequence[Callback],
    checkpoint_seconds: float,
    spread: Spread,
) -> DistilledSet:
    fallbacks, config = compilation.fallbacks(), job.config(plan)
    checkpointer = None if folder is None else _begin(folder, config, stored, checkpoint_seconds)
    ranks = job.task.runtime.ranks
    with _told_where(folder, stored is None):
        prepared, prepare_seconds = ranks.made_by_first(lambda: prepare(plan, job.task))
        if spread.pooled and checkpointer is not None:
            run_apart(job, plan, prepared, checkpointer, spread)
        outcome = synthesize(plan, job.task, callbacks=callbacks, checkpointer=checkpointer, prepared=prepared)
    compiled = job.task.compile and compilation.fallbacks() == fallbacks
    distilled = artifact_of(job, plan, outcome, prepare_seconds, compiled)
    if plan.companions is not None:
        distilled.companions = plan.companions(prepared)
        distilled.manifest["companions"] = plain({n: c.describe() for n, c in distilled.companions.items()})
    if folder is not None:
        distilled.save(folder)
        try:
            write_tensors(folder / "losses.safetensors", {"losses": outcome.losses})
            write_run_file(folder, job.method, distilled.record)
            write_losses(folder, outcome.losses, keys_of(plan, job.task.labels))
            if not (folder / "evaluation.json").is_file():  # a card with its results stays
                write_card_and_preview(distilled, folder)
        except InputError as error:  # a full disk, most likely
            raise InputError(f"{error} The set itself is saved in {folder}; --resume writes the rest.") from error
    return distilled


def _begin(
    folder: Path, config: dict[str, Any], stored: dict[str, Any] | None, checkpoint_seconds: float
) -> Checkpointer:
    """Write the configuration first, or hold a run that goes on against what it was begun with."""
    if (folder / CONFIG).is_file() != (stored is not None):
        raise InputError(f"{folder} was taken by another command just now; choose another --out, or add --resume.")
    if stored is not None:
        refuse_other(config, stored, folder)
    write_sealed(folder / CONFIG, config)
    return Checkpointer(folder / "checkpoints", config, checkpoint_seconds)


@contextlib.contextmanager
def _told_where(folder: Path | None, new: bool) -> Iterator[None]:
    """Errors of a run say where it was kept; a new one that was refused leaves no beginning behind."""
    try:
        yield
    except (Interrupted, Stopped) as stop:
        raise stopped(stop, folder) from stop
    except UserCodeFailed as failed:
        raise failed.told(hint=onward(folder)) from failed.__cause__
    except InputError:
        if folder is not None and new:
            _forget(folder)
        raise
    except Diverged as stop:
        hint = f" The last good images are in {folder / 'checkpoints'}." if folder is not None else ""
        raise Diverged(f"{stop}{hint}") from stop


def check_out(folder: Path, resume: bool, real: Any = None) -> None:
    """Refuse a folder that a run on this real set cannot go into; makes nothing."""
    sound_path(folder)
    if (folder / MANIFEST).is_file() and not resume:
        raise InputError(f"{folder} already holds a finished run; choose another --out or remove it.")
    if (folder / CONFIG).is_file() and not resume:
        raise InputError(f"{folder} holds an unfinished run; add --resume to go on, or choose another --out.")
    refuse_out(folder, places_of(real), RUN)


def _forget(folder: Path) -> None:
    """Remove the beginning of a run that was refused before its first step: the command, mended, may begin anew."""
    with contextlib.suppress(OSError):
        (folder / "checkpoints").rmdir()
    if not (folder / "checkpoints").exists():
        (folder / CONFIG).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # units that were prepared stay
            folder.rmdir()


def remove_run(folder: Path) -> None:
    """Remove the folder of a run that prepared nothing, if every file in it is a run's.

    Raises:
        InputError: it is no run, or holds something else; nothing was removed.
    """
    if _stored(folder) is None and folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise InputError(f"{folder} is no run of datastill and stays; move it, or choose another --out.")
    remove_made(folder, _RUN_FILES)
