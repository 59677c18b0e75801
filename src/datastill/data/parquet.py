"""Parquet folders in the layout of the Hugging Face Hub, read by `datasets`."""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datastill.core.errors import InputError, nearest
from datastill.data.cache import IN_MEMORY_BYTES, Listing, materialise
from datastill.data.classes import read_labels
from datastill.data.decode import CorruptImage, decode_image
from datastill.data.inside import Links, is_inside
from datastill.data.raw import Raw, Request, Split

_SPLIT = re.compile(r"^(train|test|validation|valid|val|dev)(?:[-_.].*)?$", re.IGNORECASE)


def find_parquet(folder: Path, config: str | None = None) -> dict[str, list[Path]]:
    """Parquet files by split ("train", "test", "validation"); {} where the folder has none.

    They may lie in the folder itself, in `data/`, or in one sub-folder per configuration.
    """
    if config is not None:
        return _by_split(folder / config)
    found = _by_split(folder) or _by_split(folder / "data")
    if found:
        return found
    configs = {child.name: _by_split(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    configs = {name: files for name, files in configs.items() if files}
    if len(configs) > 1:
        raise InputError(
            f"{folder} has several configurations ({', '.join(configs)}); choose one with "
            f"{folder}:config={next(iter(configs))}."
        )
    return next(iter(configs.values()), {})


def _by_split(folder: Path) -> dict[str, list[Path]]:
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    found: dict[str, list[Path]] = {}
    for file in files:
        match = _SPLIT.match(file.stem)
        name = match.group(1).lower() if match else "train"
        found.setdefault(name if name in ("train", "test") else "validation", []).append(file)
    return found


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
    links = Links(folder, request.follow_links)
    files = {split: [f for f in found if links.allows(f)] for split, found in files.items()}
    links.refuse()
    if "train" not in files:
        raise InputError(f"{folder} has no training split; name its parquet files train-*.parquet.")
    test = "test" if "test" in files else "validation"
    notes = () if "test" in files or test not in files else ("test split: the validation files",)
    train_split, names = _local_split(files["train"], name, request, image, label, links.roots)
    test_split = _local_split(files[test], name, request, image, label, links.roots)[0] if test in files else None
    return Raw(name, "", train_split, test_split, names, notes)


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

    def decode(i: int) -> np.ndarray:
        item = column[i].column(image)[0].as_py()
        data = item.get("bytes") if isinstance(item, dict) else item
        if data is None and isinstance(item, dict) and item.get("path"):
            data = _read_path(_placed(item["path"], roots), called(i))
        if not isinstance(data, bytes):
            raise CorruptImage(f"{called(i)} has no encoded image; remove that row or skip such images with skip_bad.")
        try:
            return decode_image(data, f"{name} image {i}", request)
        except InputError as error:
            raise type(error)(str(error).replace(f"{name} image {i}", called(i), 1)) from error

    return Listing(read_labels(list(labels)), decode, called, names)


def _placed(path: str, roots: tuple[Path, ...] | None) -> Path:
    return Path(path) if roots is None else roots[0] / path


def _read_path(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise CorruptImage(f"{name} cannot be read ({error}); mend that row or skip such images.") from error


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
    raise InputError(f"{name} has no {what} column among {', '.join(features)}; name it with {name}:{what}=COLUMN.")


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
