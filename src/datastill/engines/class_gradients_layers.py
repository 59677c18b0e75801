"""Per-class weight gradients of single layers, from the layer's input and the loss gradient of its output.

Every formula is twice differentiable. Images are sorted by class, `counts` images in each of K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Counts = Sequence[int]
#: (input (n, ...), gradient of the output (n, ...), counts) -> gradients (K, *parameter.shape)
Formula = Callable[[Tensor, Tensor, Counts], Tensor]


@dataclass(frozen=True)
class Layer:
    """One call of a layer.

    Attributes:
        input: what the layer was given, images along the first axis.
        formulas: the call's parameters (None for one it does without), each with its formula.
        coupled: whether the layer mixes images.
    """

    input: Tensor
    formulas: tuple[tuple[Tensor | None, Formula], ...]
    coupled: bool = False


def class_sums(values: Tensor, counts: Counts) -> Tensor:
    """Sums over the images of each class; (n, ...) to (K, ...)."""
    if len(set(counts)) == 1:
        return values.unflatten(0, (len(counts), counts[0])).sum(1)
    return torch.stack([part.sum(0) for part in values.split(list(counts))])


def linear_weight(x: Tensor, slope: Tensor, counts: Counts) -> Tensor:
    """sum_i slope_i x_i^T; x (n, ..., in), slope (n, ..., out) to (K, out, in)."""
    x, slope = (t.reshape(len(t), -1, t.shape[-1]) for t in (x.to(slope.dtype), slope))  # (n, m, in), (n, m, out)
    if len(set(counts)) == 1:
        x, slope = (t.reshape(len(counts), -1, t.shape[-1]) for t in (x, slope))  # (K, n m / K, ...)
        return slope.transpose(1, 2) @ x
    parts = zip(slope.split(list(counts)), x.split(list(counts)), strict=True)
    return torch.stack([s.flatten(0, 1).T @ h.flatten(0, 1) for s, h in parts])


def linear_bias(x: Tensor, slope: Tensor, counts: Counts) -> Tensor:
    """sum_i slope_i; slope (n, ..., out) to (K, out)."""
    return class_sums(slope.reshape(len(slope), -1, slope.shape[-1]).sum(1), counts)


def conv2d_weight(
    weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, x: Tensor, slope: Tensor, counts: Counts
) -> Tensor:
    """torch's own kernel on the slice of each class; x (n, in, h, w), slope (n, out, h', w') to (K, *weight.shape)."""
    if isinstance(padding, str):
        x, padding = _padded(x, padding, weight.shape[2:], _pair(dilation)), 0
    x, like = x.to(slope.dtype), weight.to(slope.dtype)
    options = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups, [False, True, False])
    rows = []
    for s, h in zip(slope.split(list(counts)), x.split(list(counts)), strict=True):
        if len(s):
            rows.append(torch.ops.aten.convolution_backward(s, h, like, None, *options)[1])
        else:
            rows.append(torch.zeros_like(like))
    return torch.stack(rows)


def channel_sums(values: Tensor, counts: Counts) -> Tensor:
    """Sums over images and positions; (n, C, ...) to (K, C)."""
    return class_sums(values.flatten(2).sum(2) if values.ndim > 2 else values, counts)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Layer:
    formula = partial(conv2d_weight, weight, stride, padding, dilation, groups)
    return Layer(input, ((weight, formula), (bias, lambda x, slope, counts: channel_sums(slope, counts))))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Layer:
    return Layer(input, ((weight, linear_weight), (bias, linear_bias)))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Layer:
    return _affine(input, weight, bias, lambda x: F.group_norm(x, num_groups, eps=eps))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Layer:
    return _affine(input, weight, bias, lambda x: F.batch_norm(x, running_mean, running_var, eps=eps), coupled=training)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Layer:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _affine(input, weight, bias, lambda x: F.instance_norm(x, eps=eps))


def _affine(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: Callable[[Tensor], Tensor],
    coupled: bool = False,
) -> Layer:
    """z = weight * normalize(x) + bias, one weight and bias per channel."""

    def of_weight(x: Tensor, slope: Tensor, counts: Counts) -> Tensor:
        return channel_sums(slope * normalize(x), counts)

    formulas = ((weight, of_weight), (bias, lambda x, slope, counts: channel_sums(slope, counts)))
    return Layer(input, formulas, coupled)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Layer:
    shape = tuple(normalized_shape)

    def of_bias(x: Tensor, slope: Tensor, counts: Counts) -> Tensor:
        return class_sums(slope.reshape(len(slope), -1, *shape).sum(1), counts)

    def of_weight(x: Tensor, slope: Tensor, counts: Counts) -> Tensor:
        return of_bias(x, slope * F.layer_norm(x, shape, eps=eps), counts)

    return Layer(input, ((weight, of_weight), (bias, of_bias)), coupled=input.ndim == len(shape))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _padded(x: Tensor, padding: str, kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What "same" and "valid" do to the input; "same" puts an odd pixel last."""
    if padding == "valid":
        return x
    height, width = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


#: What `torch.nn.functional` calls to the layer's description, given the same arguments.
LAYERS: dict[Any, Callable[..., Layer]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
}
