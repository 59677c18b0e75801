"""How networks are trained on soft labels: schedules, the published recipes, and the batches of an epoch.

The recipes are those of the official code of SRe2L (arXiv:2306.13092), DWA (arXiv:2409.17612), RDED
(arXiv:2312.03526), G-VBSM (arXiv:2311.17950) and EDC (arXiv:2404.13733), and that of RD3 (arXiv:2509.19743), which
trains on the sets of all of them in one way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from datastill.augment.trace import TraceSpec
from datastill.core.errors import InputError, nearest
from datastill.core.rng import Rng
from datastill.training.batches import batch_bounds

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "decay": ("all", "matrices"),
    "curve": ("cosine", "half-cosine"),
    "loss": ("kl", "mse"),
    "teacher_mode": ("eval", "batch"),
}

#: The warm-up begins at this part of the learning rate.
_WARMUP_START = 0.01


@dataclass(frozen=True)
class SoftSchedule:
    """How a network is trained on soft labels.

    Raises:
        InputError: an unknown choice, or a number out of range.
    """

    epochs: int
    batch: int  #: images per batch; see `batch_bounds` for the last one
    optimizer: str = "adamw"  #: "adamw" (betas 0.9, 0.999) or "sgd"
    lr: float = 1e-3
    weight_decay: float = 0.01
    decay: str = "all"  #: what decays: "all" parameters, or "matrices", those of two or more axes
    momentum: float = 0.9  #: of "sgd"
    curve: str = "cosine"  #: lr over E epochs: (1 + cos(pi e/E)) / 2, or "half-cosine", (1 + cos(pi e/2E)) / 2
    warmup: int = 0  #: epochs in which lr grows linearly from a hundredth; the curve begins after them
    loss: str = "kl"  #: "kl", of teacher and student at the temperature, or "mse", of their logits
    hard_weight: float = 0.0  #: weight of the cross-entropy with each image's own class, added to the soft loss
    temperature: float = 20.0  #: of "kl"
    tau2: bool = False  #: multiply "kl" by the temperature's square: no matter to AdamW, decisive for SGD
    trace: TraceSpec = field(default_factory=TraceSpec)
    teacher_mode: str = "eval"  #: how the teacher labels, see `Labeler`
    ema: float = 0.0  #: decay per step of a running mean of the parameters, with which the network ends; 0: none

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"Unknown {name} {getattr(self, name)!r}. {nearest(str(getattr(self, name)), known)}")
        if self.epochs < 0 or self.batch < 1 or self.lr <= 0 or self.temperature <= 0:
            raise InputError(f"A schedule needs epochs >= 0, batch >= 1, lr > 0 and temperature > 0, not {self}.")
        if min(self.weight_decay, self.momentum, self.hard_weight, self.warmup) < 0 or not 0 <= self.ema < 1:
            raise InputError(
                f"Weight decay, momentum, hard_weight and warmup are 0 or more, ema is in [0, 1): not {self}."
            )

    @property
    def optimizer_name(self) -> str:
        """As it is called; AdamW without decay is Adam."""
        return "SGD" if self.optimizer == "sgd" else "AdamW" if self.weight_decay else "Adam"

    def factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in an epoch, from 0."""
        if epoch < self.warmup:
            return _WARMUP_START + (1 - _WARMUP_START) * epoch / self.warmup
        progress = (epoch - self.warmup) / max(1, self.epochs - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * progress / (1 if self.curve == "cosine" else 2)))


def optimizer_of(recipe: str) -> str:
    """What trains networks by a recipe, or, for "", on the labels of the set."""
    return SOFT_RECIPES[recipe].optimizer_name if recipe else "SGD"


def batches_of(rng: Rng, count: int, batch: int, epoch: int) -> Iterator[tuple[Tensor, int]]:
    """The batches of one epoch of `count` images.

    Yields:
        Positions (b,) int64 in an order from rng.generator("order", epoch), and the seed of the batch's augmentation,
        rng.derive("trace", epoch, number of the batch).
    """
    order = torch.randperm(count, generator=rng.generator("order", epoch))
    bounds = batch_bounds(count, batch)
    for b, (start, stop) in enumerate(pairwise(bounds)):
        yield order[start:stop], rng.derive("trace", epoch, b)


def rded_batch(ipc: int, classes: int) -> int:
    """Images per batch with which RDED trains: 10, 50 or 100 as there are 1, 10 or 50 per class; twice that from 100
    classes on. (Its scripts for Tiny-ImageNet always take 100.)
    """
    batch = 100 if ipc >= 50 else 50 if ipc >= 10 else 10
    return min(ipc * classes, batch * (2 if classes >= 100 else 1))


_FKD = TraceSpec(crop="resized", min_scale=0.08, mix="cutmix")

#: Published recipes by name. For RDED see also `rded_batch`; its crops go with mosaics of 2 x 2, for others of F x F
#: take shuffle=F and min_scale=1/F. "small" is ours, 300 steps for 100 images of digits or clothes.
SOFT_RECIPES: dict[str, SoftSchedule] = {
    "sre2l_imagenet": SoftSchedule(300, 1024, decay="matrices", trace=_FKD),
    "sre2l_cifar": SoftSchedule(
        400,
        128,
        temperature=30.0,
        trace=TraceSpec(crop="padded", pad=4, mix="mixup", alpha=0.8),
        teacher_mode="batch",
    ),
    "dwa_imagenet": SoftSchedule(300, 128, decay="matrices", trace=_FKD),
    "tiny_sgd": SoftSchedule(200, 64, optimizer="sgd", lr=0.2, weight_decay=1e-4, warmup=5, tau2=True, trace=_FKD),
    "rded": SoftSchedule(
        300,
        50,
        decay="matrices",
        curve="half-cosine",
        trace=TraceSpec(crop="resized", min_scale=0.5, shuffle=2, mix="cutmix"),
    ),
    "rd3": SoftSchedule(400, 50, weight_decay=0.0, curve="half-cosine", trace=_FKD),
    "gvbsm": SoftSchedule(1000, 100, loss="mse", hard_weight=0.15, trace=_FKD),
    "edc": SoftSchedule(
        300,
        100,
        loss="mse",
        hard_weight=0.025,
        curve="half-cosine",
        ema=0.99,
        trace=TraceSpec(crop="resized", min_scale=0.5, shuffle=2, mix="cutmix"),
    ),
    "sre2l_plus": SoftSchedule(300, 16, curve="half-cosine", trace=_FKD, teacher_mode="batch"),
    "small": SoftSchedule(
        75,
        25,
        lr=2e-3,
        temperature=4.0,
        tau2=True,
        trace=TraceSpec(crop="resized", min_scale=0.5, mix="cutmix"),
    ),
}
