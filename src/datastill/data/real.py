"""The real set: indexed, labeled images in a declared Space."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data.captions import EMBED, Captions, apart
from datastill.data.store import Store, SubsetStore
from datastill.data.stratify import hold_out, members_by_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datastill.data.biased.attribute import Attribute

RAW = Space()


@dataclass(frozen=True, eq=False)
class RealSet:
    """Real images with labels, and what is needed to use and to find them again.

    `load_real` makes one. Everything that changes it (`split`, `subset`, `with_space`, ...) returns
    another that shares the stored images. All index tensors live on the CPU.
    """

    store: Store = field(repr=False)  #: the images as pixels, before any Space
    labels: Tensor = field(repr=False)  #: class positions 0..C-1, (n,) int64
    class_names: tuple[str, ...]  #: one per class position
    label_ids: tuple[int | str, ...] = ()  #: the source's own label of each class position, sorted
    space: Space = RAW  #: how `batch` stores pixels
    name: str = ""  #: for people: "digits", "cifar10", the folder's name
    source: str = ""  #: `load_real(source, **options)` loads it again; "" where nothing can
    options: Mapping[str, Any] = field(default_factory=dict)  #: arguments of `load_real` other than defaults
    weights: Tensor | None = field(default=None, repr=False)  #: weight per image, (n,) float, or None
    test: RealSet | None = field(default=None, repr=False)  #: the test split, in the same Space and classes
    held_out: bool = False  #: whether the test split was held out of these images, so that it has their bias, if any
    notes: tuple[str, ...] = ()  #: what was decided while loading, one sentence each
    #: Bias attribute of each image of a biased set, (n,) int64, else None. For evaluation, diagnosis and tests
    #: only: what distills must not read it.
    bias: Tensor | None = field(default=None, repr=False)
    attribute: Attribute | None = None  #: what the bias of a biased set is and what its values are called
    places: tuple[str, ...] = ()  #: folders that the images are read from; nothing is written into them
    #: Of a set of pairs: sentences and their vectors, one for each image. Its one class means nothing.
    captions: Captions | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.store):
            raise InputError(
                f"There are {len(self.store)} images and {len(self.labels)} labels; give one label per image."
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            raise InputError(f"Class positions must lie in 0..{self.classes - 1}; check the labels.")
        if self.weights is not None:
            object.__setattr__(self, "weights", _sound_weights(self.weights, len(self)))
        if self.bias is not None and tuple(self.bias.shape) != (len(self),):
            raise InputError(f"There are {len(self)} images and bias of shape {tuple(self.bias.shape)}; give one each.")
        _refuse_misfit(self.space, self.shape)
        if not self.label_ids:
            object.__setattr__(self, "label_ids", tuple(range(self.classes)))
        if self.test is not None and self.test.space is not self.space:
            object.__setattr__(self, "test", replace(self.test, space=self.space))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.store.shape

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def known_test(self) -> RealSet:
        """The test split, for what cannot do without.

        Raises:
            InputError: there is none, or it is empty.
        """
        if self.test is None or not len(self.test):
            raise InputError(f"{self.name} has no test images; give it a test split.")
        return self.test

    @property
    def kind(self) -> str:
        """What stands beside the images: "classes", or "pairs" for captions."""
        return "classes" if self.captions is None else "pairs"

    @property
    def targets(self) -> Tensor:
        """What is learned from the images: class positions (n,), or the vectors of captions (n, d)."""
        return self.labels if self.captions is None else self.captions.vectors

    @property
    def network_shape(self) -> dict[str, Any]:
        """Arguments of `resolve_network`: the images, the outputs, and the numbers of a sentence's vector, if any."""
        shape: dict[str, Any] = {"channels": self.shape[0], "classes": self.classes, "size": self.shape[1:]}
        if self.captions is not None:
            shape |= {"classes": EMBED, "text": self.captions.dim}
        return shape

    @cached_property
    def counts(self) -> Tensor:
        """Images per class, (C,) int64."""
        return torch.bincount(self.labels, minlength=self.classes)

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        return members_by_class(self.labels, self.classes)

    def class_index(self, c: int) -> Tensor:
        """Positions of the images of class position `c`, ascending, (n_c,) int64."""
        return self._members[c]

    def drawable(self, c: int) -> Tensor:
        """Positions of the images of class position `c` that weigh anything, ascending; batches are drawn from these.

        Raises:
            InputError: the class has images, and none weighs anything.
        """
        members = self.class_index(c)
        if self.weights is None or not len(members):
            return members
        heavy = members[self.weights[members] > 0]
        if not len(heavy):
            raise InputError(f"Class {self.class_names[c]!r} has no image with a weight above 0; check the weights.")
        return heavy

    def pixels(self, index: Tensor) -> Tensor:
        """Images at `index` (n,) as pixels in [0, 1], (n, c, h, w) float32."""
        return self.store.get(index)

    def batch(self, index: Tensor) -> Batch:
        """Images at `index` (n,) in the set's Space, with labels (vectors of captions, of pairs) and weights."""
        weight = None if self.weights is None else self.weights[index]
        return Batch(self.space.encode(self.pixels(index)), self.targets[index], index, weight)

    def of_classes(self, classes: Sequence[int], n: int, generator: torch.Generator) -> Batch:
        """`n` images of each of `classes`, drawn without replacement, class after class.

        A class of fewer than `n` images gives all it has, in random order; images that weigh nothing are never drawn.

        Args:
            classes: class positions, in the order wanted.
            n: images per class.
            generator: a CPU generator, the only source of randomness here.
        """
        drawn = []
        for c in classes:
            members = self.drawable(int(c))
            drawn.append(members[torch.randperm(len(members), generator=generator)[:n]])
        return self.batch(torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.int64))

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple[RealSet, RealSet]:
        """A stratified (train, validation) pair that covers the set.

        Every class of two or more images has at least one on each side; a class of one stays in train.
        Both keep `test`.

        Raises:
            InputError: `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise InputError(f"A validation split of {fraction} is not between 0 and 1; 0.1 is a tenth.")
        if self.captions is not None:
            kept, held = apart(self.captions.image, fraction, seed, "validation")
        else:
            kept, held = hold_out(self.labels, self.classes, round(fraction * len(self)), seed, "validation")
        return self.subset(kept), self.subset(held)

    def subset(self, index: Tensor) -> RealSet:
        """The images at `index` (n,), in that order; classes stay as they are, even those left empty."""
        weights = None if self.weights is None else self.weights[index]
        bias = None if self.bias is None else self.bias[index]
        captions = None if self.captions is None else self.captions.subset(index)
        store = SubsetStore(self.store, index)
        return replace(self, store=store, labels=self.labels[index], weights=weights, bias=bias, captions=captions)

    def with_weights(self, weights: Tensor | None) -> RealSet:
        """The same set with a weight per image, (n,) finite and not negative; None takes weights away."""
        return replace(self, weights=weights)

    def with_space(self, space: Space) -> RealSet:
        """The same set (and test split) in another Space."""
        return replace(self, space=space)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images in order, labels, weights and Space: 16 hexadecimal digits."""
        sha = hashlib.sha256(self.store.content().encode())
        sha.update(self.labels.numpy().tobytes())
        sha.update(self.space.id.encode())
        if self.weights is not None:
            sha.update(self.weights.numpy().tobytes())
        if self.captions is not None:
            sha.update(self.captions.content().encode())
        return sha.hexdigest()[:16]

    def plot(self, kind: str = "") -> Figure:
        """Some images of every class as a matplotlib figure, or what `kind` asks for; see `datastill.plot`."""
        import datastill

        return datastill.plot(self, kind)

    def _repr_html_(self) -> str:
        import datastill

        return datastill.as_html(self)

    def describe(self) -> dict[str, Any]:
        """What a manifest or a report says about the set; JSON-able."""
        return {
            "name": self.name,
            "source": self.source,
            "options": dict(self.options),
            "images": len(self),
            "test_images": 0 if self.test is None else len(self.test),
            "shape": list(self.shape),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "label_ids": list(self.label_ids),
            "counts": self.counts.tolist(),
            "space": {**self.space.to_dict(), "id": self.space.id},
            "weighted": self.weights is not None,
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
            **({"attribute": self.attribute.to_dict()} if self.attribute is not None else {}),
            **({"captions": self.captions.describe()} if self.captions is not None else {}),
        }


def check_ipc(real: RealSet, ipc: int) -> None:
    """Refuse a number of images per class that `real` cannot give.

    Raises:
        InputError: `ipc` is not a whole number of at least 1, or a class has fewer images.
    """
    if isinstance(ipc, bool) or not isinstance(ipc, Integral) or ipc < 1:
        raise InputError(f"--ipc is {ipc!r}, and images per class must be a whole number of at least 1.")
    if real.captions is not None and ipc > len(real):
        raise InputError(
            f"{real.name} has {len(real)} pairs, fewer than the {ipc} asked for; use --ipc {len(real)} or smaller."
        )
    short = (real.counts < min(ipc, 2**62)).nonzero().flatten().tolist()
    if short:
        worst = min(short, key=lambda c: int(real.counts[c]))
        others = f" (and {len(short) - 1} more classes are short)" if len(short) > 1 else ""
        fewest = int(real.counts[worst])
        remedy = f"use --ipc {fewest} or smaller" if fewest else "leave that class out"
        raise InputError(
            f"Class {real.class_names[worst]!r} has {_images(fewest)}, fewer than --ipc {ipc}{others}; {remedy}."
        )


def _refuse_misfit(space: Space, shape: tuple[int, int, int]) -> None:
    center = space.tensors.get("centre")
    if center is not None and tuple(center.shape[1:]) != tuple(shape):
        raise InputError(
            f"The ZCA space belongs to images of {tuple(center.shape[1:])} and these are {tuple(shape)} "
            "(channels, height, width); pass the space that was fitted on such images, or space='auto'."
        )
    if space.mean and len(space.mean) != shape[0]:
        raise InputError(
            f"The space has {len(space.mean)} channels and the images have {shape[0]}; "
            "pass the space that belongs to them, or space='auto'."
        )


def _images(count: int) -> str:
    return "no image" if count == 0 else f"{count} image" + "s" * (count > 1)


def _sound_weights(weights: Tensor, count: int) -> Tensor:
    weights = torch.as_tensor(weights).detach().cpu()
    if tuple(weights.shape) != (count,):
        raise InputError(f"Weights have shape {tuple(weights.shape)}; give one weight for each of the {count} images.")
    if not weights.is_floating_point():
        weights = weights.float()
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise InputError("Weights must be finite and not negative; check them for NaN, infinity and signs.")
    return weights
