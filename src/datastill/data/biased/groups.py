"""Accuracy by group: the one number that shows a network that has learned the bias instead of the class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from datastill.core.errors import InputError


class GroupAccuracy(NamedTuple):
    """Accuracies in [0, 1]; NaN where a group has no image."""

    mean: float  #: of all images, each counting alike
    aligned: float  #: of the images whose bias value is that of their class
    conflicting: float  #: of the others
    matrix: Tensor  #: by class and bias value, (C, B) float64


def group_accuracy(predictions: Tensor, y: Tensor, bias: Tensor, classes: int, num_bias: int) -> GroupAccuracy:
    """Accuracy of all images, of the aligned and of the conflicting ones, and of each (class, bias value).

    Args:
        predictions: predicted class positions, (n,) integer.
        y: class positions, (n,) of 0..classes-1.
        bias: bias values, (n,) of 0..num_bias-1; class c is aligned with the bias value c.
        classes: C.
        num_bias: B.

    Raises:
        InputError: lengths that differ, scores instead of predictions, or values out of range.
    """
    if not predictions.shape == y.shape == bias.shape or y.ndim != 1:
        shapes = ", ".join(str(tuple(t.shape)) for t in (predictions, y, bias))
        raise InputError(f"Predictions, labels and bias have shapes {shapes}; each must be (n,), so take the argmax.")
    predictions, y, bias = (t.detach().cpu().long() for t in (predictions, y, bias))
    for what, values, count in (("Labels", y, classes), ("Bias values", bias, num_bias)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < count:
            raise InputError(f"{what} must lie in 0..{count - 1}; check them and the number given.")
    right = (predictions == y).double()
    cell = y * num_bias + bias
    hits = torch.bincount(cell, weights=right, minlength=classes * num_bias)
    matrix = (hits / torch.bincount(cell, minlength=classes * num_bias)).view(classes, num_bias)
    return GroupAccuracy(float(right.mean()), float(right[y == bias].mean()), float(right[y != bias].mean()), matrix)
