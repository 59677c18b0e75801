"""ShapeCaps: drawings of one or two colored shapes with captions, made anew from a seed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.raw import Raw, Request, Sentences, Split, refuse_choice
from datastill.data.sources import source

if TYPE_CHECKING:
    import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 50, 180),
    "white": (245, 245, 245),
}
SIZES = {"small": 3.5, "medium": 5.0, "large": 7.0}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
_HELD_OUT = 0.2  #: part of the combinations of shape, color and size that only test images show
_SIDE = 32

TEMPLATES_ONE = (
    "a {a} at the {where}",
    "there is a {a} in the {where} of the picture",
    "{where}: one {a}",
    "the picture shows a {a}, {where}",
    "a single {a} placed at the {where}",
)
TEMPLATES_TWO = (
    "a {a} {relation} a {b}",
    "there is a {a} {relation} a {b}",
    "two shapes: a {a} {relation} a {b}",
    "the picture shows a {a} that is {relation} a {b}",
    "one {a} and one {b}, the {a_shape} is {relation} the {b_shape}",
)


class Shape(NamedTuple):
    """One shape of a drawing."""

    shape: str
    color: str
    size: str
    cell: int  #: 0..8, row by row

    @property
    def words(self) -> str:
        """As captions name it."""
        return f"{self.size} {self.color} {self.shape}"


@source("shapecaps")
def shapecaps(request: Request, *, train: int = 2000, test: int = 200, captions: int = 5, text: str = "hashed") -> Raw:
    """Pairs of drawings (3 x 32 x 32) and captions; test images show combinations that no training image has.

    Args:
        request: how to read; the seed draws everything.
        train: training images.
        test: test images.
        captions: captions of each image, in as many wordings.
        text: the text encoder; "hashed:dim=512"; semicolons part its options.
    """
    refuse_choice(request, "shapecaps")
    most = len(TEMPLATES_ONE)
    if not (10 <= train <= 100_000 and 10 <= test <= 10_000 and 1 <= captions <= most):
        raise InputError(
            f"shapecaps takes 10 to 100,000 training images, 10 to 10,000 test images and 1 to {most} captions of each."
        )
    rng = Rng(request.seed).child("shapecaps")
    combinations = list(itertools.product(SHAPES, COLORS, SIZES))
    order = rng.numpy("held-out").permutation(len(combinations))
    held = {combinations[i] for i in order[: round(_HELD_OUT * len(combinations))]}
    note = (
        f"shapecaps: {len(held)} of {len(combinations)} combinations of shape, color and size are in test images only"
    )
    return Raw(
        "shapecaps",
        "shapecaps",
        _split(train, captions, rng.numpy("train"), held, request, test=False),
        _split(test, captions, rng.numpy("test"), held, request, test=True),
        notes=(note,),
        text=text,
    )


def _split(
    count: int, captions: int, draw: np.random.Generator, held: set[tuple[str, str, str]], request: Request, test: bool
) -> Split:
    import numpy as np
    import torch

    from datastill.data.arrays import array_split

    scenes = [_scene(draw, held, test) for _ in range(count)]
    images = np.stack([drawn(scene, draw) for scene in scenes])
    texts = [caption for scene in scenes for caption in _captions(scene, captions, draw)]
    made = array_split(images, [0] * count, request, "shapecaps")
    return Split(made.store, made.labels, sentences=Sentences(texts, torch.arange(count).repeat_interleave(captions)))


def _scene(draw: np.random.Generator, held: set[tuple[str, str, str]], test: bool) -> tuple[Shape, ...]:
    """One shape, or two in different cells; the first is of a combination that is held out, or none is."""
    count = int(draw.integers(1, 3))
    cells = draw.permutation(9)[:count]
    made: list[Shape] = []
    while len(made) < count:
        one = (
            SHAPES[draw.integers(len(SHAPES))],
            list(COLORS)[draw.integers(len(COLORS))],
            list(SIZES)[draw.integers(len(SIZES))],
        )
        if (one in held) == (test and not made) or (test and made):
            made.append(Shape(*one, int(cells[len(made)])))
    return tuple(made)


def _captions(scene: tuple[Shape, ...], count: int, draw: np.random.Generator) -> list[str]:
    """Captions in distinct wordings."""
    a, b = scene[0], scene[-1]
    templates = TEMPLATES_ONE if len(scene) == 1 else TEMPLATES_TWO
    row, column = _ROWS[a.cell // 3], _COLUMNS[a.cell % 3]
    where = "center" if (row, column) == ("middle", "center") else f"{row} {column}"
    values = {"a": a.words, "b": b.words, "a_shape": a.shape, "b_shape": b.shape}
    chosen = draw.permutation(len(templates))[:count]
    return [templates[i].format(**values, where=where, relation=relation(a, b)) for i in chosen]


def relation(a: Shape, b: Shape) -> str:
    """Where a is, seen from b."""
    if a.cell % 3 != b.cell % 3:
        return "left of" if a.cell % 3 < b.cell % 3 else "right of"
    return "above" if a.cell // 3 < b.cell // 3 else "below"


def drawn(scene: tuple[Shape, ...], draw: np.random.Generator) -> np.ndarray:
    """A drawing (3, 32, 32) uint8: shapes with soft edges on a dark ground with noise."""
    import numpy as np

    image = np.full((_SIDE, _SIDE, 3), draw.uniform(30, 70), dtype=np.float64)
    ys, xs = np.mgrid[:_SIDE, :_SIDE] + 0.5
    for one in scene:
        center = np.array([one.cell // 3, one.cell % 3]) * 9.5 + 6.5 + draw.uniform(-0.8, 0.8, 2)
        dy, dx, r = ys - center[0], xs - center[1], SIZES[one.size]
        inside = {
            "circle": r - np.hypot(dx, dy),
            "square": 0.88 * r - np.maximum(abs(dx), abs(dy)),
            "diamond": (1.2 * r - abs(dx) - abs(dy)) / 1.4,
            "triangle": np.minimum(0.8 * r - dy, (dy + r) * 0.5 - abs(dx) * 0.9),
        }[one.shape]
        mask = np.clip(inside + 0.5, 0, 1)[..., None]
        image = image * (1 - mask) + np.array(COLORS[one.color]) * mask
    image += draw.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).round().astype(np.uint8).transpose(2, 0, 1)
