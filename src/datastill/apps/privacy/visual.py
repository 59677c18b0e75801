"""Whether synthetic images look like real ones that they were made from, beside real ones that they were not.

The nearest images are searched by the L2 distance of pixels, and by a perceptual distance (LPIPS, Zhang et al., CVPR
2018) where the weights of its network are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError, MissingExtra
from datastill.core.rng import Rng, isolated
from datastill.report.neighbors import COPY

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: From pixels (n, c, h, w) in [0, 1] to vectors whose L2 distance is meant, (n, d).
Look = Callable[[Tensor], Tensor]

#: Numbers of vectors held at a time.
_HELD = 2**25


@dataclass(frozen=True)
class Nearest:
    """The nearest of many, for each of a few.

    Attributes:
        index: positions (n, k), nearest first.
        distance: (n, k).
    """

    index: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Visual:
    """Distances of synthetic images to real ones by one way to look.

    Attributes:
        by: "L2" or "LPIPS".
        train: the nearest among all images that the set was made from.
        sampled, held_out: distance to the nearest of equally many of these, and of images that it was not made from.
        usual: median distance of a held-out image to its nearest training image.
    """

    by: str
    train: Nearest
    sampled: Tensor
    held_out: Tensor
    usual: float

    @property
    def ratio(self) -> float:
        """Mean distance to training images over that to held-out ones; near 1 says nothing was copied."""
        return float(self.sampled.mean() / self.held_out.mean().clamp_min(1e-12))

    @property
    def copies(self) -> int:
        """Synthetic images that are training images, or nearly."""
        return int((self.train.distance[:, 0] < COPY * self.usual).sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the distances of each image."""
        return {
            "by": self.by,
            "ratio": self.ratio,
            "copies": self.copies,
            "usual_distance": self.usual,
            "nearest": self.train.index.tolist(),
            "distances": [[round(v, 6) for v in row] for row in self.train.distance.tolist()],
        }


def pixels_look(x: Tensor) -> Tensor:
    """Root mean squared difference of pixels as an L2 distance."""
    return x.flatten(1) / x[0].numel() ** 0.5


def nearest(wanted: Tensor, real: RealSet, look: Look, k: int = 3, index: Tensor | None = None) -> Nearest:
    """The k nearest real images, a chunk of them at a time.

    Args:
        wanted: vectors (n, d) of what is looked for.
        real: where it is looked for.
        look: what made the vectors.
        k: how many.
        index: positions in the real set to look at; None is all.
    """
    where = torch.arange(len(real)) if index is None else index
    k = min(k, len(where))
    best, at = torch.full((len(wanted), k), torch.inf), torch.zeros(len(wanted), k, dtype=torch.int64)
    for part in where.split(max(1, _HELD // wanted.shape[1])):
        found = torch.cdist(wanted, look(real.pixels(part)), compute_mode="donot_use_mm_for_euclid_dist")
        both = torch.cat([best, found], 1)
        best, place = both.topk(k, dim=1, largest=False, sorted=True)
        at = torch.cat([at, part.expand(len(wanted), -1)], 1).gather(1, place)
    return Nearest(at, best)


def visual(pixels: Tensor, members: RealSet, others: RealSet, look: Look = pixels_look, by: str = "L2") -> Visual:
    """Nearest training images of synthetic ones, with held-out images as the control.

    Args:
        pixels: of the synthetic images, (n, c, h, w) in [0, 1].
        members: all images that the set was made from.
        others: real images that it was not made from.
        look: how distances are meant.
        by: its name.
    """
    wanted, count = look(pixels), min(len(members), len(others))
    rng = Rng(0)
    some = [torch.randperm(len(real), generator=rng.generator(name))[:count].sort().values
            for name, real in (("members", members), ("others", others))]  # fmt: skip
    few = others.pixels(some[1][: min(count, 200)])
    usual = nearest(look(few), members, look, 1, some[0]).distance.median()
    return Visual(
        by,
        nearest(wanted, members, look),
        nearest(wanted, members, look, 1, some[0]).distance[:, 0],
        nearest(wanted, others, look, 1, some[1]).distance[:, 0],
        float(usual),
    )


def perceptual_vectors(features: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Vectors whose squared L2 distance is the perceptual one, (n, d).

    Channels have length 1 at every position; squared differences are weighted by channel, averaged over positions and
    added over layers.

    Args:
        features: of each layer, (n, c, h, w).
        weights: of the channels of each layer, (c,) not negative; None is 1.
    """
    parts = []
    for k, layer in enumerate(features):
        unit = layer / (layer.square().sum(1, keepdim=True).sqrt() + 1e-10)
        scale = torch.ones(layer.shape[1]) if weights is None else weights[k]
        parts.append((unit * (scale.clamp_min(0).to(unit) / unit[0, 0].numel()).sqrt().view(1, -1, 1, 1)).flatten(1))
    return torch.cat(parts, 1)


def perceptual_distance(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """The perceptual distance of the features of two images each, (n,); arguments as of `perceptual_vectors`."""
    return (perceptual_vectors(a, weights) - perceptual_vectors(b, weights)).square().sum(1)


def lpips_look(weights: str | Path) -> Look:
    """LPIPS of AlexNet; distances are square roots of its own.

    Args:
        weights: file of torchvision's AlexNet (alexnet-owt-*.pth, or the same tensors as safetensors), which is not in
            the wheel of lpips and is not fetched.

    Raises:
        MissingExtra: lpips is not installed.
        InputError: there is no such file, or its tensors are no AlexNet's.
    """
    from datastill.core.torchvision import import_torchvision

    named = _alexnet(Path(weights))
    import_torchvision()
    try:
        import lpips
    except ImportError as error:
        raise MissingExtra("LPIPS needs lpips: pip install 'datastill[perceptual]'.") from error
    with isolated(0):
        made: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    own = dict(made.net.named_parameters())
    wanted = {name: f"features.{name.split('.', 1)[1]}" for name in own}
    for name, other in wanted.items():
        if other not in named or named[other].shape != own[name].shape:
            raise InputError(f"{weights} holds no AlexNet: {other!r} is not there or of another shape.")
    made.net.load_state_dict({name: named[other] for name, other in wanted.items()})
    heads = [head.model[-1].weight.detach().flatten() for head in made.lins]
    made.requires_grad_(False).eval()

    def look(x: Tensor) -> Tensor:
        colored = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        if min(colored.shape[-2:]) < 64:
            colored = F.interpolate(colored, size=(64, 64), mode="bilinear", align_corners=False)
        with torch.no_grad():
            chunks = [
                perceptual_vectors(made.net(made.scaling_layer(2 * part - 1)), heads) for part in colored.split(64)
            ]
        return torch.cat(chunks)

    return look


def _alexnet(path: Path) -> Mapping[str, Tensor]:
    from datastill.store.files import read_tensors
    from datastill.store.pt_reader import read_pt

    if not path.is_file():
        raise InputError(
            f"{path} does not exist: LPIPS needs the weights of torchvision's AlexNet, which are not fetched; give "
            "their file (--lpips FILE), or leave LPIPS out."
        )
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    return {name: value for name, value in read_pt(path).value.items() if isinstance(value, Tensor)}
