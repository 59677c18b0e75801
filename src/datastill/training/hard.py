"""Training of one network: evaluation networks, coreset feature networks, ceilings, experts.

The loop is that of the DC protocol (Zhao, Mopuri and Bilen, ICLR 2021, arXiv:2006.05929): plain SGD and one
drop of the learning rate that also forgets the momentum. Every draw has its own generator, so a trained
network is a function of its initial weights, the data, the schedule and one seed.

Eager batches run whole: cutting them into chunks saved no time (see `weight_gradients`). Compiled ones are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.dsa import Dsa
from datastill.augment.mix import CutMix
from datastill.core import compilation
from datastill.core.errors import Diverged, InputError
from datastill.core.ranges import Amount, AnyRate, Count, Momentum, Probability, Weight, check_fields
from datastill.core.rng import Rng, isolated
from datastill.engines.weight_gradients import compilable, compiled_passes, shares
from datastill.models import couples_samples
from datastill.training.batches import Images, TrainingData

#: Steps between two looks at the loss; each look waits for the device.
STEPS_BETWEEN_CHECKS = 100

#: Pixels (height x width x images) per forward pass of `predict`, on a CPU and elsewhere. On a CPU, glibc
#: maps blocks above 32 MB afresh each time unless told otherwise: larger chunks are then 2 to 3 times slower.
_PREDICT_PIXELS = {"cpu": 16 * 32 * 32, "other": 512 * 32 * 32}


@dataclass(frozen=True)
class Schedule:
    """How a network is trained.

    Raises:
        InputError: a number out of range, or an unknown augmentation.
    """

    passes: Amount  #: passes over the data; the DC protocol with E epochs has E + 1
    lr: AnyRate = 0.01  #: learning rate before the drop
    momentum: Momentum = 0.9
    weight_decay: Weight = 5e-4  #: applied to every parameter, norm layers and biases included
    batch: Count = 256  #: images per step; the last, partial batch of a pass is kept
    drop_after: int | None = None  #: index of the pass after which lr falls to a tenth, where `drops` is empty
    augment: str = "none"  #: DSA strategy; one choice of operation per batch, parameters per image
    drops: tuple[tuple[int, float], ...] = ()  #: (index of a pass, what lr is multiplied by after it)
    forget_momentum: bool = True  #: whether a drop also forgets the momentum, as the DC protocol's does
    augment_mode: str = "single"  #: how many operations an image gets, see `Dsa`
    cutmix: Probability = 0.0  #: probability of CutMix for each batch, after the augmentation
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"  #: Adam and AdamW take no momentum; weight decay as given

    def __post_init__(self) -> None:
        check_fields(self, "{name} of a schedule")
        if self.drop_after is not None and self.drops:
            raise InputError("A schedule takes drop_after (one drop to a tenth) or drops, not both.")
        if any(p < 0 or factor <= 0 for p, factor in self.drops):
            raise InputError(f"Drops are pairs of a pass, from 0, and a factor above 0, not {self.drops}.")
        Dsa(self.augment, mode=self.augment_mode)
        CutMix(self.cutmix)

    @classmethod
    def dc(cls, epochs: int, *, augment: str = "none", batch: int = 256, lr: float = 0.01) -> Schedule:
        """The DC protocol: epochs + 1 passes, the drop after the pass of index epochs // 2 + 1."""
        drop_after = epochs // 2 + 1
        return cls(passes=epochs + 1, drop_after=drop_after, augment=augment, batch=batch, lr=lr)

    def factor_after(self, p: int) -> float | None:
        """What the learning rate is multiplied by after pass p, or None."""
        if self.drop_after is not None:
            return 0.1 if p == self.drop_after else None
        factors = [factor for at, factor in self.drops if at == p]
        return math.prod(factors) if factors else None


def train(
    network: nn.Module,
    x: Images,
    y: Tensor,
    schedule: Schedule,
    rng: Rng,
    *,
    weight: Tensor | None = None,
    on_pass: Callable[[int, Tensor], None] | None = None,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
    device: torch.device | str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    compiled: bool = False,
    chunk: int | None = None,
) -> list[float]:
    """Train a network in place, in train mode, on the cross-entropy.

    The order of pass p comes from rng.generator("order", p), the augmentation of batch b in it from
    rng.generator("augment", p, b), CutMix from rng.generator("cutmix", p, b), dropout from
    rng.derive("dropout"). Neither x nor the global generators are changed.

    Args:
        network: maps (b, c, h, w) to logits (b, C); left in train mode, on `device`.
        x: images, see `Images`; a tensor is moved to the device whole.
        y: class positions (n,) int64, or probabilities (n, C) float.
        weight: weight per image (n,), or None. The loss of a batch is its weighted mean.
        on_pass: called after each pass with its index and mean loss, a 0-dim tensor on the device.
        on_batch: called after each step with the positions (b,), on the CPU, and the logits (b, C) before it.
        device: where to train; None means where the network is.
        optimizer: goes on with its state and its learning rate; None makes a new one by the schedule.
        compiled: run compiled code, where the network is `compilable`.
        chunk: most images per pass of compiled code; None takes whole batches.

    Returns:
        The mean loss of each pass, each batch weighing as many images as it has.

    Raises:
        Diverged: a loss is not finite.
        InputError: images and labels differ in number, or there are none.
    """
    where = device_of(network, device)
    network.to(where).train()
    data = TrainingData(x, y, weight, where)
    data.classes = outputs(network, data) if schedule.cutmix else 0
    data.couples = couples_samples(network)
    if optimizer is None:
        optimizer = optimizer_of(network.parameters(), schedule)
    size = 0
    if compiled and compilable(network):
        batch = min(schedule.batch, len(y))
        size = compilation.even_chunk(batch, chunk or batch)
    watch = LossWatch()
    with isolated(rng.derive("dropout")):
        for p in range(schedule.passes):
            total = torch.zeros((), device=where)
            for index, images, target, w in data.batches(schedule, [rng], p):
                optimizer.zero_grad(set_to_none=True)
                loss, logits = _backward(network, images, target, w, size)
                optimizer.step()
                total = total + loss * (len(index) / len(y))
                if on_batch is not None:
                    on_batch(index, logits)
            watch.add(total, steps=-(-len(y) // schedule.batch))
            if on_pass is not None:
                on_pass(p, total)
            drop(optimizer, schedule, p)
    return watch.finish().tolist()


def _backward(
    network: nn.Module, images: Tensor, target: Tensor, weight: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Leave the gradients with the parameters, by compiled passes of `size` images or, if 0, eagerly and whole.

    Returns:
        The loss, 0-dim, and the logits (b, C), detached.
    """
    if not size:
        logits = network(images)
        loss = cross_entropy(logits, target, weight)
        torch.autograd.backward(loss)
        return loss.detach(), logits.detach()
    loss, gradients, logits = compiled_passes(network, images, target, shares(weight, images), size)
    for name, parameter in network.named_parameters():
        parameter.grad = gradients.get(name)
    return loss, logits


def drop(optimizer: torch.optim.Optimizer, schedule: Schedule, p: int) -> None:
    """After pass p: lower the learning rate where the schedule says so, and forget the momentum if it does."""
    factor = schedule.factor_after(p)
    if factor is None:
        return
    for group in optimizer.param_groups:
        group["lr"] *= factor
    if schedule.forget_momentum:
        optimizer.state.clear()


def outputs(network: nn.Module, data: TrainingData) -> int:
    """The number of logits."""
    with isolated(0):
        return predict(network, data.x, 1, device=data.device).shape[1]


def predict(
    network: nn.Module,
    x: Images,
    n: int | None = None,
    *,
    chunk: int | None = None,
    device: torch.device | str | None = None,
    compiled: bool = False,
) -> Tensor:
    """Logits (n, C) in eval mode, chunk by chunk, on the device; each module's mode is restored afterwards.

    Args:
        network: maps (b, c, h, w) to logits (b, C).
        x: images, see `Images`.
        n: how many; needed when x is a function.
        chunk: images per forward pass; None takes what is fastest for their size (16 of 32 x 32 on a CPU).
        device: where to compute; None means where the network is.
        compiled: run compiled code, with the last chunk padded.

    Raises:
        InputError: x is a function and n is not given, or there are no images.
    """
    where = device_of(network, device)
    if n is None and not isinstance(x, Tensor):
        raise InputError("predict needs n, the number of images, when the images come from a function.")
    n = len(x) if n is None and isinstance(x, Tensor) else int(n or 0)
    if n < 1:
        raise InputError("There are no images to predict.")
    if chunk is None:
        height, width = (x if isinstance(x, Tensor) else x(torch.arange(1))).shape[-2:]
        chunk = max(1, _PREDICT_PIXELS["cpu" if where.type == "cpu" else "other"] // (height * width))
    modes = [(module, module.training) for module in network.modules()]
    network.to(where).eval()
    compiled = compiled and compilable(network)
    size = compilation.even_chunk(n, chunk) if compiled else chunk
    try:
        # Compiled code is specialized to tensors of inference mode; the test images are no such tensors.
        with torch.no_grad() if compiled else torch.inference_mode():
            logits = []
            for start in range(0, n, size):
                stop = min(start + size, n)
                images = (x[start:stop] if isinstance(x, Tensor) else x(torch.arange(start, stop))).to(where)
                if compiled:
                    images = compilation.padded(images, size)
                    logits.append(compilation.call(_logits, network, images)[: stop - start])
                else:
                    logits.append(network(images))
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(logits)  # outside inference mode, so that it may be a target in training


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = network(x)
    return logits


class LossWatch:
    """Keeps the loss of each pass and looks at it now and then, since each look waits for the device."""

    def __init__(self, what: str = "pass") -> None:
        self.what = what
        self._losses: list[Tensor] = []
        self._steps = self._checked = 0

    def add(self, loss: Tensor, steps: int) -> None:
        """Take the loss of one pass of so many steps; looks at all of them when it is time."""
        self._losses.append(loss)
        self._steps += steps
        if self._steps >= STEPS_BETWEEN_CHECKS:
            self._check()
            self._steps = 0

    def finish(self) -> Tensor:
        """All losses so far, (passes, ...).

        Raises:
            Diverged: one is not finite.
        """
        self._check()
        return torch.stack(self._losses) if self._losses else torch.zeros(0)

    def _check(self) -> None:
        """Look at those that nobody has looked at yet."""
        if self._checked == len(self._losses):
            return
        wrong = (~torch.isfinite(torch.stack(self._losses[self._checked :]))).nonzero()
        if len(wrong):
            raise Diverged(
                f"Training diverged: the loss of {self.what} {self._checked + int(wrong[0, 0]) + 1} is not finite; "
                "lower the learning rate, or look for extreme values in the images."
            )
        self._checked = len(self._losses)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits (b, C), weighted by (b,) when given.

    Args:
        logits: (b, C).
        target: class positions (b,) int64, or probabilities (b, C) float.
        weight: (b,) not negative, or None; a batch that weighs nothing has loss 0.
    """
    if weight is None:
        return F.cross_entropy(logits, target)
    each = F.cross_entropy(logits, target, reduction="none")
    return (each * weight).sum() / weight.sum().clamp_min(torch.finfo(each.dtype).tiny)


def sgd(parameters: Iterable[Tensor], schedule: Schedule, lr: float) -> torch.optim.SGD:
    """A new optimizer, without momentum yet, for the parameters that are to be trained."""
    trained = [p for p in parameters if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.SGD(trained, lr=lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay, fused=fused)


def optimizer_of(parameters: Iterable[Tensor], schedule: Schedule) -> torch.optim.Optimizer:
    """A new optimizer as the schedule says, at its learning rate."""
    if schedule.optimizer == "sgd":
        return sgd(parameters, schedule, schedule.lr)
    made = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
    trained = [p for p in parameters if p.requires_grad]
    return made(trained, lr=schedule.lr, weight_decay=schedule.weight_decay)


def device_of(network: nn.Module, device: torch.device | str | None = None) -> torch.device:
    """The given device, or the one that the network's parameters are on."""
    if device is not None:
        return torch.device(device)
    return next((p.device for p in network.parameters()), torch.device("cpu"))
