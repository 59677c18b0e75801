"""Two towers: a network for images and a projection of sentences into the same space (arXiv:2308.07545).

The image tower is any network, whose logits are the embedding. The text tower is the projection head of the
vision-language setting without its dropout: u = W e, then LayerNorm(W' GELU(u) + u).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from datastill.models.base import Network
from datastill.models.factory import NetworkFactory
from datastill.models.layers import require_positive

#: Parameters of each tower begin with its name.
TOWERS = ("image", "text")


class TextHead(nn.Module):
    """Vectors of sentences (n, text) to embeddings (n, embed)."""

    def __init__(self, text: int, embed: int) -> None:
        super().__init__()
        require_positive(text=text, embed=embed)
        self.project = nn.Linear(text, embed)
        self.mix = nn.Linear(embed, embed)
        self.norm = nn.LayerNorm(embed)

    def forward(self, vectors: Tensor) -> Tensor:
        u = self.project(vectors)
        out: Tensor = self.norm(self.mix(F.gelu(u)) + u)
        return out


class Towers(Network):
    """An image tower and a text tower. As a network it is the image tower; `sentences` is the other one.

    Args:
        image: its logits are the embedding of an image.
        text: numbers of a sentence's vector.
    """

    def __init__(self, image: Network, text: int) -> None:
        super().__init__()
        self.channels, self.classes, self.size = image.channels, image.classes, image.size
        self.embed_size = image.embed_size
        self.image = image
        self.text = TextHead(text, image.classes)

    def sentences(self, vectors: Tensor) -> Tensor:
        """Embeddings (n, d) of the vectors of sentences (n, text)."""
        out: Tensor = self.text(vectors)
        return out

    def embed(self, x: Tensor) -> Tensor:
        return self.image.embed(x)

    def classify(self, features: Tensor) -> Tensor:
        return self.image.classify(features)

    def tap_names(self) -> tuple[str, ...]:
        return self.image.tap_names()

    def _taps(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        return self.image._taps(x, names)


def tower_slices(names: Sequence[str], numels: Sequence[int]) -> dict[str, slice]:
    """Where each tower is in a flat vector of weights; empty where the network is no pair of towers.

    Args:
        names: of the parameters in the vector, in order.
        numels: how many numbers each has.
    """
    found, start = dict.fromkeys(TOWERS, slice(0, 0)), 0
    for name, count in zip(names, numels, strict=True):
        tower = name.partition(".")[0]
        if tower not in found:
            return {}
        begin = found[tower].start if found[tower].stop else start
        found[tower], start = slice(begin, start + count), start + count
    return found


def _build(image: NetworkFactory, text: int) -> Network:
    return Towers(image.build(), text)


def towers_of(image: NetworkFactory, text: int) -> NetworkFactory:
    """The factory of two towers; it is called as the image tower is.

    Args:
        image: builds image towers.
        text: numbers of a sentence's vector.
    """
    return replace(image, build=partial(_build, image, text))
