"""Which image gets which bias value: exact counts, not a draw per image.

The rule is that of the generator of Nam et al., "Learning from Failure" (NeurIPS 2020, arXiv:2007.02561), whose
sets DFA and SelecMix use too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng


def assign_bias(targets: Tensor, num_bias: int, conflict_ratio: float, seed: int | None = None) -> Tensor:
    """A bias value for each image; class c is aligned with the bias value c.

    In a class of n images, n (1 - `conflict_ratio`) are aligned and every other bias value has the same share of
    the rest. Each of these counts is within one of its fraction, and they sum to n.

    Args:
        targets: class positions, (n,) int64, below `num_bias`.
        num_bias: B, how many bias values there are, at least 2.
        conflict_ratio: share of bias-conflicting images in each class, of [0, 1].
        seed: None gives a class's first images the bias value 0, the next ones 1 and so on, as the published
            generator does; a number shuffles within the class first. The counts are the same.

    Returns:
        (n,) int64 of 0..B-1.

    Raises:
        InputError: a ratio outside [0, 1], fewer than two bias values, or a class without a bias value.
    """
    if not 0 <= conflict_ratio <= 1:
        raise InputError(f"The conflict ratio is {conflict_ratio} and must lie in [0, 1]; 0.05 is five per cent.")
    rows = np.full((num_bias, num_bias), conflict_ratio / max(1, num_bias - 1))
    np.fill_diagonal(rows, 1 - conflict_ratio)
    return _assign(targets, rows, seed)


def assign_unbiased(targets: Tensor, num_bias: int, seed: int | None = None) -> Tensor:
    """A bias value for each image of a test split: every value as often as any other, in each class.

    Arguments, result and errors are those of `assign_bias`; one image in B is aligned.
    """
    return _assign(targets, np.full((num_bias, num_bias), 1 / max(1, num_bias)), seed)


def _assign(targets: Tensor, rows: np.ndarray, seed: int | None) -> Tensor:
    num_bias = len(rows)
    if num_bias < 2:
        raise InputError(f"There must be at least two bias values, not {num_bias}.")
    targets = torch.as_tensor(targets).long()
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_bias:
        raise InputError(
            f"Classes run from {int(targets.min())} to {int(targets.max())} and bias values from 0 to {num_bias - 1}; "
            "every class needs a bias value of its own number."
        )
    bias = torch.zeros(len(targets), dtype=torch.int64)
    for c in targets.unique().tolist():
        members = (targets == c).nonzero().flatten()
        if seed is not None:
            members = members[torch.randperm(len(members), generator=Rng(seed).generator("bias", c))]
        # the k-th image takes the first value whose milestone is strictly greater than k; ties round to even
        milestones = np.rint(np.cumsum(rows[c]) * len(members))
        values = np.searchsorted(milestones, np.arange(len(members)), side="right")
        bias[members] = torch.from_numpy(values)
    return bias
