"""Training experts: one unit of work for each, here or over a pool of processes, resumable within an expert."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError, Interrupted
from datastill.core.interrupt import StopRequest, stop_between_steps
from datastill.core.plan import Progress, silent
from datastill.core.precision import casting
from datastill.core.ranges import Few, Processes, checked
from datastill.core.rng import Rng
from datastill.data.places import places_of
from datastill.data.shared import SHARED_FILES
from datastill.launch import Done, Unit, Workers, check_workers, run_units
from datastill.store.files import digest
from datastill.store.folders import held, remove_made
from datastill.store.outputs import EXPERTS, refuse_out
from datastill.store.unfinished import remove_rests
from datastill.surrogates.experts.files import expert_numbers, record_path, write_expert
from datastill.surrogates.experts.handout import portable, unpacked
from datastill.surrogates.experts.job import Job, begin, make_job
from datastill.surrogates.experts.policies import Epoch, TrainingSet
from datastill.surrogates.experts.store import PARTIAL, ExpertBuffer, open_buffer
from datastill.surrogates.experts.watch import Pulse, watching
from datastill.training.hard import Images, predict

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.factory import NetworkFactory

#: Training images up to this many bytes as float32 are kept on a GPU.
_KEEP_BYTES = 8 << 30


@checked
def train_experts(
    real: RealSet,
    network: NetworkFactory,
    out: str | Path,
    *,
    experts: Few = 10,
    workers: Processes = 1,
    lossy: bool = False,
    span: Few = 2,
    progress: Progress = silent,
    on_done: Callable[[Done], Any] | None = None,
    **settings: Any,
) -> ExpertBuffer:
    """Train those experts that a buffer lacks, and open it.

    Expert k is a function of the configuration and of (seed, k) alone: the same here, in a worker, and after any number
    of kills. The same call goes on where an earlier one stopped, within an expert after its last whole epoch.

    Args:
        real: the real set; its weights, where it has some, go into the loss.
        network: builds the networks.
        out: the folder of the buffer, new or one of the same configuration.
        experts: how many the buffer is to hold.
        workers: processes to train in, one torch thread each; "ray" or "ray:4": those of a Ray cluster.
        lossy: store float16 in half the space; refused for an expert of which it would change a step over `span`
            epochs by more than 1 %.
        span: epochs of a segment that will be matched; `lossy` alone asks for it.
        progress: told the epochs done, loss and accuracy while training goes on.
        on_done: told after every expert.
        settings: see `job.make_job`.

    Raises:
        InputError: something given cannot be used, or `out` holds other things or experts of another configuration.
        Interrupted: Ctrl-C; finished epochs are kept.
        UnitsFailed: some experts failed, by diverging for example; the others are kept.
    """
    check_workers(workers)
    job = make_job(real, network, Path(out), lossy=lossy, span=span, **settings)
    refuse_out(job.folder, places_of(real), EXPERTS)
    with held(job.folder):
        return _train(job, experts, workers, progress, on_done)


def _train(
    job: Job, experts: int, workers: int | str, progress: Progress, on_done: Callable[[Done], Any] | None
) -> ExpertBuffer:
    begin(job)
    units = [Unit(f"expert {k}", (k,), record_path(job.folder, k), "expert") for k in range(experts)]
    missing = sum(not unit.finished for unit in units)
    partial = job.folder / PARTIAL
    if missing:
        pulses = [job.partial(k).pulse_path for k in range(experts)]
        parallel = Workers.of(workers).go_apart(missing)
        with portable(job, parallel, partial) as work, watching(job.folder, pulses, job.last, progress):
            units = [Unit(u.name, (work, *u.arguments), u.target, u.group) for u in units]
            run_units(train_expert, units, workers=workers, on_done=on_done)
    _tidy(job)
    return open_buffer(job.folder)


def train_expert(work: Job | bytes, expert: int, target: Path) -> None:
    """Train one expert, from where it was left, and write its files; a unit of `launch`."""
    job = unpacked(work) if isinstance(work, bytes) else work
    for path in (target, target.with_suffix(".bin")):
        remove_rests(path)
    with stop_between_steps() as stop:
        _Training(job, expert, stop).run()
        if stop.requested:  # asked while the last files were written: this unit is done, and no other one begins
            raise Interrupted("Stopped.")


class _Training:
    """One expert at work."""

    def __init__(self, job: Job, expert: int, stop: StopRequest) -> None:
        self.job, self.expert, self.stop = job, expert, stop
        self.rng = Rng(job.seed).child("expert", expert)
        self.network = job.network(self.rng.derive("network"))
        self.partial = job.partial(expert)
        found = self.partial.resume()
        if found is None:
            self.state = self.partial.begin(job.layout.flatten(self.network))
        else:
            self.state, row = found
            job.layout.load(self.network, row)
            for name, buffer in self.network.named_buffers():
                if name in self.state.buffers:
                    buffer.copy_(self.state.buffers[name])
        self.network.to(job.device)
        self.pulse = Pulse(self.partial.pulse_path)

    def run(self) -> None:
        """The epochs that are left, then the files."""
        job, state = self.job, self.state
        data = training_set(job) if state.epoch < job.last else None
        while data is not None and state.epoch < job.last:
            self._epoch(data)
        write_expert(
            job.folder,
            self.expert,
            job.layout,
            self.partial.rows(job.last + 1),
            config=digest(job.config),
            lossy=job.lossy,
            span=job.span,
            seed=self.rng.seed,
            train_loss=state.losses,
            train_accuracy=state.accuracies,
            test_accuracy=state.test or None,
            seconds=round(state.seconds, 3),
        )
        self.partial.remove()

    def _epoch(self, data: TrainingSet) -> None:
        job, state, started = self.job, self.state, time.perf_counter()
        meter = _Meter(state.epoch, data.y, self.stop, self.pulse)
        epoch = Epoch(state.epoch, job.epochs, self.rng.child("epoch", state.epoch), state.policy, meter.on_batch)
        with casting(job.device, job.precision):
            state.losses.append(job.policy.epoch(self.network, data, epoch))
        state.accuracies.append(meter.accuracy)
        if job.test_accuracy:
            state.test.append(_test_accuracy(self.network, job.real, job.device))
        state.epoch += 1
        state.seconds += time.perf_counter() - started
        kept = {slot.name for slot in job.layout.statistics}
        state.buffers = {n: b.detach().clone() for n, b in self.network.named_buffers() if n in kept}
        self.partial.append(job.layout.flatten(self.network), state)


class _Meter:
    """Counts what is right on the way, tells how far it is, and ends the epoch when someone asks for it."""

    def __init__(self, epoch: int, y: Tensor, stop: StopRequest, pulse: Pulse) -> None:
        self.epoch, self.y, self.stop, self.pulse = epoch, y, stop, pulse
        self.seen, self.right = 0, torch.zeros((), dtype=torch.int64)

    @property
    def accuracy(self) -> float:
        """Of the images seen so far, augmented, each by the network of its step."""
        return float(self.right) / max(1, self.seen)

    def on_batch(self, index: Tensor, logits: Tensor) -> None:
        """One more step; see `policies.Epoch`."""
        if self.stop.requested:
            raise Interrupted("Stopped.")
        target = self.y[index] if self.y.ndim == 1 else torch.arange(len(index))  # of pairs, each other's
        target = target.to(logits.device)
        self.seen += len(index)
        self.right = self.right.to(logits.device) + (logits.argmax(1) == target).sum()
        done = self.epoch + min(1.0, self.seen / len(self.y))
        self.pulse.beat(done, lambda: (float(F.cross_entropy(logits, target)), self.accuracy))


def training_set(job: Job) -> TrainingSet:
    """What experts are trained on: images batch by batch on a CPU, kept whole on a GPU where they fit."""
    real = job.real
    count = 4 * len(real) * real.shape[0] * real.shape[1] * real.shape[2]
    x: Images = lambda index: real.batch(index).x  # noqa: E731
    if job.device.type != "cpu" and count <= _KEEP_BYTES:
        x = torch.cat([real.batch(i).x.to(job.device) for i in torch.arange(len(real)).split(1024)])
    same = None if real.captions is None else real.captions.image
    return TrainingSet(x, real.targets, real.weights, job.augment, job.device, same, job.compiled)


def _test_accuracy(network: torch.nn.Module, real: RealSet, device: torch.device) -> float:
    test = real.known_test
    logits = predict(network, lambda index: test.batch(index).x, len(test), device=device)
    return float((logits.argmax(1).cpu() == test.labels).double().mean())


def _tidy(job: Job) -> None:
    """Remove what kills have left of finished experts, and images for workers; experts in training stay."""
    partial = job.folder / PARTIAL
    for expert in expert_numbers(job.folder):
        job.partial(expert).remove()
    for folder in partial.glob("images-*"):
        with contextlib.suppress(InputError):  # what somebody else put there stays
            remove_made(folder, SHARED_FILES)
    with contextlib.suppress(OSError):
        partial.rmdir()
