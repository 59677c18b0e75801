"""The files of one expert: `expert_00000.bin`, rows of snapshots, and `expert_00000.json`, written after it."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from datastill.core.errors import Diverged, InputError
from datastill.store.files import CHECKSUM, as_json, atomic_path, read_json, refuse_changed, sealed
from datastill.store.opening import open_regular, refuse_sparse
from datastill.store.schema import Count, Fraction, Name, Number, Record, Seconds, Sha256, Whole
from datastill.surrogates.experts.layout import Layout

FORMAT = "datastill-expert"
VERSION = 1

#: How numbers are stored, by the name in the record; little-endian wherever they are written.
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}

#: The largest relative error that rounding to float16 may bring into the step of a segment.
LOSSY_LIMIT = 1e-2


class ExpertFile(Record):
    """What `expert_00000.json` may say."""

    format: Name
    version: Whole
    expert: Count
    config: Name
    dtype: Literal["float32", "float16"]
    snapshots: Annotated[int, Field(ge=2, le=10_000_000)]
    sha256: Sha256
    squared_steps: list[Number]
    train_loss: list[Number] | None = None
    train_accuracy: list[Fraction] | None = None
    test_accuracy: list[Fraction] | None = None
    seed: Whole | None = None
    seconds: Seconds | None = None

    def refuse_other_lengths(self, epochs: int) -> None:
        """Raise ValueError unless every list has a number for each epoch."""
        if len(self.squared_steps) != epochs:
            raise ValueError("not one step for each epoch")
        for values in (self.train_loss, self.train_accuracy, self.test_accuracy):
            if values and len(values) != epochs:
                raise ValueError("not one loss and accuracy for each epoch")


@dataclass(frozen=True)
class ExpertRecord:
    """What `expert_00000.json` says.

    Attributes:
        expert: the number in the file's name.
        config: digest of the configuration of the buffer that it belongs to.
        dtype: of the stored numbers, "float32" or "float16".
        snapshots: rows; row e is the network after epoch e, row 0 its initialization.
        sha256: of the .bin file.
        squared_steps: squared distance of the parameters from the snapshot before, for each epoch.
        train_loss, train_accuracy: means over each epoch, of augmented images, while the network changed.
        test_accuracy: after each epoch, only where it was asked for.
        seed: of every draw; None where it is not known.
        seconds: of training.
    """

    expert: int
    config: str
    dtype: str
    snapshots: int
    sha256: str
    squared_steps: tuple[float, ...]
    train_loss: tuple[float, ...] | None = None
    train_accuracy: tuple[float, ...] | None = None
    test_accuracy: tuple[float, ...] | None = None
    seed: int | None = None
    seconds: float | None = None


def bin_path(folder: Path, expert: int) -> Path:
    """The rows of an expert."""
    return folder / f"expert_{expert:05d}.bin"


def record_path(folder: Path, expert: int) -> Path:
    """The record of an expert; it is there when the expert is finished."""
    return folder / f"expert_{expert:05d}.json"


def expert_numbers(folder: Path) -> list[int]:
    """The finished experts in a folder, ascending."""
    stems = [path.stem.removeprefix("expert_") for path in folder.glob("expert_*.json")]
    return sorted(int(stem) for stem in stems if stem.isdecimal() and len(stem) >= 5)


def write_expert(
    folder: Path,
    expert: int,
    layout: Layout,
    rows: Iterable[Tensor],
    *,
    config: str,
    lossy: bool = False,
    span: int = 2,
    **known: Any,
) -> None:
    """Write the two files of an expert, each whole or absent, the record last.

    Args:
        rows: snapshots (width,) float32, in order; taken one by one.
        lossy: store float16, if that changes no step over `span` epochs by more than 1 %.
        known: further fields of `ExpertRecord`.

    Raises:
        Diverged: a number is not finite.
        InputError: float16 is too coarse, or the files cannot be written.
    """
    kind = "float16" if lossy else "float32"
    sha, steps, window = hashlib.sha256(), [], deque[Tensor](maxlen=span + 1)
    with durable(bin_path(folder, expert)) as file:
        for epoch, row in enumerate(rows):
            if not bool(torch.isfinite(row).all()):
                raise Diverged(f"Expert {expert} holds numbers that are not finite after epoch {epoch}.")
            if window:
                steps.append(float((row - window[-1])[: layout.size].double().square().sum()))
            window.append(row)
            if lossy:
                _refuse_coarse(window, layout.size, expert, epoch, span)
            data = row.numpy().astype(DTYPES[kind]).tobytes()
            sha.update(data)
            file.write(data)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "expert": expert,
        "config": config,
        "dtype": kind,
        "snapshots": len(steps) + 1,
        "sha256": sha.hexdigest(),
        "squared_steps": steps,
        **known,
    }
    write_record(record_path(folder, expert), record)


def _refuse_coarse(window: Sequence[Tensor], size: int, expert: int, epoch: int, span: int) -> None:
    """The step of a segment, rounded at both ends, must be the step; late segments are short and suffer first."""
    if not bool(torch.isfinite(window[-1].half()).all()):
        raise InputError(f"Expert {expert} holds numbers too large for float16; store it without --lossy.")
    if len(window) <= span:
        return
    start, end = window[0][:size].double(), window[-1][:size].double()
    rounded = end.half().double() - start.half().double()
    error = float((rounded - (end - start)).norm() / (end - start).norm().clamp_min(1e-300))
    if error > LOSSY_LIMIT:
        raise InputError(
            f"Float16 is too coarse for expert {expert}: rounding changes its step from epoch {epoch - span} to "
            f"{epoch} by {100 * error:.1f} %, and at most {100 * LOSSY_LIMIT:g} % is allowed; store it without --lossy "
            "(the same command then goes on without training it again)."
        )


def read_record(folder: Path, expert: int, config: str, snapshots: int, layout: Layout) -> ExpertRecord:
    """A finished expert's record, with the size of its rows checked.

    Raises:
        InputError: it is damaged, belongs to another buffer, or its rows are missing or cut short.
    """
    path = record_path(folder, expert)
    whole = read_json(path)
    checked = ExpertFile.of(whole, path)
    try:
        found: dict[str, Any]
        found = {k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in whole.items() if k != CHECKSUM}
        if found.pop("format") != FORMAT or found.pop("version") != VERSION:
            raise ValueError("another format")
        record = ExpertRecord(**found)
        checked.refuse_other_lengths(record.snapshots - 1)
        wanted = record.snapshots * layout.width * DTYPES[record.dtype].itemsize
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the record of an expert ({error}); {_again(folder, expert)}.") from error
    if (record.expert, record.config, record.snapshots) != (expert, config, snapshots):
        raise InputError(f"{path} belongs to another buffer than {folder / 'meta.json'}; {_again(folder, expert)}.")
    refuse_changed(path, whole)
    rows = bin_path(folder, expert)
    size = refuse_sparse(rows) if rows.is_file() else 0
    if size != wanted:
        what = "is missing" if not rows.is_file() else f"has {size:,} bytes and should have {wanted:,}"
        raise InputError(f"{rows} {what}: it was cut short or damaged; {_again(folder, expert)}.")
    return record


def read_rows(folder: Path, record: ExpertRecord, width: int, epochs: Sequence[int]) -> Tensor:
    """Snapshots (len(epochs), width) float32, of their own memory.

    They are read where they stand in the file. (A memory map gives the same, but its pages count as memory of this
    process, and a file that is cut short under it is a bus error instead of a sentence.)
    """
    dtype, path = DTYPES[record.dtype], bin_path(folder, record.expert)
    out, size = np.empty((len(epochs), width), dtype=np.float32), width * dtype.itemsize
    try:
        with open_regular(path) as file:
            for k, epoch in enumerate(epochs):
                file.seek(epoch * size)
                data = file.read(size)
                if len(data) < size:
                    raise OSError(errno.EIO, "it was cut short")
                out[k] = np.frombuffer(data, dtype)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {_again(folder, record.expert)}.") from error
    return torch.from_numpy(out)


def refuse_damaged(folder: Path, record: ExpertRecord) -> None:
    """Compare the rows with the hash in the record.

    Raises:
        InputError: they differ.
    """
    path = bin_path(folder, record.expert)
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from error
    if found != record.sha256:
        raise InputError(
            f"{path} is damaged: its sha256 is not the one in {record_path(folder, record.expert).name}; "
            f"{_again(folder, record.expert)}."
        )


def stored_bytes(folder: Path, records: Iterable[ExpertRecord]) -> int:
    """Bytes on disk of some experts."""
    return sum(p(folder, r.expert).stat().st_size for r in records for p in (bin_path, record_path))


def write_record(target: Path, record: Mapping[str, Any]) -> None:
    """Write JSON with its checksum, durably."""
    with durable(target) as file:
        file.write(as_json(sealed(record)).encode())


@contextmanager
def durable(target: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is on the disk, whole, before it has its name."""
    with atomic_path(target) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _again(folder: Path, expert: int) -> str:
    name, ready = record_path(folder, expert).name, folder.with_name(f"{folder.name}.safetensors")
    also = f" and {ready.name} beside it," if ready.is_file() else ""  # of a run, which takes them to be complete
    return f"remove {name} in {folder}{also} and run the command that made the buffer again"
