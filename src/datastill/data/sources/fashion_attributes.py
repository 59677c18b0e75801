"""FashionMNIST with captions that are measured: the class and how dark, tall, symmetric and filled an image is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.raw import Raw, Request, Sentences, Split, refuse_choice
from datastill.data.sources import source

if TYPE_CHECKING:
    from torch import Tensor

#: Values of a pixel above which there is something.
_INK = 0.1
#: Height through width of what is there, below and above which it is wide or tall.
_WIDE, _TALL = 0.85, 1.35
_CLASSES = (
    "t-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_TONES, _FORMS = ("light", "medium", "dark"), ("wide", "square", "tall")


@source("fashion-attributes")
def fashion_attributes(request: Request, *, train: int = 5000, test: int = 500, text: str = "hashed") -> Raw:
    """Pairs of FashionMNIST images and captions of their class and of measured attributes.

    Many images have the same caption, so grouped recall, in which any of them counts, stands beside the strict one.

    Args:
        request: how to read; the seed draws the images.
        train: training images.
        test: test images.
        text: the text encoder; "hashed:dim=512"; semicolons part its options.
    """
    from datastill.data.load import read_source

    refuse_choice(request, "fashion-attributes")
    raw = read_source("fashion_mnist", request)
    assert raw.test is not None
    for name, part, most in (("train", train, len(raw.train.store)), ("test", test, len(raw.test.store))):
        if not 20 <= part <= most:
            raise InputError(f"fashion-attributes:{name}={part} must lie between 20 and {most}.")
    rng = Rng(request.seed).child("fashion-attributes")
    kept, held = _some(raw.train, train, rng, "train"), _some(raw.test, test, rng, "test")
    cuts = Cuts.of(measured(kept.store.get(_all(kept))))
    return replace(
        raw, name="fashion-attributes", source="fashion-attributes", names=None, text=text,
        train=_captioned(kept, cuts), test=_captioned(held, cuts),
    )  # fmt: skip


def _all(split: Split) -> Tensor:
    import torch

    return torch.arange(len(split.store))


def _some(split: Split, count: int, rng: Rng, purpose: str) -> Split:
    import torch

    from datastill.data.store import SubsetStore

    rows = torch.randperm(len(split.store), generator=rng.generator(purpose))[:count]
    return Split(SubsetStore(split.store, rows), [split.labels[i] for i in rows.tolist()])


def measured(pixels: Tensor) -> Tensor:
    """Of images (n, 1, h, w): mean ink, height through width, asymmetry, and how full their box is; (n, 4)."""
    import torch

    ink = pixels[:, 0]
    there = ink > _INK
    rows, columns = there.any(2).sum(1).clamp_min(1).double(), there.any(1).sum(1).clamp_min(1).double()
    count = there.sum((1, 2)).clamp_min(1).double()
    tone = (ink * there).sum((1, 2)).double() / count
    asymmetry = (ink - ink.flip(2)).abs().sum((1, 2)).double() / ink.sum((1, 2)).double().clamp_min(1e-6)
    return torch.stack([tone, rows / columns, asymmetry, count / (rows * columns)], dim=1)


class Cuts:
    """Where attributes change their name, measured on the training images."""

    def __init__(self, tones: Sequence[float], asymmetry: float, filled: float) -> None:
        self.tones, self.asymmetry, self.filled = tones, asymmetry, filled

    @classmethod
    def of(cls, values: Tensor) -> Cuts:
        """Terciles of ink, medians of asymmetry and filling."""
        tones = [float(values[:, 0].quantile(q)) for q in (1 / 3, 2 / 3)]
        return cls(tones, float(values[:, 2].median()), float(values[:, 3].median()))

    def attributes(self, values: Tensor) -> list[tuple[int, int, int, int]]:
        """Of measured values (n, 4): tone, form, whether it is symmetric, whether it is filled."""
        found = []
        for tone, form, asymmetry, filled in values.tolist():
            found.append((
                sum(tone > cut for cut in self.tones),
                (form > _WIDE) + (form > _TALL),
                int(asymmetry <= self.asymmetry),
                int(filled > self.filled),
            ))  # fmt: skip
        return found


def _captioned(split: Split, cuts: Cuts) -> Split:
    import torch

    attributes = cuts.attributes(measured(split.store.get(_all(split))))
    groups = [(int(label), *one) for label, one in zip(split.labels, attributes, strict=True)]
    texts = [caption(*group) for group in groups]
    group = torch.tensor([(((c * 3 + t) * 3 + f) * 2 + s) * 2 + d for c, t, f, s, d in groups])
    return replace(split, sentences=Sentences(texts, _all(split), group))


def caption(label: int, tone: int, form: int, symmetric: int, filled: int) -> str:
    """The sentence of a class and its attributes."""
    looks = "symmetric" if symmetric else "asymmetric"
    return f"a {_TONES[tone]} {_CLASSES[label]}, {_FORMS[form]}, {looks} and {'filled' if filled else 'outlined'}"
