"""Captions of a set of pairs: a sentence and its vector for each pair, and which pairs show the same image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.text import TextEncoder

#: Numbers of the embeddings in which images and sentences are compared.
EMBED = 128


@dataclass(frozen=True, eq=False)
class Captions:
    """The sentences of a set of pairs.

    An image with several captions is several pairs, which share its `image`.

    Attributes:
        texts: a sentence for each pair.
        image: which image each pair shows, (n,) int64: pairs of one image have the same number.
        vectors: of the sentences by the text encoder, of unit length, (n, d) float32.
        encoder: the text that names the encoder.
        fingerprint: of the encoder.
        group: what the image of each pair shows where many show the same, (n,) int64, or None: every caption of a
            group fits every image of it.
    """

    texts: tuple[str, ...] = field(repr=False)
    image: Tensor = field(repr=False)
    vectors: Tensor = field(repr=False)
    encoder: str = "hashed"
    fingerprint: str = ""
    group: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.image) == len(self.vectors):
            raise InputError(
                f"There are {len(self.texts)} captions, {len(self.image)} images and {len(self.vectors)} vectors; give "
                "one of each for every pair."
            )

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        image: Tensor,
        encoder: TextEncoder,
        spec: str,
        group: Tensor | None = None,
    ) -> Captions:
        """Captions with the vectors of their sentences, each distinct one encoded once."""
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = F.normalize(_encoded(encoder, list(distinct)), dim=1)
        rows = torch.tensor([distinct[text] for text in texts], dtype=torch.int64)
        return cls(tuple(texts), image, vectors[rows], spec, encoder.fingerprint, group)

    @property
    def dim(self) -> int:
        """Numbers of a sentence's vector."""
        return int(self.vectors.shape[1])

    def subset(self, index: Tensor) -> Captions:
        """The captions at `index` (n,), in that order."""
        group = None if self.group is None else self.group[index]
        texts = tuple(self.texts[i] for i in index.tolist())
        return replace(self, texts=texts, image=self.image[index], vectors=self.vectors[index], group=group)

    def content(self) -> str:
        """A hash of sentences, encoder and of which pairs show the same image."""
        sha = hashlib.sha256("\x1f".join((self.fingerprint, *self.texts)).encode())
        sha.update(self.image.numpy().tobytes())
        return sha.hexdigest()

    def nearest(self, vectors: Tensor) -> list[int]:
        """For each of some vectors (m, d) the position of the caption that is nearest by cosine."""
        return [int((self.vectors @ v).argmax()) for v in F.normalize(vectors.detach().cpu().float(), dim=1)]

    def describe(self) -> dict[str, Any]:
        """What a manifest says of them; JSON-able."""
        return {
            "encoder": self.encoder,
            "dim": self.dim,
            "images": len(self.image.unique()),
            "distinct": len(set(self.texts)),
            "fingerprint": self.fingerprint,
        }


def apart(image: Tensor, part: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Positions of pairs that are kept and held out, each ascending, so that no image has pairs on both sides.

    Args:
        image: which image each pair shows, (n,) int64.
        part: of the images that is held out; at least one is, and one is kept.
        seed: of the draw.
        purpose: separates this draw from others with the same seed.
    """
    images, position = image.unique(return_inverse=True)
    count = min(max(round(part * len(images)), 1), len(images) - 1)
    held = torch.zeros(len(images), dtype=torch.bool)
    held[torch.randperm(len(images), generator=Rng(seed).generator(purpose))[:count]] = True
    mask = held[position]
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


def _encoded(encoder: TextEncoder, texts: list[str]) -> Tensor:
    """Vectors of an encoder that may be the user's: one for each text, all of them finite."""
    found = encoder.encode(texts)
    if not isinstance(found, Tensor) or found.shape != (len(texts), encoder.dim):
        gave = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"The text encoder gave {gave} for {len(texts)} sentences; its `encode` must return a tensor of "
            f"{len(texts)} rows of {encoder.dim} numbers (its `dim`)."
        )
    if not bool(torch.isfinite(found).all()):
        raise InputError("The text encoder gave numbers that are not finite; mend its `encode`.")
    return found.detach().float().cpu()
