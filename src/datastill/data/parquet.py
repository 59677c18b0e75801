"""Parquet folders in the layout of the Hugging Face Hub, read by `datasets`."""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datastill.core.errors import InputError, nearest
from datastill.data.cache import IN_MEMORY_BYTES, Listing, materialise
from datastill.data.classes import read_labels
from datastill.data.decode import CorruptImage, decode_image
from datastill.data.inside import Links, is_inside
from datastill.data.parts import folders_in
from datastill.data.raw import LabelId, Raw, Request, Split, Unlabeled
from datastill.data.splits import SETTLE, Decision, decide, first_usable, found_note, listed, speaks_of_split


def find_parquet(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """Parquet files by part: a file by its stem, those of a sub-folder with a split's name by that; {} for none.

    They may lie in the folder itself, in `data/`, or in one sub-folder per configuration.
    """
    if config is not None:
        return _parts(folder / config)
    found = _parts(folder)
    if found:
        return found
    configs = {child.name: _parts(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    configs = {name: files for name, files in configs.items() if files}
    if len(configs) > 1:
        raise InputError(
            f"{folder} has several configurations ({', '.join(configs)}); choose one with "
            f"{folder}:config={next(iter(configs))}."
        )
    return next(iter(configs.values()), {})


def _parts(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        return {}
    found = {file.stem: [file] for file in sorted(folder.glob("*.parquet"))}
    splits = {child.name: sorted(child.glob("*.parquet")) for child in sorted(folders_in(folder))}
    splits = {f"{name}/" if name in found else name: files for name, files in splits.items() if files}
    # folders without files beside them, of which no name speaks of a split, are configurations
    return {**found, **splits} if found or any(map(speaks_of_split, splits)) else {}


def refuse_mixed(files: dict[str, list[Path]], request: Request, folder: Path) -> None:
    """Refuse files beside folders of files: `datasets` sees the files only where no folder has a split's name.

    Raises:
        InputError: there are both, and the caller does not say what is which.
    """
    depths = {len(found[0].parts) for found in files.values()}
    if len(depths) > 1 and not request.choice:
        raise InputError(f"{folder} has parquet files in it and in folders of it ({listed(files)}); {SETTLE}.")


def from_parquet(
    folder: Path,
    name: str,
    request: Request,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Raw:
    """A local folder of parquet files; `image` and `label` name the columns where they are not obvious."""
    files = find_parquet(folder, config)
    refuse_mixed(files, request, folder)
    decision = decide(list(files), request.choice, folder)
    links = Links(folder, request.follow_links)
    used = {*decision.train, *(part for parts in decision.tests for part in parts)}
    files = {part: [f for f in found if links.allows(f)] for part, found in files.items() if part in used}
    links.refuse()

    def read(parts: tuple[str, ...]) -> tuple[Split, tuple[str, ...] | None]:
        chosen = [file for part in parts for file in files[part]]
        return _local_split(chosen, name, request, image, label, links.roots)

    return read_splits(name, decision, read)


def read_splits(
    name: str, decision: Decision, read: Callable[[tuple[str, ...]], tuple[Split, tuple[str, ...] | None]]
) -> Raw:
    """The training split, the first test split that has labels, and what was found."""
    notes: list[str] = []
    train, classes = read(decision.train)
    parts, test = first_usable(decision, lambda names: read(names)[0], notes)
    found = found_note((train, decision.train), (test, parts), decision.left, test is not None and decision.stand_in)
    return Raw(name, "", train, test, classes, (*found, *notes))


def _local_split(
    files: list[Path],
    name: str,
    request: Request,
    image: str | None,
    label: str | None,
    roots: tuple[Path, ...],
) -> tuple[Split, tuple[str, ...] | None]:
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = ["parquet", stats, image, label]
    with contextlib.ExitStack() as stack:

        def listing() -> Listing:
            return list_dataset(_read_files(files, request, stack), request, name, image, label, roots)

        return materialise(key, listing, request, re.sub(r"\W", "_", name))


def _read_files(files: list[Path], request: Request, stack: contextlib.ExitStack) -> Any:
    """A `datasets.Dataset` of the files: in memory while they are small, else through a copy on disk.

    That copy, which `datasets` maps, goes once the images are decoded.
    """
    import datasets
    import pyarrow.parquet

    try:
        if sum(f.stat().st_size for f in files) <= IN_MEMORY_BYTES:
            tables = [pyarrow.parquet.read_table(f, partitioning=None) for f in files]
            return datasets.Dataset(pyarrow.concat_tables(tables), fingerprint="parquet")
        where = None
        if request.storage != "decode":
            scratch = tempfile.TemporaryDirectory(prefix="datastill-", ignore_cleanup_errors=True)
            where = stack.enter_context(scratch)
        with _quiet():
            names = [str(f) for f in files]
            return datasets.load_dataset("parquet", data_files=names, split="train", cache_dir=where)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"{files[0].parent} cannot be read as parquet ({reason}).") from error


def list_dataset(
    data: Any,
    request: Request,
    name: str,
    image: str | None,
    label: str | None,
    roots: tuple[Path, ...] | None = None,
) -> Listing:
    """The encoded images and labels of a `datasets.Dataset`.

    Args:
        roots: folders in which files that rows name must lie, relative to the first; None where the caller made the
            dataset and any will do.

    Raises:
        InputError: no such columns, or rows that name files elsewhere.
    """
    import datasets

    image = _column(data, image, ("image", "img"), datasets.Image, name, "image")
    label = _column(data, label, ("label", "fine_label", "labels"), datasets.ClassLabel, name, "label")
    feature = data.features[label]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if isinstance(data.features[image], datasets.Image):
        data = data.cast_column(image, datasets.Image(decode=False))
    column = data.with_format("arrow")
    # as stored: to decode a column of another kind may open files and addresses that it names
    labels = column.select_columns([label])[:].column(0).to_pylist()
    if roots is not None:
        _refuse_outside(column.select_columns([image]), image, name, roots)

    def called(i: int) -> str:
        item = column[i].column(image)[0].as_py()
        path = item.get("path") if isinstance(item, dict) else None
        return f"{name} image {i}" + (f" ({path})" if path else "")

    def encoded(i: int) -> bytes:
        item = column[i].column(image)[0].as_py()
        data = item.get("bytes") if isinstance(item, dict) else item
        if data is None and isinstance(item, dict) and item.get("path"):
            data = _read_path(_placed(item["path"], roots), called(i))
        if not isinstance(data, bytes):
            raise CorruptImage(f"{called(i)} has no encoded image; remove that row or skip such images with skip_bad.")
        return data

    def decode(i: int) -> np.ndarray:
        data = encoded(i)
        try:
            return decode_image(data, f"{name} image {i}", request)
        except InputError as error:
            raise type(error)(str(error).replace(f"{name} image {i}", called(i), 1)) from error

    return Listing(_row_labels(labels, name), decode, called, names, encoded)


def _row_labels(labels: list[Any], name: str) -> list[LabelId]:
    if labels and all(label is None for label in labels):
        raise Unlabeled(f"No row of {name} has a label.")
    missing = next((i for i, label in enumerate(labels) if label is None), None)
    if missing is not None:
        raise InputError(f"Row {missing} of {name} has no label; label it or remove it.")
    return read_labels(labels)


def _placed(path: str, roots: tuple[Path, ...] | None) -> Path:
    return Path(path) if roots is None else roots[0] / path


def _read_path(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptImage(
            f"{name} holds no image but the path of a file that is not at {path}; where files were moved, load the "
            "data again, else mend that row or skip such images with skip_bad (--skip-bad)."
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CorruptImage(
            f"{name} cannot be read ({reason}); mend that row or skip such images with skip_bad (--skip-bad)."
        ) from error


def _refuse_outside(images: Any, column: str, name: str, roots: tuple[Path, ...]) -> None:
    """Rows with a path and no bytes may name any file of this machine."""
    import pyarrow

    if not pyarrow.types.is_struct(images.features.arrow_schema.field(column).type):
        return
    outside: list[str] = []
    for table in images.iter(10_000):
        for item in table.column(0).filter(_without_bytes(table.column(0))).to_pylist():
            if item["path"] and not is_inside(_placed(item["path"], roots), roots):
                outside.append(item["path"])
    if outside:
        raise InputError(
            f"{len(outside)} rows of {name} hold no image but the path of a file outside the data, such as "
            f"{outside[0]}; store the images themselves, or copy the files into {roots[0]} and name them from there."
        )


def _without_bytes(column: Any) -> Any:
    """Which rows of a struct column have a path and no bytes, as an arrow mask."""
    import pyarrow
    import pyarrow.compute

    names = [field.name for field in column.type]
    if "path" not in names:
        return pyarrow.array([False] * len(column))
    if "bytes" not in names:
        return pyarrow.array([True] * len(column))
    return pyarrow.compute.is_null(pyarrow.compute.struct_field(column, "bytes"))


def _column(data: Any, given: str | None, usual: tuple[str, ...], kind: type, name: str, what: str) -> str:
    features = data.features
    if given is not None:
        if given not in features:
            raise InputError(f"{name} has no column {given!r}. {nearest(given, features)}")
        return given
    for column in (*usual, *(c for c, feature in features.items() if isinstance(feature, kind))):
        if column in features:
            return str(column)
    kind_of_error = Unlabeled if what == "label" else InputError
    raise kind_of_error(f"{name} has no {what} column among {', '.join(features)}; name it with {name}:{what}=COLUMN.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and warnings of `datasets`; its settings are what they were, afterwards."""
    import datasets

    shown = datasets.utils.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
