"""Multi-formation: one stored image holds several small ones (IDC, Kim et al., ICML 2022, arXiv:2205.14959; IDM).

Every stored image is padded at the bottom and the right to a multiple of `factor`, cut into factor x factor tiles,
and each tile is enlarged bilinearly to a whole image. Tiles are taken row by row; all images of one tile come before
those of the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Codes, Synthetic
from datastill.core.space import Space
from datastill.decoders import stored_shape

Mode = Literal["single", "multi", "bound"]
Clamp = Literal["none", "step", "outer"]


@dataclass(frozen=True)
class MultiFormation:
    """One leaf, `images` (n, c, h, w): mosaics of tiles, in the Space or, with `mean` and `std`, as pixels in [0, 1].

    Raises:
        InputError: an option out of range; images too small for the factor.
    """

    factor: int = 1  #: a stored image is cut into factor x factor tiles
    #: "single": the factor; "multi": the union of factors 1 to `factor`, ascending; "bound": largest factors first,
    #: each image in one factor, as long as `bound` holds
    mode: Mode = "single"
    bound: int = 0  #: most decoded images of a class (of soft labels, the argmax) in mode "bound"
    pad: float | None = None  #: value beyond the image; None is 0.5 for pixels and 0, the data's mean, in the Space
    #: when codes are clamped to valid pixels: never, after every step, or after every `clamp_every` of them
    clamp: Clamp = "none"
    clamp_every: int = 0
    mean: Sequence[float] | None = None  #: per channel; given with `std`, codes are pixels, normalized once decoded
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _numbers(given))
        for name, known in (("mode", get_args(Mode)), ("clamp", get_args(Clamp))):
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"Multi-formation has no {name} {value!r}. {nearest(str(value), known)}")
        least = {"factor": 1, "bound": int(self.mode == "bound"), "clamp_every": int(self.clamp == "outer")}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name} is {value!r}; multi-formation needs a whole number of at least {low}.")
        mean, std = self.mean, self.std
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()) or any(s <= 0 for s in std or ()):
            raise InputError("Multi-formation of pixels needs one mean and one positive std per channel.")

    def encode(self, images: Tensor) -> Codes:
        """Stored images, given in the Space, as a leaf: un-normalized where codes are pixels. Not cut into tiles."""
        self._refuse_unfit(images.shape[1:])
        if self.mean is None:
            return {"images": images.clone()}
        return {"images": images * self._channels("std", images) + self._channels("mean", images)}

    def draw(self, generator: torch.Generator) -> None:
        """Nothing random."""
        return None

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """Tiles as whole images in the Space, and the labels of their stored images, (n,) or (n, C)."""
        images = codes["images"]
        self._refuse_unfit(images.shape[1:])
        parts = [self._formed(images, y, factor, rows) for factor, rows in self._uses(y)]
        x = torch.cat([x for x, _ in parts]) if len(parts) > 1 else parts[0][0]
        labels = torch.cat([labels for _, labels in parts])
        if self.mean is not None:
            x = (x - self._channels("mean", x)) / self._channels("std", x)
        return Synthetic(x, labels)

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """The transpose of `decode`, by autograd."""
        with torch.enable_grad():
            leaf = codes["images"].detach().requires_grad_()
            x = self.decode({"images": leaf}, y).x
            return {"images": torch.autograd.grad(x, leaf, grads)[0]}

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """Every tile as a whole image; in mode "bound", whose shares labels decide, as if the bound were none."""
        n, *image = stored_shape(shapes)
        c, h, w = image
        self._refuse_unfit((c, h, w))
        factors = range(1, self.factor + 1) if self.mode == "multi" else [self.factor]
        return n * sum(f * f for f in factors), c, h, w

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Clamp to valid pixels when it is time; a skipped step that ends an outer iteration leaves that clamp out."""
        outer = when == "outer" or (context.step + 1) % max(1, self.clamp_every) == 0
        if self.clamp == "none" or (self.clamp == "outer" and not outer):
            return
        images = codes["images"]
        if self.mean is not None:
            images.clamp_(0, 1)
        elif (bounds := context.task.real.space.bounds()) is not None:
            low, high = (b.to(images) for b in bounds)
            images.copy_(images.maximum(low).minimum(high))

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash."""
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"decoder": "multi_formation", **lists}

    def decoded(self, stored: int) -> int:
        """Decoded images of a class of `stored` ones.

        Raises:
            InputError: the bound is below the number of stored images.
        """
        if self.mode == "multi":
            return stored * sum(f * f for f in range(1, self.factor + 1))
        return sum(count * f * f for f, count in self._shares(stored))

    def _shares(self, stored: int) -> list[tuple[int, int]]:
        """How many of a class's images each factor takes: as many as leave room for one image of every other."""
        if self.mode != "bound":
            return [(self.factor, stored)]
        if stored > self.bound:
            raise InputError(f"A bound of {self.bound} decoded images per class is below the {stored} stored ones.")
        shares, total, left = [], 0, stored
        for f in range(self.factor, 1, -1):
            count = min(left, (self.bound - total - left) // (f * f - 1))
            shares.append((f, count))
            total, left = total + count * f * f, left - count
        return [*shares, (1, left)]

    def _uses(self, y: Tensor) -> list[tuple[int, Tensor | None]]:
        """The factors in order, and which stored images each decodes (None: all)."""
        if self.mode == "single":
            return [(self.factor, None)]
        if self.mode == "multi":
            return [(f, None) for f in range(1, self.factor + 1)]
        hard = y if y.ndim == 1 else y.argmax(1)
        found: dict[int, list[Tensor]] = {f: [] for f in range(self.factor, 0, -1)}
        for c in hard.unique():
            rows = (hard == c).nonzero().squeeze(1)
            shares = self._shares(len(rows))
            for (f, _), part in zip(shares, rows.split([count for _, count in shares]), strict=True):
                found[f].append(part)
        uses = [(f, torch.cat(parts).sort().values) for f, parts in found.items()]
        return [(f, rows) for f, rows in uses if len(rows)]

    def _formed(self, images: Tensor, y: Tensor, factor: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        if rows is not None:
            images, y = images[rows.to(images.device)], y[rows]
        if factor == 1:
            return images, y
        pad = self.pad if self.pad is not None else 0.0 if self.mean is None else 0.5
        tiles = cut(images, factor, pad)
        x = F.interpolate(tiles, size=images.shape[2:], mode="bilinear", align_corners=False)
        return x, torch.cat([y] * factor**2)

    def _channels(self, name: str, like: Tensor) -> Tensor:
        return torch.tensor(getattr(self, name), dtype=like.dtype, device=like.device).view(1, -1, 1, 1)

    def _refuse_unfit(self, image: Sequence[int]) -> None:
        c, h, w = image
        for f in range(2 if self.mode != "single" else self.factor, self.factor + 1):
            for side in (h, w):
                tile_edges(side, f)
        if self.mean is not None and len(self.mean) != c:
            raise InputError(f"Multi-formation has constants for {len(self.mean)} channels and the images have {c}.")


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"Multi-formation needs numbers as mean and std, not {values!r}.") from error


def tile_edges(side: int, factor: int) -> list[tuple[int, int]]:
    """Where the tiles of a side begin and end inside the image, in pixels; padding completes the last.

    Raises:
        InputError: the last tile would hold no pixel of the image.
    """
    length = math.ceil(side / factor)
    if (factor - 1) * length >= side:
        raise InputError(
            f"A side of {side} pixels cannot be cut into {factor} tiles of {length}: the last would be empty; "
            "use a smaller factor."
        )
    return [(k * length, min((k + 1) * length, side)) for k in range(factor)]


def cut(images: Tensor, factor: int, pad: float) -> Tensor:
    """The tiles of images (n, c, h, w), padded to a multiple of `factor`: (factor^2 n, c, h', w'), tile by tile."""
    n, c, h, w = images.shape
    height, width = math.ceil(h / factor), math.ceil(w / factor)
    padded = F.pad(images, (0, width * factor - w, 0, height * factor - h), value=pad)
    tiles = padded.view(n, c, factor, height, factor, width).permute(2, 4, 0, 1, 3, 5)
    return tiles.reshape(factor * factor * n, c, height, width)


def bounded(
    factor: int, space: Space, *, clamp_every: int, mode: Mode = "single", bound: int = 0, pad: float = 0.5
) -> MultiFormation:
    """Multi-formation of pixels that are brought back into [0, 1] every `clamp_every` steps (0: never), as IDC has it.

    Raises:
        InputError: a ZCA-whitened Space, in which valid pixels are no box.
    """
    if space.kind == "zca":
        raise InputError("Images stored as pixels in [0, 1] do not go with a ZCA space; use another --space.")
    constants: dict[str, Any] = {"mean": space.mean, "std": space.std} if space.mean else {}
    return MultiFormation(
        factor, mode, bound, pad, clamp="outer" if clamp_every else "none", clamp_every=clamp_every, **constants
    )


DECODER = MultiFormation
