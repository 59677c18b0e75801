"""Several networks of one architecture trained side by side: one `vmap` instead of K loops.

Each network keeps its own initial weights, order of the data and augmentation, and ends with the weights that
`train` would have given it alone, up to rounding (float64 1e-10 after 50 passes). On a GPU this saves
launching K times as many small kernels; on a CPU it is slower than one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from datastill.core import compilation
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.training.hard import (
    Images,
    LossWatch,
    Schedule,
    TrainingData,
    cross_entropy,
    device_of,
    drop,
    optimizer_of,
    outputs,
    train,
)


def train_many(
    networks: Sequence[nn.Module],
    x: Images,
    y: Tensor,
    schedule: Schedule,
    rngs: Sequence[Rng],
    *,
    stacked: bool | None = None,
    weight: Tensor | None = None,
    on_pass: Callable[[int, int, Tensor], None] | None = None,
    device: torch.device | str | None = None,
    compiled: bool = False,
    chunk: int | None = None,
) -> list[list[float]]:
    """Train K networks in place on the same data, network k with rngs[k], as `train` would each.

    Args:
        networks: K networks, each mapping (b, c, h, w) to logits (b, C).
        x, y, schedule, weight, device, chunk: as for `train`.
        rngs: one family of generators per network.
        stacked: side by side (True) or one after the other (False). None chooses: side by side on CUDA for
            networks that can be stacked, else one after the other, which is faster on a CPU.
        on_pass: called with the network's position, the pass's index and its mean loss (0-dim tensor).
        compiled: as for `train`; without effect on networks that are trained side by side.

    Returns:
        For each network, the mean loss of each pass.

    Raises:
        Diverged: a loss is not finite.
        InputError: networks and rngs differ in number, or `stacked` is asked of networks that cannot be.
    """
    if len(networks) != len(rngs):
        raise InputError(f"There are {len(networks)} networks but {len(rngs)} seeds.")
    if not networks:
        return []
    where = device_of(networks[0], device)
    obstacle = why_not_stacked(networks)
    if stacked and obstacle:
        raise InputError(f"These networks cannot be trained stacked: {obstacle}; use stacked=None.")
    maybe = where.type == "cuda" and len(networks) > 1 and not obstacle
    if stacked or (stacked is None and maybe):
        data = TrainingData(x, y, weight, where)
        nets = [network.to(where).train() for network in networks]
        if stacked or _vmap_works(nets[0], data):
            return _train_stacked(nets, data, schedule, list(rngs), on_pass)
    losses = []
    for k, (network, rng) in enumerate(zip(networks, rngs, strict=True)):
        tell = None if on_pass is None else _tell(on_pass, k)
        losses.append(
            train(
                network, x, y, schedule, rng, weight=weight, on_pass=tell, device=where, compiled=compiled, chunk=chunk
            )
        )
    return losses


def why_not_stacked(networks: Sequence[nn.Module]) -> str | None:
    """Why these networks cannot be trained side by side, or None when they can.

    They need one architecture, no buffers (running statistics), no dropout and every parameter trained.
    """
    first = networks[0]
    shapes = {name: p.shape for name, p in first.named_parameters()}
    if not shapes:
        return "they have no parameters"
    for network in networks:
        if str(network) != str(first) or {n: p.shape for n, p in network.named_parameters()} != shapes:
            return "they differ in architecture"
        if any(True for _ in network.buffers()):
            return "they have buffers, such as the running statistics of batch norm"
        if any(isinstance(module, compilation.DRAWING_LAYERS) for module in network.modules()):
            return "they draw random numbers, as dropout does"
        if not all(p.requires_grad for p in network.parameters()):
            return "some of their parameters are frozen"
    return None


def _train_stacked(
    networks: list[nn.Module],
    data: TrainingData,
    schedule: Schedule,
    rngs: list[Rng],
    on_pass: Callable[[int, int, Tensor], None] | None,
) -> list[list[float]]:
    count, n = len(networks), len(data.y)
    data.classes = outputs(networks[0], data) if schedule.cutmix else 0
    weights: dict[str, Tensor] = stack_module_state(networks)[0]  # name -> (K, ...)
    gradients_of = _gradients_side_by_side(networks[0], data.weight is not None)
    optimizer = optimizer_of(weights.values(), schedule)
    watch = LossWatch()
    for p in range(schedule.passes):
        total = torch.zeros(count, device=data.device)
        for index, images, target, weight in data.batches(schedule, rngs, p):
            folded = (images, target) if weight is None else (images, target, weight)
            side = (t.reshape(count, -1, *t.shape[1:]) for t in folded)
            gradients, loss = gradients_of({name: w.detach() for name, w in weights.items()}, *side)
            for name, w in weights.items():
                w.grad = gradients[name]
            optimizer.step()
            total = total + loss * (len(index) / count / n)
        watch.add(total, steps=-(-n // schedule.batch))
        if on_pass is not None:
            for k in range(count):
                on_pass(k, p, total[k])
        drop(optimizer, schedule, p)
    losses = watch.finish()
    with torch.no_grad():
        for k, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.copy_(weights[name][k])
    return losses.T.tolist() if len(losses) else [[] for _ in networks]


def _gradients_side_by_side(network: nn.Module, weighted: bool) -> Callable[..., tuple[dict[str, Tensor], Tensor]]:
    """(weights, images, targets[, image weights]), each with a leading K -> (gradients, losses (K,))."""

    def loss_of_one(parameters: dict[str, Tensor], images: Tensor, *labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(network, parameters, (images,)), *labels)

    return vmap(grad_and_value(loss_of_one), in_dims=(0,) * (4 if weighted else 3), randomness="error")


def _vmap_works(network: nn.Module, data: TrainingData) -> bool:
    """Whether the network's own code survives `vmap`: tried on two copies of it and the first image."""
    index = torch.zeros(1, dtype=torch.int64)
    images = data.x[:1] if isinstance(data.x, Tensor) else data.x(index).to(data.device)
    weights = {name: torch.stack([p.detach(), p.detach()]) for name, p in network.named_parameters()}
    try:
        pair = [torch.stack([t, t]) for t in (images, data.y[:1])]
        _gradients_side_by_side(network, weighted=False)(weights, *pair)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def _tell(on_pass: Callable[[int, int, Tensor], None], k: int) -> Callable[[int, Tensor], None]:
    return lambda p, loss: on_pass(k, p, loss)
