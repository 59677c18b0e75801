"""Training on soft labels: of a teacher that looks on, of a label bank, or hard ones in the very same way.

The post-training of decoupled distillation (SRe2L: Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092). Whatever the
labels, a batch is augmented and mixed by one recorded draw, and the teacher labels the pixels that the student sees.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.trace import Trace
from datastill.core.errors import InputError
from datastill.core.rng import Rng, isolated
from datastill.training.batches import batch_bounds
from datastill.training.hard import LossWatch, device_of
from datastill.training.soft_schedule import SOFT_RECIPES, SoftSchedule, batches_of, rded_batch

if TYPE_CHECKING:
    from datastill.labels.bank import LabelBank
    from datastill.labels.labeler import Labeler

__all__ = ["SOFT_RECIPES", "SoftSchedule", "batch_bounds", "optimizer_of", "rded_batch", "soft_loss", "train_soft"]


def train_soft(
    network: nn.Module,
    images: Tensor,
    y: Tensor,
    schedule: SoftSchedule,
    rng: Rng,
    *,
    labeler: Labeler | None = None,
    bank: LabelBank | None = None,
    on_pass: Callable[[int, Tensor], None] | None = None,
    device: torch.device | str | None = None,
) -> list[float]:
    """Train a network in place, in train mode.

    The labels are those of `labeler`, given to each batch as it is trained on, or those of `bank`; with neither the
    network is trained on hard ones, by the cross-entropy with the mixed classes. All else is the same for the three.

    The order of epoch e comes from rng.generator("order", e), the augmentation of batch b from
    rng.generator("trace", e, b), dropout from rng.derive("dropout"). With a bank, batches and augmentation are the
    bank's, in its order; when its epochs are used up they come again, their batches in an order from
    rng.generator("batches", e). A bank made with the seed of `rng` gives what its labeler would give on line, up to
    the rounding of its labels. Neither images nor the global generators are changed.

    Args:
        network: maps (b, c, h, w) to logits (b, C); left in train mode, on `device`.
        images: (n, c, h, w), in the Space that network and teachers expect.
        y: class positions (n,) int64, or probabilities (n, C).
        schedule: how.
        rng: every draw.
        labeler: teachers that label on line.
        bank: stored labels of these images.
        on_pass: called after each epoch with its index and mean loss, a 0-dim tensor on the device; with `ema` the
            network has the averaged parameters meanwhile.
        device: where to train; None means where the network is.

    Returns:
        The mean loss of each epoch, each batch weighing as many images as it has.

    Raises:
        Diverged: a loss is not finite.
        InputError: labeler and bank together, or one that does not fit the images or the schedule.
    """
    if len(images) != len(y):
        raise InputError(f"There are {len(images)} images but {len(y)} labels.")
    _refuse_misfit(images, schedule, labeler, bank)
    where = device_of(network, device)
    network.to(where).train()
    source = _Batches(images.to(where), schedule, rng, labeler, bank)
    y = y.to(where)
    optimizer = optimizer_of(network, schedule)
    average = _Average(network, schedule.ema)
    watch = LossWatch()
    with isolated(rng.derive("dropout")):
        for epoch in range(schedule.epochs):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * schedule.factor(epoch)
            total, steps = torch.zeros((), device=where), 0
            for batch in source.of(epoch):
                optimizer.zero_grad(set_to_none=True)
                loss = _loss(network(batch.views), batch, y, schedule)
                torch.autograd.backward(loss)
                optimizer.step()
                average.update()
                total, steps = total + loss.detach() * (len(batch.positions) / len(y)), steps + 1
            watch.add(total, steps)
            if on_pass is not None:
                with average.shown():
                    on_pass(epoch, total)
    average.swap()
    return watch.finish().tolist()


def soft_loss(student: Tensor, teacher: Tensor, schedule: SoftSchedule) -> Tensor:
    """The soft part of the loss, 0-dim.

    "kl": the mean over images of KL(p || q) with p = softmax(teacher / t), q = softmax(student / t), times t^2 if
    `tau2`; "mse": the mean of the squared differences of all logits.

    Args:
        student: logits (b, C).
        teacher: logits (b, C).
        schedule: loss, temperature t and tau2.
    """
    if schedule.loss == "mse":
        return F.mse_loss(student, teacher)
    t = schedule.temperature
    log_q, log_p = (student / t).log_softmax(1), (teacher / t).log_softmax(1)
    loss = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return loss * t**2 if schedule.tau2 else loss


def optimizer_of(network: nn.Module, schedule: SoftSchedule) -> torch.optim.Optimizer:
    """A new optimizer for the parameters that are to be trained; with decay "matrices" in two groups."""
    trained = [p for p in network.parameters() if p.requires_grad]
    decays = [p for p in trained if schedule.decay == "all" or p.ndim >= 2]
    spared = [p for p in trained if schedule.decay != "all" and p.ndim < 2]
    groups = [{"params": decays, "weight_decay": schedule.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=schedule.lr, fused=fused)


class _Batch(NamedTuple):
    positions: Tensor  #: (b,), on the CPU
    views: Tensor  #: images as they are seen (b, c, h, w)
    trace: Trace
    logits: Tensor | None  #: the teacher's (b, C), or None where labels are hard


class _Batches:
    """The batches of each epoch with their labels."""

    def __init__(
        self, images: Tensor, schedule: SoftSchedule, rng: Rng, labeler: Labeler | None, bank: LabelBank | None
    ) -> None:
        self.images, self.schedule, self.rng, self.labeler, self.bank = images, schedule, rng, labeler, bank

    def of(self, epoch: int) -> Iterator[_Batch]:
        """The batches of an epoch, in order."""
        return self._drawn(epoch) if self.bank is None else self._stored(self.bank, epoch)

    def _drawn(self, epoch: int) -> Iterator[_Batch]:
        shape = self.images.shape[1:]
        for positions, seed in batches_of(self.rng, len(self.images), self.schedule.batch, epoch):
            trace = self.schedule.trace.replay(seed, len(positions), shape)
            views = trace.apply(self.images[positions.to(self.images.device)])
            yield _Batch(positions, views, trace, None if self.labeler is None else self.labeler(views))

    def _stored(self, bank: LabelBank, epoch: int) -> Iterator[_Batch]:
        order = torch.arange(bank.batches)
        if epoch >= bank.epochs:
            order = torch.randperm(bank.batches, generator=self.rng.generator("batches", epoch))
        for b in order.tolist():
            positions, trace, logits = bank[epoch, b]
            views = trace.apply(self.images[positions.to(self.images.device)])
            yield _Batch(positions, views, trace, logits.to(self.images.device))


class _Average:
    """A running mean of the parameters, p' <- decay p' + (1 - decay) p; buffers are not averaged, as in EDC."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = list(network.parameters()) if decay else []
        self.means = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        for mean, p in zip(self.means, self.parameters, strict=True):
            mean.lerp_(p, 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their means; twice changes nothing, bit for bit."""
        for mean, p in zip(self.means, self.parameters, strict=True):
            live = p.clone()
            p.copy_(mean)
            mean.copy_(live)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The network with the means, for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


def _loss(logits: Tensor, batch: _Batch, y: Tensor, schedule: SoftSchedule) -> Tensor:
    own = y[batch.positions.to(y.device)]
    if batch.logits is None:
        return F.cross_entropy(logits, batch.trace.hard_targets(own, logits.shape[1]).to(logits.dtype))
    if batch.logits.shape != logits.shape:
        raise InputError(f"The network gives {logits.shape[1]} logits and its labels have {batch.logits.shape[1]}.")
    loss = soft_loss(logits, batch.logits.to(logits.dtype), schedule)
    # As published: the class of the image itself, whatever it was mixed with.
    return loss + schedule.hard_weight * F.cross_entropy(logits, own) if schedule.hard_weight else loss


def _refuse_misfit(images: Tensor, schedule: SoftSchedule, labeler: Labeler | None, bank: LabelBank | None) -> None:
    """Raise what is wrong with the source of the labels."""
    if labeler is not None and bank is not None:
        raise InputError("Labels come from a labeler or from a bank; give one of them.")
    mode = labeler.mode if labeler is not None else bank.mode if bank is not None else schedule.teacher_mode
    if mode != schedule.teacher_mode:
        raise InputError(
            f"The schedule is for labels of mode {schedule.teacher_mode!r} and these are {mode!r}; change teacher_mode."
        )
    if bank is None:
        return
    bank.check(images, schedule.trace)
    if batch_bounds(len(images), schedule.batch) != bank.bounds:
        raise InputError(
            f"The labels were made for batches of {bank.batch} images and belong to them; the schedule has "
            f"{schedule.batch}: change it, or make the label bank again."
        )
    exact = schedule.loss == "kl" and schedule.temperature == bank.temperature
    if bank.partial and not exact:
        raise InputError(
            f"This label bank keeps the largest logits only and is for loss='kl' at temperature {bank.temperature:g}."
        )
