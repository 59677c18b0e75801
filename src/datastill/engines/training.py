"""Training of one network: evaluation networks, coreset feature networks, ceilings, experts.

The loop is that of the DC protocol (Zhao, Mopuri and Bilen, ICLR 2021, arXiv:2006.05929): plain SGD and one
drop of the learning rate that also forgets the momentum. Every draw has its own generator, so a trained
network is a function of its initial weights, the data, the schedule and one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.dsa import Dsa, DsaRecord
from datastill.core.errors import Diverged, InputError
from datastill.core.rng import Rng, isolated

#: Images: a tensor (n, c, h, w), or a function from positions (b,) int64 on the CPU to images (b, c, h, w).
Images = Tensor | Callable[[Tensor], Tensor]

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

    passes: int  #: passes over the data; the DC protocol with E epochs has E + 1
    lr: float = 0.01  #: learning rate before the drop
    momentum: float = 0.9
    weight_decay: float = 5e-4  #: applied to every parameter, norm layers and biases included
    batch: int = 256  #: images per step; the last, partial batch of a pass is kept
    drop_after: int | None = None  #: index of the pass after which lr falls to a tenth and momentum is forgotten
    augment: str = "none"  #: DSA strategy; one operation per batch, parameters per image

    def __post_init__(self) -> None:
        if self.passes < 0 or self.batch < 1 or self.lr <= 0 or self.momentum < 0 or self.weight_decay < 0:
            raise InputError(
                f"A schedule needs passes, momentum and weight decay >= 0, batch >= 1 and lr > 0, not {self}."
            )
        Dsa(self.augment)

    @classmethod
    def dc(cls, epochs: int, *, augment: str = "none", batch: int = 256, lr: float = 0.01) -> Schedule:
        """The DC protocol: epochs + 1 passes, the drop after the pass of index epochs // 2 + 1."""
        drop_after = epochs // 2 + 1
        return cls(passes=epochs + 1, drop_after=drop_after, augment=augment, batch=batch, lr=lr)


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
) -> list[float]:
    """Train a network in place, in train mode, by SGD on the cross-entropy.

    The order of pass p comes from rng.generator("order", p), the augmentation of batch b in it from
    rng.generator("augment", p, b), dropout from rng.derive("dropout"). Neither x nor the global generators
    are changed.

    Args:
        network: maps (b, c, h, w) to logits (b, C); left in train mode, on `device`.
        x: images, see `Images`; a tensor is moved to the device whole.
        y: class positions (n,) int64, or probabilities (n, C) float.
        weight: weight per image (n,), or None. The loss of a batch is its weighted mean.
        on_pass: called after each pass with its index and mean loss, a 0-dim tensor on the device.
        on_batch: called after each step with the positions (b,), on the CPU, and the logits (b, C) before it.
        device: where to train; None means where the network is.

    Returns:
        The mean loss of each pass, each batch weighing as many images as it has.

    Raises:
        Diverged: a loss is not finite.
        InputError: images and labels differ in number, or there are none.
    """
    where = device_of(network, device)
    network.to(where).train()
    data = TrainingData(x, y, weight, where)
    optimiser = sgd(network.parameters(), schedule, schedule.lr)
    watch = LossWatch()
    with isolated(rng.derive("dropout")):
        for p in range(schedule.passes):
            total = torch.zeros((), device=where)
            for index, images, target, w in data.batches(schedule, [rng], p):
                optimiser.zero_grad(set_to_none=True)
                logits = network(images)
                loss = cross_entropy(logits, target, w)
                torch.autograd.backward(loss)
                optimiser.step()
                total = total + loss.detach() * (len(index) / len(y))
                if on_batch is not None:
                    on_batch(index, logits.detach())
            watch.add(total, steps=-(-len(y) // schedule.batch))
            if on_pass is not None:
                on_pass(p, total)
            if p == schedule.drop_after:
                optimiser = sgd(network.parameters(), schedule, schedule.lr * 0.1)
    return watch.finish().tolist()


def predict(
    network: nn.Module,
    x: Images,
    n: int | None = None,
    *,
    chunk: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logits (n, C) in eval mode, chunk by chunk, on the device; each module's mode is restored afterwards.

    Args:
        network: maps (b, c, h, w) to logits (b, C).
        x: images, see `Images`.
        n: how many; needed when x is a function.
        chunk: images per forward pass; None takes what is fastest for their size (16 of 32 x 32 on a CPU).
        device: where to compute; None means where the network is.

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
    try:
        with torch.inference_mode():
            logits = []
            for start in range(0, n, chunk):
                stop = min(start + chunk, n)
                images = x[start:stop] if isinstance(x, Tensor) else x(torch.arange(start, stop))
                logits.append(network(images.to(where)))
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(logits)  # outside inference mode, so that it may be a target in training


class TrainingData:
    """Images, labels and weights, dealt out in the seeded order and augmented.

    Raises:
        InputError: images and labels differ in number, or there are none.
    """

    def __init__(self, x: Images, y: Tensor, weight: Tensor | None, device: torch.device) -> None:
        if len(y) < 1:
            raise InputError("There are no images to train on.")
        if isinstance(x, Tensor) and len(x) != len(y):
            raise InputError(f"There are {len(x)} images but {len(y)} labels.")
        if weight is not None and weight.shape != (len(y),):
            raise InputError(f"There are {len(y)} images but weights of shape {tuple(weight.shape)}.")
        self.x = x.to(device) if isinstance(x, Tensor) else x
        self.y = y.to(device)
        self.weight = None if weight is None else weight.to(device)
        self.device = device

    def batches(
        self, schedule: Schedule, rngs: list[Rng], p: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """The batches of pass p for K networks side by side, each with its own order and augmentation.

        Yields:
            positions (K*b,) on the CPU, images (K*b, c, h, w), targets (K*b, ...), weights (K*b,) or None;
            the first b are the first network's.
        """
        orders = [torch.randperm(len(self.y), generator=rng.generator("order", p)) for rng in rngs]
        dsa = Dsa(schedule.augment)
        for b, start in enumerate(range(0, len(self.y), schedule.batch)):
            index = torch.cat([order[start : start + schedule.batch] for order in orders])
            here = index.to(self.device)
            images = self.x[here] if isinstance(self.x, Tensor) else self.x(index).to(self.device)
            if dsa.ops:
                channels, height, width = images.shape[1:]
                shape, rows = (channels, height, width), len(index) // len(rngs)
                draws = [dsa.draw(rows, shape, rng.generator("augment", p, b), one_op=True) for rng in rngs]
                images = dsa.apply(images, DsaRecord.concatenate(draws))
            yield index, images, self.y[here], None if self.weight is None else self.weight[here]


class LossWatch:
    """Keeps the loss of each pass and looks at it now and then, since each look waits for the device."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps = 0

    def add(self, loss: Tensor, steps: int) -> None:
        """Take the loss of one pass of so many steps; looks at all of them when it is time."""
        self._losses.append(loss)
        self._steps += steps
        if self._steps >= STEPS_BETWEEN_CHECKS:
            self.finish()
            self._steps = 0

    def finish(self) -> Tensor:
        """All losses so far, (passes, ...).

        Raises:
            Diverged: one is not finite.
        """
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0)
        wrong = (~torch.isfinite(losses)).nonzero()
        if len(wrong):
            raise Diverged(
                f"Training diverged: the loss of pass {int(wrong[0, 0]) + 1} is not finite; "
                "lower the learning rate, or look for extreme values in the images."
            )
        return losses


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
    """A new optimiser, without momentum yet, for the parameters that are to be trained."""
    trained = [p for p in parameters if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.SGD(trained, lr=lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay, fused=fused)


def device_of(network: nn.Module, device: torch.device | str | None = None) -> torch.device:
    """The given device, or the one that the network's parameters are on."""
    if device is not None:
        return torch.device(device)
    return next((p.device for p in network.parameters()), torch.device("cpu"))
