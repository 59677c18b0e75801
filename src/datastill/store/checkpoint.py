"""A block's whole state in one safetensors file, whole or absent."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.snapshot import Snapshot
from datastill.store.files import read_tensors, write_tensors
from datastill.store.schema import Count, Record, Seconds, as_record

#: Of the time, what checkpoints may take.
SHARE = 0.02


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot atomically."""
    flat = {f"{group}/{name}": t for group, named in snapshot.groups.items() for name, t in named.items()}
    write_tensors(path, flat, {"meta": json.dumps(snapshot.meta)})


#: Of a group or part, as it stands in the name of a file.
Name = Annotated[str, Field(pattern=r"^[\w-]+$", max_length=100)]


class BlockRecord(Record):
    """What the checkpoint of a block says of itself."""

    step: Count
    finished: bool
    skipped: Count
    in_a_row: Count
    seconds: Seconds
    config: dict[str, Any] = Field(default_factory=dict)
    parts: dict[Name, list[Name]] = Field(default_factory=dict)


def read_snapshot(path: Path, schema: type[Record] | None = None) -> Snapshot:
    """Read what `write_snapshot` wrote.

    Args:
        path: the file.
        schema: what its plain numbers may be.

    Raises:
        InputError: the file is damaged, or no checkpoint.
    """
    tensors, header = read_tensors(path, resuming=True)
    groups: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        group, _, name = full.partition("/")
        groups.setdefault(group, {})[name] = tensor
    if "meta" not in header:
        raise InputError(f"{path} is not a datastill checkpoint; remove it to start again.")
    meta = as_record(header["meta"], path, schema)
    if not isinstance(meta, dict):
        raise InputError(f"{path} is not a datastill checkpoint; remove it to start again.")
    return Snapshot(groups, meta)


@dataclass
class Checkpointer:
    """Decides when to write and where: one file per block, and one for each part of its state that does not change.

    A part is written before the file that names it, and removed after one that does not.

    When it writes never changes a result: every draw is derived from its step. The time between two is longer where
    writing would take more than `SHARE` of it.

    Attributes:
        every_seconds: time between checkpoints; 0 asks for one after every step, whatever that takes.
        every_steps: steps between checkpoints, as well; 0 counts none.
    """

    folder: Path
    config: Mapping[str, Any]
    every_seconds: float = 15.0
    every_steps: int = 0
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0  #: seconds of the last write
    _there: set[Path] = field(default_factory=set)  #: files of parts that this object wrote or read

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{block:05d}.safetensors"

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after this step."""
        by_steps = self.every_steps > 0 and step % self.every_steps == 0
        pause = max(self.every_seconds, self._took / SHARE) if self.every_seconds > 0 else 0.0
        return by_steps or time.monotonic() - self._last >= pause

    def write(self, block: int, snapshot: Snapshot) -> None:
        """Write a block's checkpoint with the run's configuration."""
        began = time.monotonic()
        snapshot.meta["config"] = dict(self.config)
        named = self._parts(block, snapshot.parts)
        for path, (group, name) in named.items():
            if path not in self._there:
                write_tensors(path, {n: t for n, t in snapshot.group(group).items() if n.startswith(f"{name}/")})
                self._there.add(path)
        write_snapshot(self.path(block), _without_parts(snapshot))
        for path in set(self.folder.glob(f"{self.path(block).stem}.*.safetensors")) - named.keys():
            path.unlink(missing_ok=True)
        self._there &= named.keys()
        self._last = time.monotonic()
        self._took = self._last - began

    def read(self, block: int) -> Snapshot | None:
        """A block's checkpoint, or None.

        Raises:
            InputError: it belongs to another configuration (the field is named) or is damaged.
        """
        path = self.path(block)
        if not path.exists():
            return None
        snapshot = read_snapshot(path, BlockRecord)
        refuse_other(self.config, snapshot.meta.get("config", {}), path)
        snapshot.parts = snapshot.meta.pop("parts", {})
        for part, (group, _) in self._parts(block, snapshot.parts).items():
            snapshot.groups.setdefault(group, {}).update(read_tensors(part, resuming=True)[0])
            self._there.add(part)
        return snapshot

    def _parts(self, block: int, parts: Mapping[str, Collection[str]]) -> dict[Path, tuple[str, str]]:
        """The file of every part, with its group and name."""
        stem = self.path(block).stem
        return {
            self.folder / f"{stem}.{group}.{name}.safetensors": (group, name)
            for group, names in parts.items()
            for name in names
        }


def _without_parts(snapshot: Snapshot) -> Snapshot:
    """What the block's own file holds: all else, and the names of the parts."""
    if not snapshot.parts:
        return snapshot
    groups = dict(snapshot.groups)
    for group, names in snapshot.parts.items():
        apart = set(names)
        groups[group] = {n: t for n, t in snapshot.group(group).items() if n.split("/")[0] not in apart}
    parts = {group: list(names) for group, names in snapshot.parts.items()}
    return Snapshot(groups, {**snapshot.meta, "parts": parts})


#: Of what differs, what the rest may follow from.
TOLD_FIRST = ("data", "method", "network")
#: What a hash stands for, in words.
HASHED = {"data.fingerprint": "real images or labels", "data.weights": "weights of real images (--debias)"}


def refuse_other(config: Mapping[str, Any], stored: Mapping[str, Any], path: Path) -> None:
    """Raise, naming the first field in which a stored configuration differs; the user's code may change."""
    others = sorted({*config, *stored} - {"code"}, key=lambda k: (k not in TOLD_FIRST, k))
    for name in others:
        mine, theirs = plain(config.get(name)), plain(stored.get(name))
        if mine == theirs:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            keys = sorted({*mine, *theirs}, key=lambda k: (k == "fingerprint", k))  # weights change it
            inner = next(k for k in keys if mine.get(k) != theirs.get(k))
            name, mine, theirs = f"{name}.{inner}", mine.get(inner), theirs.get(inner)
        if name in HASHED:
            raise InputError(
                f"{path} belongs to another run, on other {HASHED[name]}; use the same to resume, or another --out."
            )
        there = f"it names no {name}" if theirs is None else f"its {name} is {theirs!r}"
        here = "this run names none" if mine is None else f"this run's is {mine!r}"
        again = "resume, and --budget if it began with one" if name.startswith("hyper.") else "resume"
        raise InputError(
            f"{path} belongs to another run: {there}, {here}; use the same settings to {again}, or another --out."
        )


def plain(value: Any) -> Any:
    """A value as JSON would give it back."""
    return json.loads(json.dumps(value))
