"""Arithmetic in bfloat16 where asked: convolutions and matrix products; weights, sums and losses stay float32."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from datastill.core.errors import InputError, nearest

PRECISIONS = ("float32", "bf16")


def casting(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which networks compute in `precision`.

    Nothing is cached, since a cast weight would outlive the update of the weight.

    Raises:
        InputError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r}. {nearest(precision, PRECISIONS)}")
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
