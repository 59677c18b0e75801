"""What a set's images are to each other and to the real ones: redundancy, coverage, nearest real images.

Each number stands beside that of random real images, as many of each class: alone it would say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.evaluation.inputs import Distilled, check_fit, load_sets, real_for
from datastill.report.neighbors import COPY, Neighbors, nearest_real
from datastill.report.words import plural

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.store.artifact import DistilledSet

#: Real images of a class that stand for it; all of a class up to `SEARCHED` are looked at for the nearest.
STAND_FOR, SEARCHED = 500, 20_000
#: Random selections that are averaged, and real images whose nearest others say what is usual.
DRAWS, USUAL = 10, 200
#: Sides to which larger images are averaged down before they are compared, pixels.
SIDE = 64

#: From pixels (n, c, h, w) in [0, 1] to vectors whose L2 distance is meant, (n, d).
Look = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        spread: mean distance of an image to the nearest of its class in another subset (the k-th images of all classes
            are one), over that of random real images; None with one image per class.
        coverage: share of real images that have a synthetic one of their class as near as their k-th nearest real one,
            where k real images come to one synthetic; `random_coverage` is that of random real images, None without.
        by_class: coverage of each class, (C,); NaN for one without images.
        neighbors: the nearest real image of each image, within its class.
        usual: median distance of a real image to its nearest other, pixels.
        uncompared: classes with fewer real images than synthetic ones. As many random ones do not exist, so spread and
            coverages are over the other classes, where there are any.
    """

    spread: float | None
    coverage: float
    random_coverage: float | None
    by_class: Tensor
    neighbors: Neighbors
    usual: float
    uncompared: int = 0

    @property
    def redundancy(self) -> float | None:
        """0 where images are as far apart as random real ones, or farther; 1 where each is there twice."""
        return None if self.spread is None else min(1.0, max(0.0, 1 - self.spread))

    @property
    def nearness(self) -> Tensor:
        """Distance of each image to its nearest real one, in units of the usual, (n,)."""
        return self.neighbors.distance / max(self.usual, 1e-12)

    @property
    def copies(self) -> int:
        """Images that are real ones, or nearly."""
        return int((self.nearness < COPY).sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the nearest real image of each; NaN as None."""
        near = self.nearness.nanmedian()
        return {
            "redundancy": self.redundancy,
            "spread": self.spread,
            "coverage": self.coverage,
            "coverage_of_random": self.random_coverage,
            "coverage_by_class": [_number(v) for v in self.by_class.tolist()],
            "nearest_real": self.neighbors.index.tolist(),
            "nearest_distance": [_number(v) for v in self.neighbors.distance.tolist()],
            "usual_distance": self.usual,
            "median_nearness": _number(float(near)),
            "copies": self.copies,
            "uncompared_classes": self.uncompared,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Each number and what it says, in plain words."""
        near, count = float(self.nearness.nanmedian()), len(self.neighbors.index)
        none = "one image per class, so there is no other to be near to"
        if self.random_coverage is None:
            none = "no class has as many real images as synthetic ones"
        random = "–" if self.random_coverage is None else f"{100 * self.random_coverage:.0f} %"
        apart = (
            f"–  ({none})"
            if self.spread is None
            else f"{self.redundancy:.2f}  (an image is {self.spread:.2f} times as far from the nearest other of its "
            "class as random real images are; 0: no nearer, 1: the same image again)"
        )
        single = self.spread is None and self.random_coverage is not None
        covered = (
            "–  (one image per class, whose share is the whole class: any image covers it)"
            if single
            else f"{100 * self.coverage:.0f} %  (of the real images, those with a synthetic one of their class as near "
            f"as their share of the real ones; as many random images: {random})"
        )
        return [
            ("redundancy", apart),
            ("coverage", covered),
            (
                "nearest real",
                f"{near:.2f}  (median distance of an image to the nearest real one of its class; 1: as near as real "
                "images are to each other, 0: a copy)",
            ),
            ("copies", f"{self.copies} of {count}  (images nearer than {COPY:g} of that to a real one)"),
            *([("not compared", self._uncompared)] if self.uncompared else []),
        ]

    @property
    def _uncompared(self) -> str:
        others = "" if self.random_coverage is None else "; redundancy and coverage are of the others"
        return f"{plural(self.uncompared, 'class')}  (fewer real images than synthetic ones{others})"


def diagnose(distilled: Distilled, real: Any = None, look: Look | None = None, seed: int = 0) -> Diagnosis:
    """Redundancy, coverage and nearest real images of a distilled set of classes.

    Args:
        distilled: the set or its folder.
        real: the real set, anything that `load_real` takes; None takes the source that the set names.
        look: what distances between images are meant, for redundancy and coverage; None is those of pixels, of larger
            images averaged down to 64 x 64. A network's features are `lambda x: network.embed(space.encode(x))`.
        seed: of the random selections.

    Raises:
        InputError: pairs; other classes or shapes than the set's; no class with two real images.
    """
    one = load_sets(distilled)[0]
    if one.label_kind == "pairs":
        raise InputError(f"{one.name} has no classes to compare images in; a diagnosis is of a set of classes.")
    data = real_for(one, real)
    check_fit(one, data.with_space(one.space))
    if not bool(torch.isfinite(one.images).all()):
        raise InputError(
            f"{one.name} holds pixels that are not finite, so no distance to them is known; distill again."
        )
    look = look or _pixels
    parts = [_of_class(*found) for found in _by_class(one, data, look, Rng(seed))]
    if not parts:
        raise InputError(f"No class of {data.name} that the set has holds two real images to compare with.")
    by_class = torch.full((data.classes,), math.nan, dtype=torch.double)
    for part in parts:
        by_class[part.c] = part.covered
    compared = [part for part in parts if part.random_covered is not None]
    ours = [part.apart for part in compared if part.apart is not None]
    theirs = [part.random_apart for part in compared if part.random_apart is not None]
    chance = [part.random_covered for part in compared if part.random_covered is not None]
    counted = compared or parts
    weights = torch.tensor([float(len(data.class_index(part.c))) for part in counted])
    return Diagnosis(
        spread=sum(ours) / max(sum(theirs), 1e-12) if ours else None,
        coverage=_mean([part.covered for part in counted], weights),
        random_coverage=_mean(chance, weights) if compared else None,
        by_class=by_class,
        neighbors=nearest_real(one.pixels.float(), one.hard_labels, data, SEARCHED),
        usual=_usual(data, Rng(seed)),
        uncompared=len(parts) - len(compared),
    )


class _Part(NamedTuple):
    """Numbers of one class; those of random images are None where there are not as many."""

    c: int
    covered: float
    random_covered: float | None
    apart: float | None
    random_apart: float | None


def _by_class(
    one: DistilledSet, data: RealSet, look: Look, rng: Rng
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, torch.Generator]]:
    """Class, vectors of its images, the subset of each, vectors of real images that stand for it, a generator."""
    pixels, y, subsets = one.pixels.float(), one.hard_labels, _subsets(one)
    for c in y.unique().tolist():
        members = data.class_index(int(c))
        if len(members) < 2:
            continue
        generator = rng.generator("diagnosis", int(c))
        rows = y == c
        count = max(STAND_FOR, int(rows.sum()))
        chosen = members[torch.randperm(len(members), generator=generator)[:count].sort().values]
        yield int(c), look(pixels[rows]), subsets[rows], look(data.pixels(chosen)), generator


def _subsets(one: DistilledSet) -> Tensor:
    """Which of its class the stored image of each image is, (N,); images cut from one stored image share a subset."""
    stored = one.labels if one.labels.ndim == 1 else one.extra.get("classes", one.labels.argmax(1))
    order = torch.zeros(len(stored), dtype=torch.int64)
    for c in stored.unique():
        rows = stored == c
        order[rows] = torch.arange(int(rows.sum()))
    return one.rendered(order).y


def _of_class(c: int, ours: Tensor, subsets: Tensor, real: Tensor, generator: torch.Generator) -> _Part:
    """Coverage and distance apart, beside the means over random selections of as many real images."""
    between = torch.cdist(real, real, compute_mode="donot_use_mm_for_euclid_dist")
    others = between.clone().fill_diagonal_(torch.inf)
    k = min(math.ceil(len(real) / len(ours)), len(real) - 1)
    radius = others.kthvalue(k, dim=1).values
    near = torch.cdist(real, ours, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    if len(ours) > len(real):
        return _Part(c, float((near <= radius).double().mean()), None, None, None)
    draws = [torch.randperm(len(real), generator=generator)[: len(ours)] for _ in range(DRAWS)]
    chance = [float((between[:, drawn].amin(1) <= radius).double().mean()) for drawn in draws]
    mine = torch.cdist(ours, ours, compute_mode="donot_use_mm_for_euclid_dist")
    mine = mine.masked_fill(subsets[:, None] == subsets[None], torch.inf)
    several = len(subsets.unique()) > 1
    apart = [float(others[drawn][:, drawn].amin(1).mean()) for drawn in draws] if several else []
    return _Part(
        c,
        float((near <= radius).double().mean()),
        sum(chance) / DRAWS,
        float(mine.amin(1).mean()) if several else None,
        sum(apart) / DRAWS if several else None,
    )


def _usual(data: RealSet, rng: Rng) -> float:
    """Median distance of pixels from a real image to the nearest other of its class."""
    some = torch.randperm(len(data), generator=rng.generator("usual"))[: min(USUAL, len(data) // 2)].sort().values
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[some] = False
    rest = data.subset(kept.nonzero().flatten())
    found = nearest_real(data.pixels(some).float(), data.labels[some], rest, SEARCHED)
    return float(found.distance.nanmedian())


def _pixels(x: Tensor) -> Tensor:
    """Pixels (n, c, h, w) as vectors, of images larger than 64 x 64 averaged down."""
    if max(x.shape[-2:]) > SIDE:
        x = F.interpolate(x, size=(min(SIDE, x.shape[-2]), min(SIDE, x.shape[-1])), mode="area")
    return x.flatten(1).float()


def _mean(values: list[float], weights: Tensor) -> float:
    return float((torch.tensor(values, dtype=torch.double) * weights).sum() / weights.sum())


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
