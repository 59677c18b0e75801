"""A buffer of expert trajectories: a folder that is opened without reading it, and read segment by segment.

buffer/
  meta.json           what the experts depend on, and the columns of a row
  expert_00000.bin    little-endian float32 [snapshots, width]; row e is the network after epoch e
  expert_00000.json   seed, losses, squared steps, sha256 of the .bin; written last
  partial/            experts that are still being trained
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from datastill.core.errors import InputError
from datastill.store.files import CHECKSUM, digest, read_json, refuse_changed
from datastill.store.schema import Count, Name, Record, Text, Whole
from datastill.surrogates.experts.files import (
    ExpertRecord,
    expert_numbers,
    read_record,
    read_rows,
    refuse_damaged,
    stored_bytes,
)
from datastill.surrogates.experts.identity import refuse_difference
from datastill.surrogates.experts.layout import Layout

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.factory import NetworkFactory

FORMAT = "datastill-experts"
VERSION = 1
META = "meta.json"
PARTIAL = "partial"


class Policy(Record):
    """How the experts were trained."""

    name: Name


class Config(Record):
    """All that the experts depend on; most of it is compared and not used."""

    network: dict[str, Any]
    parameters: Count
    space: Text
    data: Text
    weights: Text | None
    epochs: Count
    snapshots: Annotated[int, Field(ge=2, le=10_000_000)]
    policy: Policy
    augment: Text | None
    seed: Whole | None


class AboutData(Record):
    """The real set."""

    name: Text
    images: Count
    weighted: bool


class AboutSpace(Record):
    """The Space, in words."""

    kind: Text
    source: Text


class About(Record):
    """The same things for people."""

    network: Text
    data: AboutData
    space: AboutSpace


class Row(Record):
    """The columns of a snapshot, see `Layout`."""

    P: Count
    width: Count
    parameters: list[dict[str, Any]]
    statistics: list[dict[str, Any]]


class BufferFile(Record):
    """What `meta.json` may say."""

    config: Config
    about: About
    row: Row
    versions: dict[str, Any]


def open_buffer(path: str | Path) -> ExpertBuffer:
    """A buffer's finished experts. Only the small files are read; rows are read, and checked, when they are asked for.

    Raises:
        InputError: there is no buffer, or a file in it is damaged, cut short or of another buffer.
    """
    return ExpertBuffer(Path(path).expanduser())


class ExpertBuffer:
    """Finished experts in a folder.

    Attributes:
        path: the folder.
        meta: `meta.json`.
        layout: the columns of a row.
        records: by number, what is known of each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = read_meta(path)
        self.layout = Layout.from_dict(self.meta["row"])
        self.snapshots = int(self.meta["config"]["snapshots"])
        config = digest(self.meta["config"])
        found = (read_record(path, k, config, self.snapshots, self.layout) for k in expert_numbers(path))
        self.records: dict[int, ExpertRecord] = {record.expert: record for record in found}
        self._sound: set[int] = set()

    @property
    def experts(self) -> tuple[int, ...]:
        """The numbers of the finished experts."""
        return tuple(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def epochs(self) -> int:
        """The last epoch of which there is a snapshot."""
        return self.snapshots - 1

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return self.layout.size

    @property
    def id(self) -> str:
        """A short hash of everything in it: 16 hexadecimal digits."""
        return digest([self.meta["config"], [[k, record.sha256] for k, record in self.records.items()]])

    def rows(self, expert: int, epochs: Iterable[int]) -> Tensor:
        """The parameters after some epochs, (len(epochs), P) float32 on the CPU, of their own memory.

        The first time that an expert is used, all of its file is compared with its hash.

        Raises:
            InputError: no such expert or epoch, or the file is damaged.
        """
        return self._read(expert, epochs)[:, : self.layout.size].contiguous()

    def statistics(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """The running statistics after an epoch, by buffer name; empty for networks that keep none."""
        row = self._read(expert, [epoch])[0]
        return {slot.name: slot.of(row) for slot in self.layout.statistics}

    def load(self, network: torch.nn.Module, expert: int, epoch: int) -> None:
        """Put a snapshot into a network of the same architecture: parameters and running statistics."""
        self.layout.load(network, self._read(expert, [epoch])[0])

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            InputError: one is damaged; it is named.
        """
        for record in self.records.values():
            refuse_damaged(self.path, record)
            self._sound.add(record.expert)

    def check(self, network: NetworkFactory, real: RealSet) -> None:
        """Refuse experts of another network, Space, real set or weights.

        Raises:
            InputError: the first field that differs is named, with both values.
        """
        refuse_difference(self.path, self.meta, network, real)

    def describe(self) -> dict[str, Any]:
        """What is in it, JSON-able: configuration, size, and means over experts for each epoch."""
        records = list(self.records.values())
        return {
            "path": str(self.path),
            "experts": list(self.experts),
            "epochs": self.epochs,
            "parameters": self.size,
            "dtypes": sorted({record.dtype for record in records}),
            "bytes": stored_bytes(self.path, records),
            "seconds": sum(record.seconds or 0.0 for record in records),
            "id": self.id,
            "config": dict(self.meta["config"]),
            "about": dict(self.meta["about"]),
            "versions": dict(self.meta["versions"]),
            "smoothness": _smoothness(records),
            "by_epoch": [_epoch_means(records, e) for e in range(1, self.snapshots)] if records else [],
        }

    def _read(self, expert: int, epochs: Iterable[int]) -> Tensor:
        if expert not in self.records:
            shown = ", ".join(map(str, self.experts[:8])) + (", ..." if len(self) > 8 else "")
            raise InputError(f"{self.path} holds no expert {expert}; it has {shown or 'none'}.")
        wanted = list(epochs)
        beyond = [e for e in wanted if not 0 <= e <= self.epochs]
        if beyond:
            raise InputError(
                f"{self.path} holds epochs 0 to {self.epochs} of each expert, and {beyond[0]} was asked for."
            )
        record = self.records[expert]
        if expert not in self._sound:
            refuse_damaged(self.path, record)
            self._sound.add(expert)
        return read_rows(self.path, record, self.layout.width, wanted)


def read_meta(path: Path) -> dict[str, Any]:
    """A buffer's `meta.json`.

    Raises:
        InputError: there is none, or it is none.
    """
    if not path.is_dir():
        raise InputError(
            f"There is no folder {path}; give the folder of a buffer (`datastill experts train` makes one)."
        )
    if not (path / META).is_file():
        raise InputError(f"{path} holds no expert trajectories: it has no {META} (`datastill experts train` makes it).")
    meta = read_json(path / META)
    try:
        if (meta["format"], meta["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {meta['format']!r}, version {meta['version']!r}")
        BufferFile.of(meta, path / META)
        Layout.from_dict(meta["row"])
        shared = ("network", "parameters", "space", "data", "weights", "epochs", "snapshots", "policy")
        for section, keys in (("config", shared), ("about", ("network", "data", "space")), ("versions", ())):
            missing = [key for key in keys if key not in meta[section]]
            if missing:
                raise ValueError(f"it lacks {section}.{missing[0]}")
        if int(meta["config"]["snapshots"]) < 2 or meta["config"]["parameters"] != meta["row"]["P"]:
            raise ValueError("its numbers do not agree")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path / META} does not describe expert trajectories ({error}); it is damaged.") from error
    refuse_changed(path / META, meta)
    return {name: value for name, value in meta.items() if name != CHECKSUM}


def _smoothness(records: list[ExpertRecord]) -> dict[str, float | None]:
    """Squared steps over all epochs and experts, and how good experts are after the last: what AST trades."""
    if not records:
        return {}
    steps = [step for record in records for step in record.squared_steps]
    last = _epoch_means(records, len(records[0].squared_steps))
    accuracies = {name: last[name] for name in ("train_accuracy", "test_accuracy")}
    return {"mean_squared_step": sum(steps) / len(steps), "max_squared_step": max(steps), **accuracies}


def _epoch_means(records: list[ExpertRecord], epoch: int) -> dict[str, float | int | None]:
    """Over the experts that know it: losses, accuracies, and the squared step that led to an epoch."""
    steps = [record.squared_steps[epoch - 1] for record in records]
    found: dict[str, float | int | None] = {"epoch": epoch}
    for name in ("train_loss", "train_accuracy", "test_accuracy"):
        values = [v[epoch - 1] for record in records if (v := getattr(record, name))]
        found[name] = sum(values) / len(values) if values else None
    return {**found, "mean_squared_step": sum(steps) / len(steps), "max_squared_step": max(steps)}


def new_meta(config: Mapping[str, Any], layout: Layout, about: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What `meta.json` of a new buffer holds."""
    from datastill.core.cost import versions

    return {
        "format": FORMAT,
        "version": VERSION,
        "config": dict(config),
        "about": dict(about),
        "row": layout.to_dict(),
        "versions": versions(),
        **more,
    }
