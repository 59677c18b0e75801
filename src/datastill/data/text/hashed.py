"""Hashed n-grams (Weinberger et al., ICML 2009, arXiv:0902.2206): sentences to vectors without any weights.

Words, pairs of words, and 3- to 5-grams of characters fall into buckets with a sign; log(1 + count) of a bucket, a
fixed random projection, and unit length.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.store.files import digest

_BUCKETS = 4096
_MOST_WORDS = 30
_MOST_DIM = 16_384
_AT_ONCE = 1024


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation, the first 30."""
    return re.findall(r"\w+", text.lower())[:_MOST_WORDS]


@lru_cache(maxsize=2**17)
def _code(gram: str) -> int:
    return zlib.crc32(gram.encode())


def _grams(text: str) -> Iterator[str]:
    words = words_of(text)
    yield from words
    yield from (f"{a} {b}" for a, b in pairwise(words))
    for word in words:
        marked = f"<{word}>"
        for n in (3, 4, 5):
            yield from (f"#{marked[i : i + n]}" for i in range(len(marked) - n + 1))


class HashedText:
    """Hashed n-grams of words and characters, projected to `dim` numbers of unit length.

    Raises:
        InputError: `dim` out of range.
    """

    def __init__(self, *, dim: int = 256) -> None:
        if not 8 <= dim <= _MOST_DIM:
            raise InputError(f"hashed:dim={dim} must lie between 8 and {_MOST_DIM}.")
        self.dim = dim
        self.fingerprint = digest(["hashed n-grams 1", _BUCKETS, dim])
        generator = Rng(0).generator("hashed-text", dim)
        self._projection = torch.randn(_BUCKETS, dim, generator=generator) / math.sqrt(dim)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder`."""
        return torch.cat([self._encode(texts[i : i + _AT_ONCE]) for i in range(0, len(texts), _AT_ONCE)])

    def _encode(self, texts: Sequence[str]) -> Tensor:
        buckets: list[int] = []
        values: list[float] = []
        starts: list[int] = []
        for text in texts:
            starts.append(len(buckets))
            for gram, count in Counter(_grams(text)).items():
                code = _code(gram)
                buckets.append(code % _BUCKETS)
                values.append((1.0 if code & 0x80000000 else -1.0) * math.log1p(count))
        found = F.embedding_bag(
            torch.tensor(buckets, dtype=torch.int64),
            self._projection,
            torch.tensor(starts, dtype=torch.int64),
            mode="sum",
            per_sample_weights=torch.tensor(values, dtype=torch.float32),
        )
        return F.normalize(found, dim=1)
