"""Classes in an order, cut into steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from datastill.core.errors import InputError
from datastill.data.real import RealSet


def class_order(classes: int, seed: int) -> list[int]:
    """Of the published experiments: a permutation by numpy's legacy generator with this seed."""
    return [int(c) for c in np.random.RandomState(seed).permutation(classes)]


def in_steps(order: Sequence[int], steps: int) -> list[list[int]]:
    """The order cut into steps; where they do not divide the classes, the first have one more.

    Raises:
        InputError: more steps than classes.
    """
    if steps > len(order):
        raise InputError(f"There are {len(order)} classes, which cannot arrive in {steps} steps; take fewer.")
    size, more = divmod(len(order), steps)
    cuts = [k * size + min(k, more) for k in range(steps + 1)]
    return [list(order[a:b]) for a, b in itertools.pairwise(cuts)]


def of_classes(real: RealSet, classes: Sequence[int]) -> RealSet:
    """The images of these classes alone, numbered in this order, in the Space of the whole set; test split and all."""
    place = torch.full((real.classes,), -1, dtype=torch.int64)
    place[torch.tensor(classes)] = torch.arange(len(classes))
    part = real.subset((place[real.labels] >= 0).nonzero().flatten())
    return dataclasses.replace(
        part,
        labels=place[part.labels],
        class_names=tuple(real.class_names[c] for c in classes),
        label_ids=tuple(range(len(classes))),
        test=None if real.test is None else of_classes(real.test, classes),
        source="",
        options={},
    )
