"""Real sets of pairs of images and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.core.space import Space
from datastill.data.captions import Captions, apart
from datastill.data.pixels import check_pixels
from datastill.data.raw import Raw, Sentences, Split
from datastill.data.real import RealSet
from datastill.data.spaces import resolve_space
from datastill.data.store import SubsetStore
from datastill.data.text import TextEncoder, text_encoder

#: The one class of a set of pairs.
CLASS = "pairs"


def assemble_pairs(
    raw: Raw,
    *,
    space: str | Space = "auto",
    holdout: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    options: Mapping[str, Any],
) -> RealSet:
    """Vectors of captions, hold-out by image, limit and Space: as `load.assemble` for sources of pairs."""
    spec = raw.text if isinstance(raw.text, str) else type(raw.text).__name__
    encoder = text_encoder(spec.replace(";", ",") if isinstance(raw.text, str) else raw.text)
    notes = [*raw.notes, *check_pixels(raw.train, "train")]
    names, space = (CLASS,), resolve_space(space, raw.name, raw.train.store)
    train, test = _paired(raw.train, encoder, spec, names, space, raw.name), None
    if raw.test is not None:
        notes += check_pixels(raw.test, "test")
        test = _paired(raw.test, encoder, spec, names, space, raw.name)
    elif holdout:
        train, test, note = _held_out(train, holdout, seed)
        notes.append(note)
    if limit is not None and limit < len(train):
        rows = torch.randperm(len(train), generator=Rng(seed).generator("limit", 0))[:limit].sort().values
        train = train.subset(rows)
        notes.append(f"limited to {limit} training pairs")
    return replace(train, test=test, source=raw.source, options=dict(options), notes=tuple(notes))


def _paired(split: Split, encoder: TextEncoder, spec: str, names: tuple[str, ...], space: Space, name: str) -> RealSet:
    """A split whose images are repeated for each of their captions."""
    told = split.sentences
    assert told is not None
    captions = Captions.of(told.texts, told.image, encoder, spec, told.group)
    labels = torch.zeros(len(told.texts), dtype=torch.int64)
    store = SubsetStore(split.store, told.image)
    return RealSet(store=store, labels=labels, class_names=names, space=space, name=name, captions=captions)


def _held_out(real: RealSet, part: float, seed: int) -> tuple[RealSet, RealSet, str]:
    assert real.captions is not None
    images = len(real.captions.image.unique())
    if images < 2:
        raise InputError(f"{real.name} has one image with captions, so none can be held out; give more images.")
    kept, held = apart(real.captions.image, part, seed, "holdout")
    count = len(real.captions.image[held].unique())
    note = f"test split: a seeded hold-out of {100 * part:g} % of the images, {count} images with {len(held)} captions"
    return real.subset(kept), real.subset(held), note


__all__ = ["Sentences", "assemble_pairs"]
