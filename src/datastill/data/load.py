"""`load_real`: one way in for folders, parquet, the Hub, arrays, datasets and named sources."""

from __future__ import annotations

import contextlib
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data.arrays import from_arrays, is_pair
from datastill.data.classes import Classes
from datastill.data.pixels import check_pixels
from datastill.data.places import named, places_of, under_data
from datastill.data.raw import Raw, Request, Split, make_choice, make_request, refuse_choice
from datastill.data.real import RealSet
from datastill.data.sources import call_source
from datastill.data.spaces import resolve_space
from datastill.data.store import Store, SubsetStore
from datastill.data.stratify import hold_out, members_by_class


def load_real(
    source: Any,
    *,
    size: int | tuple[int, int] | None = None,
    mode: str | None = None,
    skip_bad: bool = False,
    storage: str = "auto",
    space: str | Space = "auto",
    holdout: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    limit: int | None = None,
    follow_links: bool = False,
    train: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    val: str | Sequence[str] | None = None,
) -> RealSet:
    """Load a real set; its test split is `.test`.

    Args:
        source: "digits"; a folder of class sub-folders (with or without train/ and test/); a folder of
            parquet files in the layout of the Hugging Face Hub; the name of such a folder in
            `DATASTILL_DATA`, or of a set on the Hub; arrays or tensors `(x, y)`,
            `((x, y), (x_test, y_test))` or `{"train": (x, y), "test": (x, y)}`; or any map-style torch
            Dataset of (image, label), or two of them in a tuple or dict. A name may carry options:
            "digits:train=1297", "cifar100:label=coarse_label", "cmnist:ratio=0.05".
        size: side, or (height, width), that all images are scaled to cover and then center-cropped to.
        mode: "L" or "RGB" to convert all images; needed where modes are mixed or have transparency.
        skip_bad: leave out images that cannot be decoded, with a warning and a note.
        storage: "auto" (decoded once; in memory below 1 GiB, else memory-mapped), "memory", "memmap" or
            "decode" (at every access). Arrays are in memory in any case.
        space: "auto" (per-channel mean and std: conventional for well-known sets, else measured on the
            training images), "normalized" (the same), "raw", "zca", or a Space.
        holdout: fraction that becomes the test split where the source has none; 0 for no test split.
        seed: of the hold-out and of `limit`.
        class_names: names by integer label, or in the sorted order of string labels.
        limit: keep at most this many training images per class.
        follow_links: whether links may lead out of a folder of images; a folder with such links is refused otherwise.
        train: which part of the source is the training split, where its names do not say it or say another: a
            sub-folder, parquet files, a split; several with commas or in a list; `*` stands for any characters, "." for
            the folder itself, whose sub-folders are all classes then.
        test: which part is the test split; "none" for none of them, so that one is held out.
        val: which part stands in for the test split where there is none.

    Raises:
        InputError: the source cannot be used; one sentence says what is wrong and what to do.
    """
    choice = make_choice(train, test, val)
    request = make_request(size, mode, skip_bad, storage, seed, follow_links, choice)
    if not 0 <= holdout < 1:
        raise InputError(f"holdout={holdout} is not a fraction below 1; 0.2 holds out a fifth, 0 nothing.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit={limit!r} must be a whole number of images per class of at least 1.")
    options = {
        "size": list(request.size) if request.size else None,
        "mode": mode,
        "skip_bad": skip_bad or None,
        "space": space if isinstance(space, str) and space != "auto" else None,
        "holdout": holdout if holdout != 0.2 else None,
        "seed": seed or None,
        "class_names": list(class_names) if class_names is not None else None,
        "limit": limit,
        "follow_links": follow_links or None,
        **{name: _as_given(getattr(choice, name)) for name in ("train", "test", "val")},
    }
    places = tuple(str(place) for place in places_of(source))
    with offering_a_look(source, places):
        made = assemble(
            read_source(source, request),
            space=space,
            holdout=holdout,
            seed=seed,
            limit=limit,
            class_names=class_names,
            options={key: value for key, value in options.items() if value is not None},
        )
    return replace(made, places=places)


@contextlib.contextmanager
def offering_a_look(source: Any, places: Sequence[str]) -> Iterator[None]:
    """End errors about data that are there with the command that shows what is there."""
    try:
        yield
    except InputError as error:
        if places and isinstance(source, str | os.PathLike):
            command = f"datastill data {shlex.quote(os.fspath(source))}"
            error.args = (f"{error} `{command}` shows what is there.", *error.args[1:])
        raise


def _as_given(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else ",".join(names) or "none"


def read_source(source: Any, request: Request) -> Raw:
    """Read what `source` is; see `load_real`."""
    raw = _dispatch(source, request)
    return replace(raw, test=None) if request.choice.test == () and not request.choice.val else raw


def _dispatch(source: Any, request: Request) -> Raw:
    if isinstance(source, str | os.PathLike):
        return _read_named(source, request)
    if type(source).__module__.split(".")[0] == "datasets":
        from datastill.data.hub import from_datasets

        return from_datasets(source, "dataset", request)
    refuse_choice(request, f"A {type(source).__name__}")
    if isinstance(source, Mapping):
        parts = list(source.values())
    elif isinstance(source, tuple | list) and not is_pair(source):
        parts = list(source)
    else:
        parts = [source]
    if parts and all(is_pair(part) for part in parts):
        return from_arrays(source, request)
    from datastill.data.items import from_items, gives_items

    if parts and len(parts) <= 2 and all(gives_items(part) for part in parts):
        return from_items(source, request)
    raise InputError(
        f"A {type(source).__name__} is no source of images; give a path, a name, (images, labels) or a torch Dataset."
    )


def _read_named(source: str | os.PathLike[str], request: Request) -> Raw:
    text, found = os.fspath(source), named(source)
    name, options = found.name, found.options
    if found.built_in is not None:
        raw = call_source(found.built_in, name, options, request)
        # a colon alone says that the built-in set is meant, which need be said only beside a folder of its name
        return replace(raw, source=text if found.shadows or options else name)
    if found.path is not None:
        path = found.path.resolve()
        raw = _read_folder(path, path.name, request, options)
        told = f"{name} is the folder {path}; the built-in set of that name is {name}: with a colon"
        return replace(raw, notes=(told, *raw.notes)) if found.shadows else raw
    if not isinstance(source, str) or _looks_like_path(name):
        raise InputError(f"There is no folder {name}; check the path.")
    kept = under_data(name)
    if kept is not None:
        return replace(_read_folder(kept, name, request, options), name=name, source=text)
    return replace(_read_hub(name, request, options), source=text)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", os.sep, "/")) or text.count("/") > 1 or text.endswith(("/", os.sep))


def _read_folder(folder: Path, name: str, request: Request, options: dict[str, str]) -> Raw:
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder that holds the images or parquet files.")
    from datastill.data.captions_file import find_captions
    from datastill.data.folder import from_folder
    from datastill.data.parquet import find_parquet, from_parquet

    if find_captions(folder) is not None:
        from datastill.data.captioned_folder import from_captioned

        raw = call_source(from_captioned, name, options, folder, request)
    elif options or find_parquet(folder):
        raw = call_source(from_parquet, name, options, folder, name, request)
    else:
        raw = from_folder(folder, request)
    tail = ":" + ",".join(f"{k}={v}" for k, v in options.items()) if options else ""
    return replace(raw, source=f"{folder}{tail}")


def _read_hub(name: str, request: Request, options: dict[str, str]) -> Raw:
    from datastill.data.hub import Unreachable, from_hub

    if not request.fetch:
        raise InputError(
            f"{name!r}, which the set names as its real data, is not at hand, and nothing is fetched on a file's word; "
            f"give it yourself (--data {name})."
        )
    root = os.environ.get("DATASTILL_DATA")
    where = f"not under DATASTILL_DATA ({root})" if root else "not under DATASTILL_DATA (which is not set)"
    try:
        return call_source(from_hub, name, options, name, request)
    except Unreachable as error:
        reason = "and the Hugging Face Hub cannot be reached; check the name, the path or the connection"
        raise InputError(f"{name!r} is not a folder here, {where}, {reason}.") from error


def assemble(
    raw: Raw,
    *,
    space: str | Space = "auto",
    holdout: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> RealSet:
    """Classes, hold-out, limit and Space: from what a source read to a RealSet. Arguments as `load_real`."""
    if raw.train.sentences is not None:
        from datastill.data.pairs import assemble_pairs

        return assemble_pairs(raw, space=space, holdout=holdout, seed=seed, limit=limit, options=options or {})
    notes = [*raw.notes, *skipped_notes(raw.train, "train"), *check_pixels(raw.train, "train")]
    classes = Classes(raw.train.labels, class_names if class_names is not None else raw.names)
    notes += classes.notes
    store: Store = raw.train.store
    labels = classes.positions(raw.train.labels, "train")
    bias, test_bias = raw.train.bias, None if raw.test is None else raw.test.bias
    test: tuple[Store, torch.Tensor] | None = None
    count = len(classes.ids)
    if raw.test is not None:
        notes += [*skipped_notes(raw.test, "test"), *check_pixels(raw.test, "test")]
        _refuse_other_shape(store, raw.test.store)
        test = raw.test.store, classes.positions(raw.test.labels, "test")
    elif holdout:
        kept, held = hold_out(labels, count, round(holdout * len(labels)), seed, "holdout")
        if len(held):
            test = SubsetStore(store, held), labels[held]
            bias, test_bias = (None, None) if bias is None else (bias[kept], bias[held])
            store, labels = SubsetStore(store, kept), labels[kept]
            notes.append(f"test split: a seeded stratified hold-out of {100 * holdout:g} %, {len(held)} images")
    if limit is not None:
        members = [m[_draw(len(m), limit, seed, c)] for c, m in enumerate(members_by_class(labels, count))]
        rows = torch.cat(members).sort().values
        store, labels, bias = SubsetStore(store, rows), labels[rows], None if bias is None else bias[rows]
        notes.append(f"limited to at most {limit} training images per class")
    common = {
        "class_names": classes.names,
        "label_ids": tuple(classes.ids),
        "space": resolve_space(space, raw.name, store),
        "name": raw.name,
        "attribute": raw.attribute,
    }
    return RealSet(
        store=store,
        labels=labels,
        source=raw.source,
        options=dict(options or {}),
        test=None if test is None else RealSet(store=test[0], labels=test[1], bias=test_bias, **common),  # type: ignore[arg-type]
        held_out=raw.test is None and test is not None,
        notes=tuple(notes),
        bias=bias,
        **common,  # type: ignore[arg-type]
    )


def _draw(count: int, limit: int, seed: int, c: int) -> torch.Tensor:
    from datastill.core.rng import Rng

    return torch.randperm(count, generator=Rng(seed).generator("limit", c))[:limit]


def skipped_notes(split: Split, where: str) -> list[str]:
    """What is said of images of a split that cannot be read and were left out; warned of as well."""
    if not split.skipped:
        return []
    shown = ", ".join(split.skipped[:5]) + (", ..." if len(split.skipped) > 5 else "")
    plural = "s" * (len(split.skipped) > 1)
    note = f"{len(split.skipped)} unreadable image{plural} of the {where} split skipped: {shown}"
    warnings.warn(note, stacklevel=4)
    return [note]


def _refuse_other_shape(train: Store, test: Store) -> None:
    if train.shape != test.shape:
        raise InputError(
            f"Training images are {train.shape} and test images {test.shape} (channels, height, width); "
            "make them alike with size= or mode= (--size, --mode)."
        )
