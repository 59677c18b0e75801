"""What batch-norm layers see: batch statistics beside running ones (SRe2L, arXiv:2306.13092)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.errors import InputError

if TYPE_CHECKING:
    from datastill.models import NetworkFactory


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel, with a backward pass of one sweep over the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        over = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(x, over, correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        of_mean, of_variance = grads
        x, mean = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1]
        slope = (2 / count) * of_variance  # d v / d x = 2 (x - mu) / n
        found: Tensor = x * slope.view(shape) + (of_mean / count - slope * mean).view(shape)
        return found


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all axes but the second, each (c,), in float32 or wider.

    Args:
        x: activations (n, c), (n, c, l) or (n, c, h, w).
    """
    mean, variance = _Moments.apply(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    return mean, variance


def norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that keep running statistics, in the order of the module's definition.

    Raises:
        InputError: there are none.
    """
    found = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not found:
        raise InputError(
            f"{type(network).__name__} has no batch norm with running statistics, which recovery matches; take a "
            "network with batch norm (--network convnet:norm=batch or resnet18:norm=batch), or a method that needs "
            "none (rded)."
        )
    return found


def keeps_statistics(network: nn.Module) -> bool:
    """Whether any batch-norm layer keeps running statistics."""
    return any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in network.modules())


def batch_normed(factory: NetworkFactory) -> bool:
    """Whether networks of a family are tested with running statistics: with those of the images they trained on."""
    return factory.couples_samples and keeps_statistics(factory(0))


@dataclass
class StatRecorder:
    """Notes what each layer is given while a network runs: a context manager that leaves no hook behind.

    Attributes:
        layers: whose inputs are noted.
        moments: channel mean and biased variance of each layer's last input, differentiable; None before a run.
    """

    layers: list[_BatchNorm]
    moments: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)
    _hooks: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)

    @classmethod
    def of(cls, network: nn.Module) -> StatRecorder:
        """For all batch-norm layers of a network."""
        return cls(norm_layers(network))

    def __enter__(self) -> StatRecorder:
        self.moments = [None] * len(self.layers)
        self._hooks = [layer.register_forward_pre_hook(self._noting(k)) for k, layer in enumerate(self.layers)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _noting(self, k: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
            self.moments[k] = channel_moments(given[0])

        return note

    def distance(self, first: float = 1.0, power: int = 1) -> tuple[Tensor, Tensor]:
        """Distances of the noted moments to the running ones: of means, and of variances; each a scalar.

        sum_l m_l || mu_l - RM_l ||^p and sum_l m_l || v_l - RV_l ||^p, norms over channels, m_1 = `first`, else 1.

        Args:
            power: p, 1 as in the released code, or 2.

        Raises:
            InputError: no layer has run.
        """
        noted = [(m, layer) for m, layer in zip(self.moments, self.layers, strict=True) if m is not None]
        if not noted:
            raise InputError("None of the network's batch-norm layers was reached; nothing can be matched.")
        means, variances = [], []
        for k, ((mean, variance), layer) in enumerate(noted):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            scale = first if k == 0 else 1.0
            means.append(scale * torch.linalg.vector_norm(mean - layer.running_mean) ** power)
            variances.append(scale * torch.linalg.vector_norm(variance - layer.running_var) ** power)
        return torch.stack(means).sum(), torch.stack(variances).sum()


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to the cumulative average over clean batches (n, c, h, w); modes are as before.

    Training leaves an exponential average over its last few, augmented, batches.
    """
    layers = norm_layers(network)
    kept = [(layer, layer.momentum) for layer in layers]
    with restored(network), torch.no_grad():
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        for batch in batches:
            network(batch)
    for layer, momentum in kept:
        layer.momentum = momentum


@contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Put every module's training flag back at the end; starts with all in evaluation mode."""
    modes = [(m, m.training) for m in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
