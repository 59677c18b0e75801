"""How stored numbers relate to pixels in [0, 1].

Three spaces: raw (the pixels themselves), normalized (per-channel mean and standard deviation), and
ZCA-whitened. A Space is invertible, is part of every artifact, and is refused when it does not fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError

#: Files of every version, and the hashes in them, spell it so.
_IN_FILES = {"normalized": "normalised"}
_KINDS = {old: new for new, old in _IN_FILES.items()}


@dataclass(frozen=True, eq=False)
class Space:
    """An invertible map between pixels and stored numbers.

    `encode` subtracts `mean` and divides by `std` per channel; with `whiten` and `unwhiten` it then
    multiplies the flattened image, minus `center`, by the whitening matrix (D x D, D = c*h*w).
    """

    kind: str = "raw"  #: "raw", "normalized" or "zca"
    mean: tuple[float, ...] = ()  #: per channel, in pixels of [0, 1]
    std: tuple[float, ...] = ()
    source: str = ""  #: where the constants come from: "conventional", "measured" or "given"
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  #: center, whiten, unwhiten for "zca"

    def __post_init__(self) -> None:
        if self.kind not in ("raw", "normalized", "zca"):
            raise InputError(f"Unknown space {self.kind!r}; use 'raw', 'normalized' or 'zca'.")
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise InputError("A space needs one mean and one positive std per channel.")

    @property
    def id(self) -> str:
        """A short hash: two spaces with one id store the same numbers for the same pixels."""
        digest = hashlib.sha256(json.dumps([_IN_FILES.get(self.kind, self.kind), self.mean, self.std]).encode())
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, c, h, w) in [0, 1] to stored numbers."""
        x = pixels
        if self.mean:
            x = (x - self._channel(self.mean, x)) / self._channel(self.std, x)
        if self.kind == "zca":
            x = self._matmul(x - self._tensor("centre", x), "whiten")
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Stored numbers to pixels; not clamped to [0, 1]."""
        if self.kind == "zca":
            x = self._matmul(x, "unwhiten") + self._tensor("centre", x)
        if self.mean:
            x = x * self._channel(self.std, x) + self._channel(self.mean, x)
        return x

    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Per-channel (low, high) of valid pixels in this space, each (1, c, 1, 1); None where not a box (ZCA)."""
        if self.kind == "zca":
            return None
        if not self.mean:
            return torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (-mean / std).view(1, -1, 1, 1), ((1 - mean) / std).view(1, -1, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """What a manifest holds; the tensors go beside the images."""
        return {
            "kind": _IN_FILES.get(self.kind, self.kind),
            "mean": list(self.mean),
            "std": list(self.std),
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Space:
        """The inverse of `to_dict`, with the tensors that were stored beside it."""
        return cls(
            kind=_KINDS.get(record["kind"], str(record["kind"])),
            mean=tuple(float(v) for v in record["mean"]),
            std=tuple(float(v) for v in record["std"]),
            source=str(record.get("source", "")),
            tensors=dict(tensors or {}),
        )

    def _channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        return self.tensors[name].to(dtype=like.dtype, device=like.device)

    def _matmul(self, x: Tensor, name: str) -> Tensor:
        return (x.flatten(1) @ self._tensor(name, x).T).view_as(x)


def normalized(mean: tuple[float, ...], std: tuple[float, ...], source: str = "given") -> Space:
    """The per-channel mean/std space."""
    return Space("normalized", tuple(mean), tuple(std), source)
