"""scikit-learn's digits: 1,797 gray images of 8 x 8, in the package and so always at hand."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.core.rng import undisturbed
from datastill.data.raw import Raw, Request, Split, refuse_choice
from datastill.data.sources import source

if TYPE_CHECKING:
    import numpy as np


@source("digits")
def digits(request: Request, *, train: int = 899) -> Raw:
    """Stratified train and test split of the digits, pixels k/16.

    Args:
        request: how to read; the seed draws the split.
        train: training images; the default makes halves of 899 and 898.
    """
    import numpy as np
    import torch

    from datastill.data.arrays import array_split
    from datastill.data.stratify import hold_out

    refuse_choice(request, "digits")
    table = _table()
    images = (table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = torch.from_numpy(table[:, -1]).long()
    count = len(labels)
    if not 10 <= train <= count - 10:
        raise InputError(f"digits:train={train} must lie between 10 and {count - 10}; the rest is the test split.")
    kept, held = hold_out(labels, 10, count - train, request.seed, "digits")

    def part(rows: torch.Tensor) -> Split:
        return array_split(images[rows.numpy()], labels[rows].tolist(), request, "digits")

    note = f"digits: a seeded stratified split into {len(kept)} training and {len(held)} test images"
    return Raw("digits", "digits", part(kept), part(held), notes=(note,))


def _table() -> np.ndarray:
    """Rows of 64 pixels and a label, (1797, 65), from scikit-learn's file.

    Importing scikit-learn takes seconds, with all of scipy.stats and pandas, and this file is all that is wanted of it.
    """
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    for place in (found and found.submodule_search_locations) or ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt", encoding="ascii") as lines:
                return np.loadtxt(lines, delimiter=",")
    with undisturbed():  # importing scikit-learn imports rich, which draws names for its styles
        from sklearn.datasets import load_digits
    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
