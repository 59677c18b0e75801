"""The grid of ConvNets of Zhao et al. (arXiv:2006.05929): 720 architectures."""

from __future__ import annotations

import itertools

import torch

from datastill.core.errors import InputError
from datastill.core.rng import Rng

GRIDS = {
    "whole": ((32, 64, 128, 256), (1, 2, 3, 4), ("none", "batch", "layer", "instance", "group"),
              ("sigmoid", "relu", "leaky"), ("none", "max", "avg")),
    "mini": ((16, 32), (1, 2, 3), ("none", "instance"), ("relu",), ("max", "avg")),
}  # fmt: skip


def grid(kind: str, size: tuple[int, int], sample: int = 0, seed: int = 0) -> list[str]:
    """Names of networks, as `resolve_network` takes them.

    Args:
        kind: "whole" (720: width, depth, norm, activation, pooling) or "mini" (24).
        size: height and width of the images.
        sample: so many of them, drawn without replacement, in the order of the grid; 0 takes all.
        seed: of the sample.

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
    if not sample:
        return found
    if sample > len(found):
        raise InputError(f"The grid {kind!r} has {len(found)} networks, and {sample} are asked for; take fewer.")
    chosen = torch.randperm(len(found), generator=Rng(seed).generator("grid"))[:sample].sort().values
    return [found[int(i)] for i in chosen]
