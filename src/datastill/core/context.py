"""What an objective, a sampler or a callback sees at one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.errors import InputError
from datastill.core.plan import Block, Callback, Codes, Plan, Synthetic, Task, chunk_for
from datastill.core.rng import Key, Rng

if TYPE_CHECKING:
    from datastill.models.base import Network


def class_means(values: Tensor, y: Tensor, classes: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean of `values` (n, d) per class, (classes, d); rows of absent classes are zero.

    `weight=None` is the plain mean; equal weights give the same numbers.
    """
    total = values.new_zeros(classes, values.shape[1])
    if weight is None:
        count = torch.bincount(y, minlength=classes).to(values.dtype)
        total = total.index_add(0, y, values)
    else:
        weight = weight.to(values.dtype)
        count = values.new_zeros(classes).index_add(0, y, weight)
        total = total.index_add(0, y, values * weight[:, None])
    return total / torch.where(count > 0, count, torch.ones_like(count))[:, None]


@dataclass
class Context:
    """The state of one block at one step.

    Attributes:
        state: whatever an objective or sampler must remember; checkpointed with the block.
        loss: the last step's loss, a float; `skipped` counts steps with non-finite numbers.
        stop_asked: whether a rank of the run was asked to stop before this step.
    """

    task: Task
    plan: Plan
    block: Block
    rng: Rng
    callbacks: Sequence[Callback] = ()
    step: int = 0
    steps: int = 0
    codes: Codes = field(default_factory=dict)
    synthetic: Synthetic | None = None
    surrogate: object | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    prepared: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    loss: float = float("nan")
    skipped: int = 0
    stop_asked: bool = False

    @property
    def progress(self) -> float:
        """t/T in [0, 1)."""
        return self.step / self.steps if self.steps else 0.0

    @property
    def device(self) -> torch.device:
        """Where the computation runs."""
        return self.task.device

    @property
    def chunk(self) -> int:
        """Images per forward pass where passes may be cut."""
        return chunk_for((self.plan.network or self.task.network).macs, self.device)

    def generator(self, purpose: str, *key: Key) -> torch.Generator:
        """The generator of one purpose at this block and step."""
        return self.rng.generator(purpose, self.block.key, self.step, *key)

    def seed(self, purpose: str, *key: Key) -> int:
        """The seed of one purpose at this block and step, for code that builds its own generator."""
        return self.rng.derive(purpose, self.block.key, self.step, *key)

    def real_batch(self) -> Batch:
        """This step's real samples, after the callbacks, on the device; of a rank, those of its classes."""
        if self.plan.sampler is None:
            raise InputError("This plan has no sampler, but its objective asks for real samples.")
        batch = self.plan.sampler.draw(self.task.real, self)
        for callback in self.callbacks:
            batch = callback.before_real_batch(batch, self)
        ranks = self.task.runtime.ranks
        if not ranks.alone:
            batch = batch.of(torch.isin(batch.y, torch.tensor(ranks.own(self.block.classes), device=batch.y.device)))
        return batch.to(self.device)

    def net_updated(self, network: Network) -> None:
        """Surrogates call this after every training step of a network."""
        for callback in self.callbacks:
            callback.after_net_update(network, self)

    def reduce(self, values: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Statistics of real samples per class, (C, d), by `Plan.reduce`: the place for privacy mechanisms."""
        if self.plan.reduce is not None:
            return self.plan.reduce(values, y, weight, self)
        return class_means(values, y, self.task.classes, weight)
