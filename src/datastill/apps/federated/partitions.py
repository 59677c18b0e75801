"""Which real images a client holds: every image is with exactly one client."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.rng import Rng
from datastill.data.stratify import members_by_class

#: Draws of a Dirichlet partition until every client has enough images.
TRIES = 200


def partition(labels: Tensor, clients: int, how: str = "iid", *, seed: int = 0, min_size: int = 1) -> list[Tensor]:
    """Positions of each client's images, ascending; together they are all positions, each once.

    Args:
        labels: class positions, (n,) int64.
        clients: how many there are.
        how: "iid"; "dirichlet:ALPHA", shares of every class over clients drawn from a symmetric Dirichlet
            distribution, drawn again until all clients have `min_size` images; "classes:K", K classes for each client.
        seed: of the draw.
        min_size: images that every client must have.

    Raises:
        InputError: no such partition, or none that gives every client enough images.
    """
    name, _, text = how.partition(":")
    kinds: dict[str, Callable[[Tensor, int, str, Rng, int], list[Tensor]]]
    kinds = {"iid": _iid, "dirichlet": _dirichlet, "classes": _by_classes}
    if name not in kinds:
        raise InputError(f"There is no partition {name!r}. {nearest(name, kinds)}")
    if clients * max(1, min_size) > len(labels):
        raise InputError(
            f"{clients} clients of at least {max(1, min_size)} images need {clients * max(1, min_size):,}, and there "
            f"are {len(labels):,}; take fewer clients."
        )
    return [index.sort().values for index in kinds[name](labels, clients, text, Rng(seed), min_size)]


def _iid(labels: Tensor, clients: int, text: str, rng: Rng, min_size: int) -> list[Tensor]:
    if text:
        raise InputError(f"The partition iid has no option, and {text!r} is given; write iid.")
    order = torch.randperm(len(labels), generator=rng.generator("partition"))
    return list(order.tensor_split(clients))


def _dirichlet(labels: Tensor, clients: int, text: str, rng: Rng, min_size: int) -> list[Tensor]:
    alpha = _number(text or "0.5", "dirichlet", "ALPHA above 0, as in dirichlet:0.5")
    if not 1e-6 <= alpha <= 1e6:
        raise InputError(f"ALPHA of a Dirichlet partition must be from 1e-6 to 1e6, not {text}.")
    members = members_by_class(labels, int(labels.max()) + 1)
    for attempt in range(TRIES):
        generator = rng.numpy("partition", attempt)
        parts: list[list[Tensor]] = [[] for _ in range(clients)]
        for c, index in enumerate(members):
            shuffled = index[torch.randperm(len(index), generator=rng.generator("partition", attempt, c))]
            shares = generator.dirichlet(np.full(clients, alpha))
            bounds = torch.from_numpy((np.nan_to_num(shares).cumsum()[:-1] * len(index)).round().astype(np.int64))
            for part, piece in zip(parts, shuffled.tensor_split(bounds.clamp(max=len(index))), strict=True):
                part.append(piece)
        found = [torch.cat(part) for part in parts]
        if min(len(index) for index in found) >= min_size:
            return found
    raise InputError(
        f"No Dirichlet partition with alpha {alpha:g} gave each of {clients} clients {min_size} images in {TRIES} "
        "draws; take a larger alpha, fewer clients or a smaller --min-size."
    )


def _by_classes(labels: Tensor, clients: int, text: str, rng: Rng, min_size: int) -> list[Tensor]:
    """Every class goes to about as many clients as every other, in equal pieces."""
    classes = labels.unique().tolist()
    wanted = _number(text or "2", "classes", "K, classes for each client, as in classes:2")
    k = int(wanted)
    if k != wanted or not 1 <= k <= len(classes):
        raise InputError(f"Each client can have from 1 to {len(classes)} classes, not {text}.")
    if clients * k < len(classes):
        raise InputError(
            f"{clients} clients of {k} classes each leave some of {len(classes)} classes without a client; take more."
        )
    order = [classes[i] for i in torch.randperm(len(classes), generator=rng.generator("partition")).tolist()]
    held = [[order[(i * k + j) % len(order)] for j in range(k)] for i in range(clients)]
    parts: list[list[Tensor]] = [[] for _ in range(clients)]
    for c in classes:
        index = (labels == c).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=rng.generator("partition", c))]
        holders = [i for i in range(clients) if c in held[i]]
        for i, piece in zip(holders, index.tensor_split(len(holders)), strict=True):
            parts[i].append(piece)
    found = [torch.cat(part) for part in parts]
    if min(len(index) for index in found) < min_size:
        raise InputError(
            f"With {k} classes each, a client has {min(len(index) for index in found)} images, fewer than --min-size "
            f"{min_size}; take fewer clients."
        )
    return found


def _number(text: str, name: str, form: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"The partition {name} takes {form}, not {text!r}.")
    return number
