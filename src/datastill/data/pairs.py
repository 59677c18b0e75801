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
from datastill.data.load import load_real, skipped_notes
from datastill.data.pixels import check_pixels
from datastill.data.raw import Raw, Request, Sentences, Split
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
    notes = [*raw.notes, *skipped_notes(raw.train, "train"), *check_pixels(raw.train, "train")]
    names, space = (CLASS,), resolve_space(space, raw.name, raw.train.store)
    train, test = _paired(raw.train, encoder, spec, names, space, raw.name), None
    if raw.test is not None:
        notes += [*skipped_notes(raw.test, "test"), *check_pixels(raw.test, "test")]
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


def load_pairs(
    source: Any, *, text: str | TextEncoder = "hashed", test: Any = None, name: str = "arrays", **options: Any
) -> RealSet:
    """Load a real set of pairs of images and sentences; its test split is `.test`, split by image.

    Args:
        source: "shapecaps"; "fashion-attributes"; a folder of images with a captions file (`captions.csv`, `.tsv`,
            `.jsonl` or `.json` with image, caption and perhaps split); or arrays (images, captions), where captions are
            sentences, or a list of sentences for each image.
        text: the text encoder, by name ("hashed", "sentence", "transformers:path=FOLDER") or itself.
        test: of arrays, (images, captions) of the test split; None holds some images out.
        name: of arrays, for people.
        options: as `load_real` takes them.

    Raises:
        InputError: the source cannot be used; one sentence says what is wrong and what to do.
    """
    if isinstance(source, tuple | list):
        return _from_arrays(source, test, text, name, options)
    if test is not None:
        raise InputError("test= goes with arrays; a captions file has a column `split`.")
    if not isinstance(text, str):
        raise InputError("An encoder of your own goes with arrays; name one for a source that is read by name.")
    spec = str(source)
    if text != "hashed":
        spec += ("," if ":" in spec else ":") + "text=" + text.replace(",", ";")
    real = load_real(spec, **options)
    if real.captions is None:
        raise InputError(f"{real.name} has no captions; put a captions.csv with image and caption into the folder.")
    return real


def _from_arrays(source: Any, test: Any, text: Any, name: str, options: Mapping[str, Any]) -> RealSet:
    from datastill.data.raw import make_request

    known = ("size", "mode", "space", "holdout", "seed", "limit")
    other = next((key for key in options if key not in known), None)
    if other is not None:
        raise InputError(f"Arrays of pairs take {', '.join(known)}, not {other}.")
    request = make_request(options.get("size"), options.get("mode"), False, "auto", options.get("seed", 0))
    train = _array_pairs(source, request, "train")
    raw = Raw(name, "", train, None if test is None else _array_pairs(test, request, "test"), text=text)
    kept = {key: value for key, value in options.items() if key not in ("size", "mode")}
    return assemble_pairs(raw, options=dict(options), **kept)


def _array_pairs(pair: Any, request: Request, where: str) -> Split:
    from datastill.data.arrays import array_split

    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"The {where} split must be (images, captions).")
    images, captions = pair
    each = [[one] if isinstance(one, str | bytes) else list(one) for one in captions]
    if len(each) != len(images):
        raise InputError(f"The {where} split has {len(images)} images and {len(each)} captions; give one to each.")
    for i, several in enumerate(each):
        wrong = next((one for one in several if not isinstance(one, str) or not one.strip()), None)
        if wrong is not None or not several:
            what = "bytes; decode them (utf-8) first" if isinstance(wrong, bytes) else "an empty caption or none"
            raise InputError(f"Image {i} of the {where} split has {what}; give each image a sentence.")
    made = array_split(images, [0] * len(each), request, where)
    texts = [" ".join(str(one).split()) for several in each for one in several]
    image = torch.tensor([i for i, several in enumerate(each) for _ in several], dtype=torch.int64)
    return Split(made.store, made.labels, sentences=Sentences(texts, image))
