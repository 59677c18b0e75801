"""Two-dimensional convolution whose second derivative uses the kernels of the first.

torch writes the double backward of a convolution with respect to the weights as a convolution with kernels as large
as the activations: on a CPU two to five times as slow as the kernel that computes weight gradients. The value and the
first two derivatives here are the same maths; there is no third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

#: stride, padding, dilation (each for rows and columns) and groups
Geometry = tuple[list[int], list[int], list[int], int]


def _backward(gy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: list[bool]) -> tuple[Any, Any, Any]:
    """Gradients of x, w and bias, those in `mask`, for the gradient gy of conv2d(x, w)."""
    stride, padding, dilation, groups = geometry
    bias = [len(w)] if mask[2] else None
    found: tuple[Any, Any, Any] = torch.ops.aten.convolution_backward(
        gy, x, w, bias, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return found


class _Gradient(torch.autograd.Function):
    """(gy, x, w) -> gradients of x, w and bias, and the derivative of that.

    With a `tally`, the gradient of w is a row of zeros: only its inner product with v is wanted, where v is what the
    second derivative brings, and <gw, v> = <gy, conv2d(x, v)> is added to the tally when that is computed anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: list[bool], tally: Tensor | None
    ) -> Any:
        ctx.save_for_backward(gy, x, w)
        ctx.set_materialize_grads(False)
        ctx.geometry, ctx.tally = geometry, tally
        if tally is None or not mask[1]:
            return _backward(gy, x, w, geometry, mask)
        gx = _backward(gy, x, w, geometry, [True, False, False])[0] if mask[0] else None
        return gx, w.new_zeros(()).expand_as(w), gy.sum((0, 2, 3)) if mask[2] else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
        gy, x, w = ctx.saved_tensors
        vgy = gx = gw = None
        if ctx.needs_input_grad[0]:
            vgy = torch.zeros_like(gy) if vw is None else F.conv2d(x, vw, None, *ctx.geometry)
            if ctx.tally is not None:
                ctx.tally += torch.dot(vgy.flatten(), gy.flatten())
            if vx is not None:
                vgy += F.conv2d(vx, w, None, *ctx.geometry)
            if vb is not None:
                vgy += vb.view(1, -1, 1, 1)
        if ctx.needs_input_grad[1] and vw is not None:
            gx = _backward(gy, x, vw, ctx.geometry, [True, False, False])[0]
        if ctx.needs_input_grad[2] and vx is not None:
            gw = _backward(gy, vx, w, ctx.geometry, [False, True, False])[1]
        return vgy, gx, gw, None, None, None


class _Convolution(torch.autograd.Function):
    """conv2d; gradients of x, w, bias at places in `out` are left out of the first derivative, not of the second."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, out: tuple[int, ...], tally: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry, ctx.out, ctx.tally = geometry, out, tally
        return F.conv2d(x, w, b, *geometry)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        again = torch.is_grad_enabled()  # this is the first derivative, to be differentiated once more
        mask = [need and not (again and k in ctx.out) for k, need in enumerate(ctx.needs_input_grad[:3])]
        return (*_Gradient.apply(gy, x, w, ctx.geometry, mask, ctx.tally if again else None), None, None, None)


class FastDoubleBackward:
    """A model (theta, x) -> logits whose convolutions are those above, wherever they can be; for one call.

    The gradient of x is left out of the first derivative: it is wanted from the second only.

    Args:
        model: a function of flat weights, see `engines.flat.FlatModel`.
        whole: compute the first derivative in theta whole. Otherwise it is zero for convolution weights that are
            views of theta, and what they would have added to its inner product with the direction of the second
            derivative is in `tally` once that was taken.

    Attributes:
        tally: the sum of those inner products, 0-dim.
    """

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor], whole: bool = False) -> None:
        self.model, self.whole = model, whole
        self.tally = torch.zeros(())

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        self.tally = torch.zeros_like(theta[0].detach())
        with _Replacing(None if self.whole else theta, x, self.tally):
            return self.model(theta, x)


def second_order() -> TorchFunctionMode:
    """Inside of it convolutions are those above, with a first derivative in x alone: for penalties on that."""
    return _Replacing(None, None, torch.zeros(()))


class _Replacing(TorchFunctionMode):
    """Puts `_Convolution` in the place of conv2d; without images the first derivative is theirs alone, not weights'."""

    def __init__(self, theta: Tensor | None, images: Tensor | None, tally: Tensor) -> None:
        super().__init__()
        self.theta, self.images, self.tally = theta, images, tally

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = self._conv2d(*args, **(kwargs or {})) if func is torch.conv2d else None
        return func(*args, **(kwargs or {})) if found is None else found

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """None for what is left to torch: padding by name, single images, mixed precision."""
        if isinstance(padding, str) or input.ndim != 4 or torch.is_autocast_enabled(input.device.type):
            return None
        geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
        tally = self.tally if weight._is_view() and weight._base is self.theta else None
        out = (1, 2) if self.images is None else (0,) if input is self.images else ()
        found: Tensor = _Convolution.apply(input, weight, bias, geometry, out, tally)
        return found


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
