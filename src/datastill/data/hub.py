"""Data sets of the Hugging Face Hub by name, and `datasets` objects that the user has already."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError
from datastill.data.cache import IN_MEMORY_BYTES, Listing, materialise
from datastill.data.items import MOST_ITEMS
from datastill.data.parquet import list_dataset, read_splits
from datastill.data.raw import Raw, Request, Split, refuse_choice
from datastill.data.splits import decide
from datastill.store.hub import reachable


class Unreachable(InputError):
    """The Hub does not answer and there is no local copy."""


def from_hub(
    name: str,
    request: Request,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Raw:
    """A data set of the Hub by name, downloaded by `datasets` into its own cache.

    Raises:
        Unreachable: the Hub does not answer and there is no local copy.
        InputError: it has no such set, or the set has no usable image and label columns.
    """
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        with _offline_when_unreachable():
            loaded = datasets.load_dataset(name, config)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(
            f"{name!r} is neither a folder here nor a data set of the Hub that can be read without signing "
            "in; check the name."
        ) from error
    except ConnectionError as error:
        raise Unreachable(str(error)) from error
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name!r} of the Hub cannot be loaded ({reason}).") from error
    cached = (datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    roots = tuple(Path(folder).resolve() for folder in cached)
    return from_datasets(loaded, name, request, image=image, label=label, roots=roots)


def from_datasets(
    loaded: Any,
    name: str,
    request: Request,
    *,
    image: str | None = None,
    label: str | None = None,
    roots: tuple[Path, ...] | None = None,
) -> Raw:
    """A `datasets.DatasetDict` or `datasets.Dataset`; `roots` as `list_dataset` takes them."""
    if not isinstance(loaded, Mapping):
        refuse_choice(request, name)
        loaded = {"train": loaded}
    splits = {str(split): data for split, data in loaded.items()}
    decision = decide(list(splits), request.choice, name, plain=False)

    def read(parts: tuple[str, ...]) -> tuple[Split, tuple[str, ...] | None]:
        return _hub_split(_joined([_at_hand(splits[part], name) for part in parts]), name, request, image, label, roots)

    return read_splits(name, decision, read)


def _at_hand(data: Any, name: str) -> Any:
    """A dataset that can be read by position; one that cannot is walked and kept in memory, while it fits."""
    import datasets

    if not isinstance(data, datasets.IterableDataset):
        return data
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    rows: list[Any] = []
    size = 0
    for row in data:
        size += sum(_bytes_of(value) for value in row.values())
        if size > IN_MEMORY_BYTES or len(rows) == MOST_ITEMS:
            raise InputError(
                f"{name} goes on after {len(rows):,} rows, and an iterable dataset is kept in memory: at most "
                f"{IN_MEMORY_BYTES >> 30} GiB or {MOST_ITEMS:,} images; give a part of it (take), or load it without "
                "streaming."
            )
        rows.append(row)
    return datasets.Dataset.from_list(rows, features=data.features)


def _bytes_of(value: Any) -> int:
    data = value.get("bytes") if isinstance(value, dict) else value
    return len(data) if isinstance(data, bytes) else 8


def _joined(parts: list[Any]) -> Any:
    import datasets

    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _hub_split(
    data: Any,
    name: str,
    request: Request,
    image: str | None,
    label: str | None,
    roots: tuple[Path, ...] | None,
) -> tuple[Split, tuple[str, ...] | None]:
    key = ["datasets", data._fingerprint, len(data), image, label]

    def listing() -> Listing:
        return list_dataset(data, request, name, image, label, roots)

    return materialise(key, listing, request, re.sub(r"\W", "_", name))


@contextlib.contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Only local copies while the Hub does not answer: its client would try again for half a minute."""
    import datasets.config
    import huggingface_hub.constants

    if reachable():
        yield
        return
    places: tuple[Any, Any] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before):
            place.HF_HUB_OFFLINE = value
