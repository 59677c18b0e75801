"""From a source's own labels to class positions 0..C-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.data.raw import LabelId


def read_labels(labels: Any) -> list[LabelId]:
    """One integer or string per image, out of a list, array or tensor.

    Raises:
        InputError: labels of another shape, or that are neither whole numbers nor strings.
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise InputError("Labels must be a flat list, one per image; these are of unequal lengths.") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(
            f"Labels have shape {array.shape}; give one label per image, (n,) (for one-hot labels, take their argmax)."
        )
    if array.dtype.kind in "iub":
        return [int(v) for v in array.tolist()]
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.round(array)).any():
            odd = next(v for v in array.tolist() if not np.isfinite(v) or v != round(v))
            raise InputError(f"Label {odd} is not a whole number; labels are class numbers or names.")
        return [int(v) for v in array.tolist()]
    return _read_objects(array.tolist() if not isinstance(labels, list | tuple) else list(labels))


def _read_objects(values: list[Any]) -> list[LabelId]:
    if all(isinstance(v, str) for v in values):
        return [str(v) for v in values]
    if all(isinstance(v, int | np.integer | bool) for v in values):
        return [int(v) for v in values]
    if all(isinstance(v, Tensor | np.ndarray) and np.size(v) == 1 for v in values):
        return read_labels([v.item() for v in values])
    for value in values:
        if not isinstance(value, int | str | np.integer):
            raise InputError(
                f"Label {value!r} is neither a whole number nor a string; labels are class numbers or names."
            )
    raise InputError("Labels mix whole numbers and strings; use one kind.")


class Classes:
    """The classes of a set: the source's labels that occur in training, sorted, and their names.

    Args:
        train: the source's labels of the training images.
        names: class names by integer label (or, for string labels, in sorted order), or None.

    Raises:
        InputError: no images, one class only, a negative label, or a label beyond the names.
    """

    def __init__(self, train: Sequence[LabelId], names: Sequence[str] | None) -> None:
        if not len(train):
            raise InputError("There are no images to load; check the path and the file types.")
        self.ids: list[LabelId] = sorted(set(train))
        self.notes: tuple[str, ...] = ()
        self._refuse_unlabeled(self.ids)
        self.names = self._named(names)
        if len(self.ids) == 1:
            raise InputError(f"All images are of one class ({self.names[0]!r}); at least two are needed.")
        self._position = {label: c for c, label in enumerate(self.ids)}

    def positions(self, labels: Sequence[LabelId], where: str) -> Tensor:
        """Class positions of `labels`, (n,) int64; `where` names the split in errors."""
        unknown = sorted({str(v) for v in labels if v not in self._position})
        if unknown:
            self._refuse_unlabeled(v for v in labels if v not in self._position)
            raise InputError(
                f"The {where} split has the label {unknown[0]!r}, which no training image has; "
                "remove those images or add the class to the training split."
            )
        return torch.tensor([self._position[v] for v in labels], dtype=torch.int64)

    @staticmethod
    def _refuse_unlabeled(labels: Any) -> None:
        for label in labels:
            if isinstance(label, int) and label < 0:
                raise InputError(
                    f"Label {label} is negative, which marks unlabeled images; "
                    "leave those out or number the classes from 0."
                )

    def _named(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            return tuple(str(label) for label in self.ids)
        if len(set(names)) != len(names):
            raise InputError("Class names repeat; give each class a name of its own.")
        if all(isinstance(label, str) for label in self.ids):
            if len(names) != len(self.ids):
                raise InputError(
                    f"{len(names)} class names were given for {len(self.ids)} classes; "
                    "give one per class, in the sorted order of the labels."
                )
            return tuple(names)
        beyond = [label for label in self.ids if int(label) >= len(names)]
        if beyond:
            raise InputError(
                f"Label {beyond[0]} is out of range: there are {len(names)} class names, "
                f"so labels run from 0 to {len(names) - 1}; correct the label or name its class."
            )
        if len(self.ids) < len(names):
            absent = len(names) - len(self.ids)
            self.notes = (f"{absent} of {len(names)} named classes have no training image and are left out",)
        return tuple(names[int(label)] for label in self.ids)
