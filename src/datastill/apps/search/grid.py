"""The grid of ConvNets of Zhao et al. (arXiv:2006.05929): 720 architectures."""

from __future__ import annotations

import itertools

import torch

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.models import resolve_network

GRIDS = {
    "whole": ((32, 64, 128, 256), (1, 2, 3, 4), ("none", "batch", "layer", "instance", "group"),
              ("sigmoid", "relu", "leaky"), ("none", "max", "avg")),
    "mini": ((16, 32), (1, 2, 3), ("none", "instance"), ("relu",), ("max", "avg")),
}  # fmt: skip


def grid(
    kind: str,
    size: tuple[int, int],
    sample: int = 0,
    seed: int = 0,
    *,
    heaviest: float = 0.0,
    channels: int = 3,
    classes: int = 10,
) -> list[str]:
    """Names of networks, as `resolve_network` takes them.

    Args:
        kind: "whole" (720: width, depth, norm, activation, pooling) or "mini" (24).
        size: height and width of the images.
        sample: so many of them, drawn without replacement, in the order of the grid; 0 takes all.
        seed: of the sample.
        heaviest: networks of more million multiply-accumulates an image are left out before the draw; 0 takes all.
        channels, classes: of the images, which decide that number.

    Raises:
        InputError: an unknown grid, more than there are, or a depth whose pooling leaves less than a pixel.
    """
    if kind not in GRIDS:
        raise InputError(f"There is no grid {kind!r}; take whole (720 networks) or mini (24).")
    found = [
        f"convnet:width={w},depth={d},norm={n},activation={a},pool={p}"
        for w, d, n, a, p in itertools.product(*GRIDS[kind])
    ]
    deepest = max(GRIDS[kind][1])
    least = 2**deepest if min(size) != 28 else 28  # 28 pixels are padded to 32
    if min(size) < least:
        raise InputError(
            f"The grid {kind!r} has networks of depth {deepest}, whose pooling leaves less than a pixel of images of "
            f"{size[0]} x {size[1]}; take larger images (--size {least})."
        )
    within = f" of at most {heaviest:g} million multiply-accumulates" if heaviest else ""
    if heaviest:
        found = [
            n for n in found if resolve_network(n, channels=channels, classes=classes, size=size).macs <= 1e6 * heaviest
        ]
    if sample > len(found) or not found:
        raise InputError(
            f"The grid {kind!r} has {len(found)} networks{within}, and {sample or 'all'} are asked for; take fewer"
            f"{', or heavier ones (--heaviest)' if heaviest else ''}."
        )
    if not sample:
        return found
    chosen = torch.randperm(len(found), generator=Rng(seed).generator("grid"))[:sample].sort().values
    return [found[int(i)] for i in chosen]
