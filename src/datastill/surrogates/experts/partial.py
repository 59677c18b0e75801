"""An expert that is still being trained: its snapshots so far, and what is needed to go on after a kill at any moment.

The rows are written first, each at its place, then the state, whole or not at all. A state therefore never speaks of
rows that are not there; rows beyond it are written again. A hash tells when that went wrong (a power cut, a stranger):
then the expert is trained from its start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.snapshot import Snapshot
from datastill.store.checkpoint import read_snapshot, write_snapshot
from datastill.store.files import make_folder, write_error
from datastill.store.opening import open_regular
from datastill.store.schema import Count, Fraction, Name, Number, Record, Seconds, Sha256
from datastill.store.unfinished import remove_rests
from datastill.surrogates.experts.files import DTYPES

_FLOAT = DTYPES["float32"]


class PartialRecord(Record):
    """What the state of an expert in training says."""

    config: Name
    sha256: Sha256
    epoch: Count
    losses: list[Number]
    accuracies: list[Fraction]
    test: list[Fraction]
    seconds: Seconds


@dataclass
class State:
    """Numbers and tensors of an expert up to an epoch, beside its rows."""

    epoch: int = 0  #: epochs done
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    seconds: float = 0.0
    buffers: dict[str, Tensor] = field(default_factory=dict)  #: of the network, exactly; a row holds them as float32
    policy: dict[str, Tensor] = field(default_factory=dict)  #: what the policy keeps from epoch to epoch


class Partial:
    """The files of one expert in training, in the folder `partial` of its buffer.

    Args:
        folder: that folder.
        expert: its number.
        width: numbers in a row.
        config: digest of the buffer's configuration.
    """

    def __init__(self, folder: Path, expert: int, width: int, config: str) -> None:
        self.rows_path = folder / f"expert_{expert:05d}.bin"
        self.state_path = folder / f"expert_{expert:05d}.safetensors"
        self.pulse_path = folder / f"expert_{expert:05d}.pulse"
        self.width, self.config = width, config
        self._sha = hashlib.sha256()

    def begin(self, row: Tensor) -> State:
        """Start anew with the initialization (width,)."""
        make_folder(self.rows_path.parent)
        self.remove()
        self._sha = hashlib.sha256()
        self._put(0, row)
        return State()

    def resume(self) -> tuple[State, Tensor] | None:
        """The state and the last row (width,); None where there is nothing to go on from."""
        try:
            snapshot = read_snapshot(self.state_path, PartialRecord)
            meta = snapshot.meta
            state = State(
                int(meta["epoch"]), meta["losses"], meta["accuracies"], meta["test"], float(meta["seconds"]),
                snapshot.group("buffers"), snapshot.group("policy"),
            )  # fmt: skip
            row = torch.empty(0)
            self._sha = hashlib.sha256()
            for row in self.rows(state.epoch + 1):
                self._sha.update(_bytes(row))
            sound = meta["config"] == self.config and meta["sha256"] == self._sha.hexdigest()
        except (InputError, KeyError, TypeError, ValueError):
            return None
        return (state, row) if sound else None

    def append(self, row: Tensor, state: State) -> None:
        """One more epoch is done: `state.epoch` ended with `row`."""
        self._put(state.epoch, row)
        meta = {
            "config": self.config,
            "sha256": self._sha.hexdigest(),
            "epoch": state.epoch,
            "losses": state.losses,
            "accuracies": state.accuracies,
            "test": state.test,
            "seconds": state.seconds,
        }
        write_snapshot(self.state_path, Snapshot({"buffers": state.buffers, "policy": state.policy}, meta))

    def rows(self, count: int) -> Iterator[Tensor]:
        """The first `count` rows, one by one.

        Raises:
            InputError: there are fewer.
        """
        try:
            with open_regular(self.rows_path) as file:
                for _ in range(count):
                    data = file.read(self.width * _FLOAT.itemsize)
                    if len(data) < self.width * _FLOAT.itemsize:
                        raise InputError(f"{self.rows_path} was cut short.")
                    yield torch.from_numpy(np.frombuffer(data, _FLOAT).astype(np.float32))
        except OSError as error:
            raise InputError(f"{self.rows_path} cannot be read ({error.strerror or error}).") from error

    def remove(self) -> None:
        """Remove its files, those that a kill left half-written too."""
        for path in (self.rows_path, self.state_path, self.pulse_path):
            path.unlink(missing_ok=True)
            remove_rests(path)

    def _put(self, epoch: int, row: Tensor) -> None:
        data = _bytes(row)
        try:
            with open(self.rows_path, "r+b" if epoch else "wb") as file:
                file.seek(epoch * len(data))
                file.write(data)
        except FileNotFoundError as error:
            raise InputError(
                f"{self.rows_path} is gone: another command is at work in this folder; run one at a time, and take "
                "--workers for several processes."
            ) from error
        except OSError as error:
            raise write_error(self.rows_path, error) from error
        self._sha.update(data)


def _bytes(row: Tensor) -> bytes:
    return row.numpy().astype(_FLOAT).tobytes()
