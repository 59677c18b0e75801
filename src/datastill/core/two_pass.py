"""Rendering in two passes, for decoders whose graph is larger than their images (GLaD, arXiv:2305.01649).

The first pass renders chunk by chunk without a graph. The objective sees all images, and gives their gradient g. The
second renders every chunk again, with a graph that lives as long as the chunk, for d(sum g x) / d codes. It costs one
forward pass more, and the memory of one chunk whatever the size of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

#: From the codes of some stored images, and their rows in the set, to their images.
Render = Callable[[Mapping[str, Tensor], slice], Tensor]


def rendered(render: Render, codes: Mapping[str, Tensor], chunk: int) -> Tensor:
    """The first pass: all images, without a graph.

    Args:
        render: a function of its arguments alone; what is random in it must be the same in both passes.
        codes: named leaves with a row for each stored image.
        chunk: rows at a time.
    """
    with torch.no_grad():
        return torch.cat([render(part, rows) for part, rows in _chunks(codes, chunk)])


def gradients_of(render: Render, codes: Mapping[str, Tensor], grads: Tensor, chunk: int) -> dict[str, Tensor]:
    """The second pass: gradients of the codes.

    Args:
        render, codes, chunk: as in the first.
        grads: of the loss with respect to what the first pass gave.
    """
    found: dict[str, list[Tensor]] = {name: [] for name, leaf in codes.items() if leaf.is_floating_point()}
    done = 0
    for part, rows in _chunks(codes, chunk):
        leaves = {n: t.detach().requires_grad_(n in found) for n, t in part.items()}
        with torch.enable_grad():
            x = render(leaves, rows)
            grad = torch.autograd.grad(
                x, [leaves[n] for n in found], grads[done : done + len(x)], allow_unused=True, materialize_grads=True
            )
        done += len(x)
        for name, of_leaf in zip(found, grad, strict=True):
            found[name].append(of_leaf)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _chunks(codes: Mapping[str, Tensor], chunk: int) -> Iterator[tuple[dict[str, Tensor], slice]]:
    count = len(next(iter(codes.values())))
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        yield {name: leaf[rows] for name, leaf in codes.items()}, rows
