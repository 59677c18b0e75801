"""Does a set that was handed over carry a trigger? A hint, class by class.

Images of a class are seen through a network that was trained on the set. A trigger that was distilled into one class
leaves a direction that its images share more than those of other classes do: the share of the largest singular value
of their centered features (Tran, Li and Madry, NeurIPS 2018, arXiv:1811.00636), in median deviations from the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from datastill.core.errors import InputError
from datastill.data.real import RealSet
from datastill.evaluation.evaluate import trained
from datastill.models import Network
from datastill.store.artifact import DistilledSet
from datastill.training.kernel_ridge import Regressor

#: Images of a class below which there is nothing that they could share.
LEAST = 3
#: Deviations above which a class is named.
NAMED = 3.5


@dataclass(frozen=True)
class Signature:
    """By class: share of the largest singular value, and how far it is from the others."""

    shares: tuple[float, ...]
    deviations: tuple[float, ...]
    suspected: tuple[int, ...]


def signature(made: DistilledSet, real: RealSet, *, networks: int = 3, seed: int = 0) -> Signature:
    """Look at a set; it says nothing of sets with fewer than three images of a class.

    Args:
        made: the set.
        real: for its Space and classes alone.
        networks, seed: that are trained on the set.

    Raises:
        InputError: fewer than three images of a class.
    """
    _refuse_few(made)
    return signature_of(trained(made, real, networks=networks, seed=seed), made)


def signature_of(networks: Sequence[nn.Module], made: DistilledSet) -> Signature:
    """The same of networks that were trained on the set; they are left in eval mode on the CPU.

    Raises:
        InputError: see `signature`.
    """
    _refuse_few(made)
    y = made.hard_labels
    found = []
    for network in networks:
        if isinstance(network, Regressor):
            raise InputError("There is no signature where no network is trained: a regression has no features.")
        network = network.cpu().eval()
        with torch.no_grad():
            features = cast(Network, network).embed(made.images).double()
        shares = []
        for c in range(len(made.class_names)):
            own = features[y == c]
            values = torch.linalg.svdvals(own - own.mean(0))
            shares.append(float(values[0] ** 2 / values.square().sum().clamp_min(1e-30)))
        found.append(shares)
    mean = torch.tensor(found, dtype=torch.float64).mean(0)
    middle = mean.median()
    spread = 1.4826 * (mean - middle).abs().median().clamp_min(1e-6)
    deviations = (mean - middle) / spread
    named = (deviations > NAMED).nonzero().flatten().tolist()
    return Signature(tuple(mean.tolist()), tuple(deviations.tolist()), tuple(named))


def _refuse_few(made: DistilledSet) -> None:
    if int(torch.bincount(made.hard_labels, minlength=len(made.class_names)).min()) < LEAST:
        raise InputError("With fewer than three images of a class there is no direction that they could share.")
