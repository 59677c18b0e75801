"""Experts as a prepared unit of a plan: trained where they are missing, or taken from a buffer."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Task
from datastill.launch import Workers, inside_worker
from datastill.models.code import code_key
from datastill.store.files import digest
from datastill.surrogates.experts.job import Job, make_job
from datastill.surrogates.experts.policies import Policy, get_policy
from datastill.surrogates.experts.rehearse import rehearse
from datastill.surrogates.experts.store import ExpertBuffer, open_buffer
from datastill.surrogates.experts.train import train_experts

if TYPE_CHECKING:
    from datastill.models.factory import NetworkFactory


@dataclass(frozen=True)
class ExpertsUnit:
    """Expert trajectories for `surrogates.experts.Experts`.

    A unit hands out tensors, and experts are gigabytes in a folder. So its one tensor is the folder's name, `path`, as
    bytes: relative to the task's folder where the experts were trained there, or as `path` was given. Without a task's
    folder they are trained into a temporary one, which goes with this object.

    Args:
        experts, epochs, stop_after, policy, augment, lossy, span, workers: see `train_experts`; inside a worker of
            another pool, experts are trained one after the other.
        seed: of the experts; None takes the task's, so that runs of several seeds have experts of their own.
        path: the folder of a buffer to take instead; its network, Space, data and weights must be the task's.
        network: of the experts; None takes the task's.
    """

    experts: int = 10
    epochs: int = 50
    stop_after: int | None = None
    policy: str | Policy = "sgd"
    augment: str = "auto"
    seed: int | None = None
    lossy: bool = False
    span: int = 2
    workers: int | str = 1
    path: str | Path | None = None
    network: NetworkFactory | None = None

    name = "experts"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the trajectories depend on."""
        if self.path is not None:
            return {"unit": self.name, "path": str(self.path), "buffer": open_buffer(self.path).id}
        how = {**self._job(task, Path()).config, **code_key(self._network(task))}
        return {"unit": self.name, "experts": self.experts, "lossy": self.lossy, **how}

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: forward and backward are about three passes. Nothing where a buffer is given."""
        last = self.epochs if self.stop_after is None else self.stop_after
        passes = 0 if self.path is not None else 3 * last * self.experts
        part = get_policy(self.policy).part
        return float(passes * part * len(task.real) * self._network(task).macs)

    def run(self, task: Task) -> dict[str, Tensor]:
        """Train what is missing, or check the buffer that was given; `path` (bytes,) uint8."""
        if self.path is not None:
            open_buffer(self.path).check(self._network(task), task.real)
            return {"path": _encode(self.path)}
        inside = Path("prepare") / f"{self.name}-{digest(self.key(task))}"
        folder = self._temporary() if task.folder is None else task.folder / inside
        try:
            train_experts(
                task.real,
                self._network(task),
                folder,
                experts=self.experts,
                workers=1 if inside_worker() else self.workers,
                progress=task.progress,
                **self._settings(task),
            )
        except Interrupted as stop:
            kept = "; nothing was saved" if task.folder is None else ""  # else the run says where, and how to go on
            raise Interrupted(f"Stopped while experts were trained{kept}.") from stop
        return {"path": _encode(folder if task.folder is None else inside)}

    @contextmanager
    def rehearse(self, task: Task) -> Iterator[tuple[Path, float]]:
        """A folder of experts that are good for timing alone, and the seconds that `run` would take, as measured.

        About a second of training; see `rehearse.rehearse`. Nothing of it is left behind.
        """
        job = self._job(task, Path())
        with rehearse(job) as timed:
            images = max(1, round(job.policy.part * len(task.real)))
            updates = math.ceil(images / job.policy.batch)
            rounds = math.ceil(self.experts / Workers.of(self.workers).likely)
            yield timed.path, rounds * job.last * (updates * timed.update_seconds + timed.epoch_seconds)

    def spent(self, task: Task, prepared: Mapping[str, Tensor]) -> float:
        """Seconds of training the experts, of processes that were stopped on the way too; 0 where they were given."""
        if self.path is not None:
            return 0.0
        seconds = sum(record.seconds or 0.0 for record in self.open(task, prepared).records.values())
        return seconds / Workers.of(self.workers).likely

    def open(self, task: Task, prepared: Mapping[str, Tensor]) -> ExpertBuffer:
        """The buffer that `run` made or found.

        Raises:
            InputError: it is gone, damaged, or does not fit the task.
        """
        if "path" not in prepared:
            raise InputError("The experts of this run were not prepared; put the unit into the plan's `prepare`.")
        path = Path(bytes(prepared["path"].tolist()).decode())
        if self.path is None and task.folder is not None:
            path = task.folder / path
            if not path.is_dir():
                raise InputError(f"The experts of this run are gone from {path}; remove {path}.safetensors as well.")
        buffer = open_buffer(path)
        if self.path is None and len(buffer) < self.experts:
            raise InputError(
                f"{path} holds {len(buffer)} of the {self.experts} experts of this run; remove {path}.safetensors as "
                "well, and the same command trains the rest."
            )
        buffer.check(self._network(task), task.real)
        return buffer

    @property
    def count(self) -> int:
        """How many experts there are or will be: those of the folder, where one is given."""
        return self.experts if self.path is None else len(open_buffer(self.path))

    def _network(self, task: Task) -> NetworkFactory:
        return self.network or task.network

    def _settings(self, task: Task) -> dict[str, Any]:
        names = ("epochs", "stop_after", "policy", "augment", "lossy", "span")
        seed = task.seed if self.seed is None else self.seed
        shared = {"seed": seed, "device": task.device, "precision": task.precision, "compiled": task.compile}
        return {**{name: getattr(self, name) for name in names}, **shared}

    def _job(self, task: Task, folder: Path) -> Job:
        return make_job(task.real, self._network(task), folder, **self._settings(task))

    def _temporary(self) -> Path:
        folder = tempfile.mkdtemp(prefix="datastill-experts-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


def _encode(path: str | Path) -> Tensor:
    return torch.tensor(list(str(path).encode()), dtype=torch.uint8)
