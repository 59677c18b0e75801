"""Teachers that label images: the relabeling half of decoupled distillation.

SRe2L (Yin, Xing and Shen, NeurIPS 2023, arXiv:2306.13092) labels with one teacher, EDC (Shao et al., NeurIPS 2024,
arXiv:2404.13733) with the mean of several, G-VBSM (Shao et al., CVPR 2024, arXiv:2311.17950) with a mean in which each
counts alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from datastill.core.errors import InputError, nearest
from datastill.store.files import digest
from datastill.training.hard import device_of, predict

MODES = ("eval", "batch")
COMBINATIONS = ("single", "mean", "norm_balanced")


class Labeler:
    """Logits of one or several teachers; neither they nor any global state is changed by a call.

    Args:
        teachers: networks mapping (n, c, h, w) to logits (n, K), all with the same K.
        mode: "eval" normalizes by the running statistics of batch norm. "batch" normalizes by those of the images at
            hand, so that an image's label depends on the batch that it is in; everything else, dropout included,
            stays as in evaluation. Networks without batch norm give the same labels in both.
        combine: "single" for one teacher; "mean" of the logits; "norm_balanced", the mean after each teacher's logits
            of the batch were scaled to the teachers' average Frobenius norm.
        columns: for data whose classes are some of the teachers': which of the K logits are kept, in the order of
            the data's classes. None keeps all.

    Raises:
        InputError: no teacher, several without a rule to combine them, or an unknown mode or combination.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        mode: str = "eval",
        combine: str = "single",
        columns: Sequence[int] | None = None,
    ) -> None:
        if mode not in MODES:
            raise InputError(f"Unknown labeling mode {mode!r}. {nearest(mode, MODES)}")
        if combine not in COMBINATIONS:
            raise InputError(f"Unknown combination of teachers {combine!r}. {nearest(combine, COMBINATIONS)}")
        if not teachers:
            raise InputError("Labeling needs at least one teacher.")
        if combine == "single" and len(teachers) > 1:
            raise InputError(f"There are {len(teachers)} teachers; combine them by 'mean' or 'norm_balanced'.")
        self.teachers = list(teachers)
        self.mode, self.combine = mode, combine
        self.columns = None if columns is None else torch.tensor(list(columns), dtype=torch.int64)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits of images.

        Args:
            x: images, (n, c, h, w), in the Space that the teachers were trained in. They are moved to each teacher's
                device; in mode "batch" they are one batch.

        Returns:
            (n, C) float32, on the device of `x`, without gradient.

        Raises:
            InputError: the teachers differ in their number of logits, or `columns` are beyond it.
        """
        logits = [self._logits(teacher, x).float().to(x.device) for teacher in self.teachers]
        if len({each.shape[1] for each in logits}) > 1:
            raise InputError(
                f"The teachers have {[each.shape[1] for each in logits]} logits; they need the same classes."
            )
        if self.columns is not None:
            if not 0 <= int(self.columns.min()) <= int(self.columns.max()) < logits[0].shape[1]:
                raise InputError(f"The columns of the teachers' logits are positions below {logits[0].shape[1]}.")
            logits = [each[:, self.columns.to(each.device)] for each in logits]
        if len(logits) == 1:
            return logits[0]
        if self.combine == "norm_balanced":
            logits = _balanced(logits)
        return torch.stack(logits).mean(0)

    def describe(self) -> dict[str, Any]:
        """How labels are made, with a hash of each teacher's weights and buffers; JSON-able."""
        return {
            "mode": self.mode,
            "combine": self.combine,
            "columns": None if self.columns is None else self.columns.tolist(),
            "teachers": [digest(teacher.state_dict()) for teacher in self.teachers],
        }

    def _logits(self, teacher: nn.Module, x: Tensor) -> Tensor:
        if self.mode == "eval":
            return predict(teacher, x)
        with _by_batch(teacher) as buffers:
            logits: Tensor = functional_call(teacher, buffers, (x.to(device_of(teacher)),))
        return logits


@contextlib.contextmanager
def _by_batch(teacher: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Batch norm in train mode and all else in eval mode; yields copies of its buffers, for it to update instead."""
    modes = [(module, module.training) for module in teacher.modules()]
    copies = {
        f"{path}.{name}" if path else name: buffer.clone()
        for path, module in teacher.named_modules()
        if isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }
    try:
        for module, _ in modes:
            module.training = isinstance(module, _BatchNorm)
        yield copies
    finally:
        for module, training in modes:
            module.training = training


def _balanced(logits: list[Tensor]) -> list[Tensor]:
    """Logits scaled to their average Frobenius norm; all-zero ones stay as they are."""
    norms = torch.stack([each.norm() for each in logits])
    factors = torch.where(norms > 0, norms.mean() / norms, torch.ones_like(norms))
    return [each * factor for each, factor in zip(logits, factors, strict=True)]
