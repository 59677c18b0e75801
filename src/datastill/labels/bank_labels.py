"""How logits become stored numbers, and what they are when they come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest

Array = np.ndarray[Any, np.dtype[Any]]

_FLOATS = {"float16": "<f2", "float32": "<f4"}
_DTYPES = (*_FLOATS, "int8")


@dataclass(frozen=True)
class LabelCode:
    """A way to store rows of logits.

    With `top_k`, a row is its k largest logits, their classes and one logit for all others: the log of the mean of
    their exponentials at the temperature. A softmax at that temperature then has the right probabilities of the k
    classes and the right sum of the others', up to the rounding of the numbers. With k = C nothing is left out.

    Raises:
        InputError: an unknown dtype, or `top_k` below 1, without a temperature or with "int8".
    """

    dtype: str = "float16"  #: "float16", "float32", or "int8": 256 steps between a row's smallest and largest logit
    top_k: int | None = None  #: how many logits of a row are kept; None keeps all
    temperature: float | None = None  #: at which the student is trained; needed for `top_k`

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InputError(f"Unknown dtype of labels {self.dtype!r}. {nearest(self.dtype, _DTYPES)}")
        if self.temperature is not None and not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"The temperature of labels is a number above 0, not {self.temperature}.")
        if self.top_k is None:
            return
        if self.top_k < 1 or self.dtype == "int8":
            raise InputError("top_k keeps at least one logit, as 'float16' or 'float32'.")
        if self.temperature is None:
            raise InputError("top_k needs the temperature of the training, at which the other logits' sum is exact.")

    def fields(self, classes: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each stored array's row, for C classes.

        Raises:
            InputError: more logits are to be kept than there are.
        """
        if self.dtype == "int8":
            return {"logits": ((classes,), "|u1"), "ranges": ((2,), "<f4")}
        dtype = _FLOATS[self.dtype]
        if self.top_k is None:
            return {"logits": ((classes,), dtype)}
        if self.top_k > classes:
            raise InputError(f"There are {classes} logits in a row; top_k cannot be {self.top_k}.")
        return {"logits": ((self.top_k,), dtype), "classes": ((self.top_k,), unsigned(classes)), "tail": ((), dtype)}

    def encode(self, logits: Tensor) -> dict[str, Array]:
        """Rows of logits (n, C) as arrays with the names of `fields`.

        Raises:
            InputError: logits that are not finite, or too large for float16.
        """
        rows = logits.detach().to("cpu", torch.float32)
        if not bool(torch.isfinite(rows).all()):
            raise InputError("The teacher gives logits that are not finite; look at its weights and at the images.")
        if self.dtype == "int8":
            return _stepped(rows)
        if self.top_k is None:
            return {"logits": self._floats(rows)}
        values, classes = rows.topk(self.top_k, 1)
        return {
            "logits": self._floats(values),
            "classes": classes.numpy().astype(unsigned(rows.shape[1])),
            "tail": self._floats(self._tail(rows, classes)),
        }

    def decode(self, arrays: Mapping[str, Array], classes: int) -> Tensor:
        """Rows of logits (n, C) float32 from rows of the arrays."""
        logits = torch.from_numpy(arrays["logits"].astype(np.float32))
        if self.dtype == "int8":
            low, step = torch.from_numpy(np.array(arrays["ranges"])).split(1, 1)
            return low + logits * step
        if self.top_k is None:
            return logits
        kept = torch.from_numpy(arrays["classes"].astype(np.int64))
        tail = torch.from_numpy(arrays["tail"].astype(np.float32))
        return tail[:, None].repeat(1, classes).scatter_(1, kept, logits)

    def _floats(self, values: Tensor) -> Array:
        stored = values.to(getattr(torch, self.dtype))
        if not bool(torch.isfinite(stored).all()):
            raise InputError("The teacher's logits are too large for float16; store them with dtype='float32'.")
        return stored.numpy()

    def _tail(self, rows: Tensor, kept: Tensor) -> Tensor:
        """temperature * log(mean(exp(z / temperature))) over the logits z that are not kept, (n,); 0 if all are."""
        rest = rows.shape[1] - kept.shape[1]
        if not rest or self.temperature is None:
            return torch.zeros(len(rows))
        others = rows.double().scatter(1, kept, -math.inf) / self.temperature
        return (self.temperature * (others.logsumexp(1) - math.log(rest))).float()


def unsigned(count: int) -> str:
    """The smallest dtype for the integers 0..count - 1."""
    return next(dtype for dtype, most in (("|u1", 2**8), ("<u2", 2**16), ("<u4", 2**32)) if count <= most)


def _stepped(rows: Tensor) -> dict[str, Array]:
    """Each row as 256 steps from its smallest to its largest value; the first and the length of a step beside it."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = (high - low) / 255
    positions = torch.where(step > 0, (rows - low) / step, torch.zeros_like(rows))
    return {"logits": positions.round().clamp(0, 255).byte().numpy(), "ranges": torch.cat([low, step], 1).numpy()}
