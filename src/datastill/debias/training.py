"""`train_debiased`: a network trained so that it resists a bias of the set it is trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.rng import Rng
from datastill.debias.dfa import Dfa, DfaTrainer
from datastill.debias.selecmix import SelecMix, SelecMixTrainer
from datastill.engines.training import Images
from datastill.models import Network, NetworkFactory

#: Options and trainer of every way.
_WAYS: dict[str, tuple[type[Dfa] | type[SelecMix], Any]] = {
    "dfa": (Dfa, DfaTrainer),
    "selecmix": (SelecMix, SelecMixTrainer),
}


def train_debiased(
    network_factory: NetworkFactory,
    x: Images,
    y: Tensor,
    how: str = "dfa",
    *,
    rng: Rng,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
    **options: Any,
) -> Network:
    """Train a network on a labelled set, real or synthetic, without being told its bias.

    A set that holds no image against its bias leaves nothing to find: sets distilled from biased data without
    re-weighting are nearly so, and the gain on them is small or negative.

    Args:
        network_factory: builds the network; "dfa" builds two of them, under one linear layer.
        x: images in the set's Space, (n, c, h, w), or a function from positions (b,) to images.
        y: class positions, (n,) int64.
        how: "dfa" or "selecmix".
        rng: of every draw.
        device: where to train.
        on_step: called after every step with its number, from 0.
        **options: of `dfa.Dfa` or `selecmix.SelecMix`.

    Returns:
        The network as it is after the last step, in train mode.

    Raises:
        InputError: unknown `how` or option, a number out of range, or labels that are not class positions.
        Diverged: a loss is not finite.
    """
    if how not in _WAYS:
        raise InputError(f"There is no de-biased training {how!r}. {nearest(how, _WAYS)}")
    settings, trainer = _WAYS[how]
    known = settings.__dataclass_fields__
    for name in options:
        if name not in known:
            raise InputError(f"{how} has no option {name!r}. {nearest(name, known)}")
    network: Network = trainer(network_factory, y, settings(**options), rng, device).train(x, on_step)
    return network
