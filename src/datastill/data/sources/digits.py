"""scikit-learn's digits: 1,797 gray images of 8 x 8, in the package and so always at hand."""

from __future__ import annotations

from datastill.core.errors import InputError
from datastill.core.rng import undisturbed
from datastill.data.raw import Raw, Request, Split, refuse_choice
from datastill.data.sources import source


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

    with undisturbed():  # importing scikit-learn imports rich, which draws names for its styles
        from sklearn.datasets import load_digits

    refuse_choice(request, "digits")
    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    labels = torch.from_numpy(bunch.target).long()
    count = len(labels)
    if not 10 <= train <= count - 10:
        raise InputError(f"digits:train={train} must lie between 10 and {count - 10}; the rest is the test split.")
    kept, held = hold_out(labels, 10, count - train, request.seed, "digits")

    def part(rows: torch.Tensor) -> Split:
        return array_split(images[rows.numpy()], labels[rows].tolist(), request, "digits")

    note = f"digits: a seeded stratified split into {len(kept)} training and {len(held)} test images"
    return Raw("digits", "digits", part(kept), part(held), notes=(note,))
