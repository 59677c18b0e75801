"""Where a method's teacher comes from: squeezed from the real set here, or brought."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from datastill.augment.strategies import strategy_for
from datastill.core.allocator import keep_freed_memory
from datastill.core.errors import InputError
from datastill.core.plan import Task, Unit, chunk_for
from datastill.core.rng import Rng
from datastill.engines.statistics import keeps_statistics, norm_layers, recalibrate
from datastill.surrogates.teachers.teacher import Teacher, load_teacher
from datastill.training.batches import parts
from datastill.training.hard import Schedule, train

#: Clean images that running statistics are measured anew on after training.
RECALIBRATION_IMAGES = 5_000


class TeacherSource(Unit, Protocol):
    """A prepared unit that gives a teacher."""

    def teacher(self, task: Task, prepared: dict[str, Tensor]) -> Teacher:
        """From the prepared tensors."""
        ...


@dataclass(frozen=True)
class Squeeze:
    """Train the task's network on the real set (the squeeze of SRe2L, arXiv:2306.13092).

    SGD with momentum, and a cosine that ends at 0 after a linear warm-up over a tenth of the steps. A longer squeeze
    makes a better teacher and not always a better source of images.
    """

    passes: int
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 128
    augment: str = "auto"  #: DSA strategy, all of its operations on every image; "auto" crops, and flips what may be
    statistics: bool = True  #: whether a network without batch norm is refused; changes no teacher

    name = "teacher"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return {
            "unit": "squeeze",
            "schedule": self._schedule,
            "network": task.network.describe(),
            "data": task.real.fingerprint,
            "seed": task.seed,
            "device": task.device.type,
            "precision": task.precision,
            "threads": torch.get_num_threads(),
            **({"compile": True} if task.compile else {}),
        }

    @property
    def _schedule(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "statistics"}

    def updates(self, task: Task) -> int:
        """Steps of the training."""
        return self.passes * -(-len(task.real) // self.batch)

    def fit(self, task: Task, network: nn.Module, on_batch: Callable[[Tensor, Tensor], None]) -> None:
        """Train a network of the task in place; `on_batch` is told positions and logits of every batch."""
        real, rng, steps = task.real, Rng(task.seed).child("squeeze"), self.updates(task)
        optimizer = torch.optim.SGD(
            network.parameters(),
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            fused=task.device.type != "mps",
        )
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))

        def after_batch(index: Tensor, logits: Tensor) -> None:
            falling.step()
            on_batch(index, logits)

        train(
            network,
            lambda index: real.batch(index).x,
            real.labels,
            Schedule(
                passes=self.passes, lr=self.lr, batch=self.batch, augment=self._strategy(task), augment_mode="composite"
            ),
            rng,
            weight=real.weights,
            on_batch=after_batch,
            device=task.device,
            optimizer=optimizer,
            compiled=task.compile,
            chunk=chunk_for(task.network.macs, task.device),
        )

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: forward and backward are about three passes."""
        return 3.0 * self.passes * len(task.real) * task.network.macs

    def run(self, task: Task) -> dict[str, Tensor]:
        """`weight/<name>` for the state of the network; `trial`, its accuracy on training images; `seconds`."""
        keep_freed_memory()
        real, started = task.real, time.perf_counter()
        rng = Rng(task.seed).child("squeeze")
        network = task.network(rng.derive("network")).to(task.device)
        if self.statistics:
            norm_layers(network)  # without batch norm this ends here
        steps, done = self.updates(task), 0

        def on_batch(index: Tensor, logits: Tensor) -> None:
            nonlocal done
            done += 1
            if done % 10 == 0:
                right = (logits.argmax(1).cpu() == real.labels[index]).double().mean()
                task.progress("squeeze: train a teacher", done, steps, {"accuracy": float(right)})

        self.fit(task, network, on_batch)
        if keeps_statistics(network):
            clean = torch.randperm(len(real), generator=rng.generator("recalibration"))[:RECALIBRATION_IMAGES]
            cut = parts(len(clean), self.batch, couples=True)
            recalibrate(network, (real.batch(clean[start:stop]).x.to(task.device) for start, stop in cut))
        trial = self._teacher(task, network).check(real, task.device, brought=False)
        return {
            **{f"weight/{name}": value.detach().cpu() for name, value in network.state_dict().items()},
            "trial": torch.tensor(trial, dtype=torch.float64),
            "seconds": torch.tensor(time.perf_counter() - started, dtype=torch.float64),
        }

    def _strategy(self, task: Task) -> str:
        if self.augment != "auto":
            return self.augment
        return "crop_flip" if "flip" in strategy_for(task.real.name, task.real.shape) else "crop"

    def teacher(self, task: Task, prepared: dict[str, Tensor]) -> Teacher:
        """The trained network."""
        network = task.network(0)
        network.load_state_dict({n.removeprefix("weight/"): t for n, t in prepared.items() if n.startswith("weight/")})
        record: dict[str, Any] = {"origin": {"squeeze": self._schedule, "data": task.real.name, "seed": task.seed}}
        record["trial_accuracy"] = float(prepared["trial"])
        record["seconds"] = round(float(prepared["seconds"]), 1)
        return self._teacher(task, network.to(task.device), record)

    def _teacher(self, task: Task, network: torch.nn.Module, record: dict[str, Any] | None = None) -> Teacher:
        real = task.real
        size = (real.shape[1], real.shape[2])
        return Teacher(network, real.space, real.class_names, real.shape[0], size, str(task.network), record or {})


def _warm_cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True, eq=False)
class Brought:
    """A teacher of the caller's, tried on the real set before it is used."""

    given: Teacher
    statistics: bool = True  #: whether a network without batch norm is refused

    name = "teacher"

    def macs(self, task: Task) -> float:
        """Nothing: it is trained."""
        return 0.0

    def key(self, task: Task) -> dict[str, Any]:
        """The teacher and the data that it is tried on."""
        return {"unit": "brought", "teacher": self.given.id, "data": task.real.fingerprint}

    def run(self, task: Task) -> dict[str, Tensor]:
        """`trial`: accuracy on training images; the test split is not read.

        Raises:
            InputError: the teacher is near chance on these data, or does not fit them.
        """
        if self.statistics:
            norm_layers(self.given.network)
        return {"trial": torch.tensor(self.given.check(task.real, task.device), dtype=torch.float64)}

    def teacher(self, task: Task, prepared: dict[str, Tensor]) -> Teacher:
        """The given one, with what was measured."""
        self.given.record.setdefault("trial_accuracy", float(prepared["trial"]))
        self.given.network.to(task.device)
        return self.given


def as_teacher(given: Any, network: Any = None, option: str = "network=") -> Teacher:
    """A teacher, from its folder or as it is.

    Args:
        network, option: as `load_teacher` takes them, for a folder.

    Raises:
        InputError: it is neither.
    """
    if isinstance(given, Teacher):
        return given
    if isinstance(given, str | Path):
        return load_teacher(given, network, option)
    raise InputError(f"A teacher is the folder of one, or what load_teacher returned, not {type(given).__name__}.")
