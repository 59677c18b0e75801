"""The files of a label bank: arrays written in one pass into a folder that appears when it is whole, and read again."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from datastill.core.errors import InputError
from datastill.labels.bank_header import HEADER
from datastill.labels.bank_labels import Array
from datastill.labels.bank_layout import Layout
from datastill.store.files import make_folder, sealed, write_error, write_json
from datastill.store.folders import refuse_taken, whole_folder
from datastill.store.opening import map_array, open_regular

_CHUNK = 2**22


class BankWriter:
    """Writes arrays row by row into a hidden folder beside the target; `finish` gives it the target's name.

    Left in any other way, the hidden folder is removed.

    Raises:
        InputError: something stands at the target already, the disk has too little space, or cannot be written.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        refuse_taken(folder)
        make_folder(folder.parent)
        free = shutil.disk_usage(folder.parent).free
        if free < layout.nbytes:
            raise InputError(
                f"The label bank needs {layout.nbytes / 1e6:.0f} MB and {folder.parent} has {free / 1e6:.0f} MB free; "
                "store fewer epochs, use top_k, or choose another place."
            )
        self.folder, self.layout = folder, layout
        self._arrays: dict[str, _ArrayFile] = {}
        self._finished = False
        self._whole = whole_folder(folder)
        self._inside = self._whole.__enter__()

    def add(self, rows: Mapping[str, Array]) -> None:
        """Append rows to arrays: (rows, ...) each, in the dtype of its field or one that fits into it."""
        try:
            for name, values in rows.items():
                if name not in self._arrays:
                    self._arrays[name] = _ArrayFile(self._inside, name, self.layout)
                self._arrays[name].add(values)
        except OSError as error:
            raise write_error(self.folder, error) from error

    def finish(self, header: dict[str, Any]) -> dict[str, Any]:
        """Write the header, with a hash of every array; at the block's end the folder has its name.

        Returns:
            The header as it was written.
        """
        try:
            header = sealed({**header, "files": {f"{name}.npy": array.close() for name, array in self._arrays.items()}})
            write_json(self._inside / HEADER, header)
        except OSError as error:
            raise write_error(self.folder, error) from error
        self._finished = True
        return header

    def __enter__(self) -> BankWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self._arrays.values():
            array.file.close()
        if kind is None and not self._finished:
            kind, error = RuntimeError, RuntimeError("the header was not written")
        self._whole.__exit__(kind, error, trace)


class _ArrayFile:
    """One .npy file that grows to a shape known beforehand."""

    def __init__(self, folder: Path, name: str, layout: Layout) -> None:
        field = layout.fields()[name]
        self.dtype = np.dtype(field.dtype)
        self.missing = int(np.prod(layout.shape(field)))
        self.file: IO[bytes] = (folder / f"{name}.npy").open("wb")
        self._hash = hashlib.sha256()
        self._described: dict[str, Any] | None
        self._described = {"descr": self.dtype.str, "fortran_order": False, "shape": layout.shape(field)}

    def add(self, values: Array) -> None:
        if self._described is not None:
            start = io.BytesIO()
            np.lib.format.write_array_header_1_0(start, self._described)
            self._described = None
            self._write(start.getvalue())
        self.missing -= values.size
        self._write(np.ascontiguousarray(values, self.dtype).tobytes())

    def close(self) -> str:
        assert not self.missing, "every row is written once"
        self.file.close()
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self.file.write(data)


def map_arrays(folder: Path, layout: Layout) -> dict[str, Array]:
    """The arrays of a bank, memory-mapped and read-only.

    Raises:
        InputError: a file is missing, cut short, or not what the layout says.
    """
    arrays: dict[str, Array] = {}
    for name, field in layout.fields().items():
        path = folder / f"{name}.npy"
        if not os.path.lexists(path):
            raise InputError(f"{path} is missing; the label bank is incomplete and must be made again.")
        try:
            array = map_array(path)
        except InputError as error:
            raise InputError(f"{error} Make the label bank again.") from error
        if array.dtype != np.dtype(field.dtype) or array.shape != layout.shape(field):
            raise InputError(
                f"{path} holds {array.dtype} {array.shape}, not {np.dtype(field.dtype)} {layout.shape(field)} "
                "as the bank's header says; make the label bank again."
            )
        arrays[name] = array
    return arrays


def refuse_damaged(folder: Path, hashes: Mapping[str, str], layout: Layout) -> None:
    """Compare every array's file with its hash.

    Raises:
        InputError: a hash is missing, or the file has changed since it was written.
    """
    for name in layout.fields():
        path = folder / f"{name}.npy"
        sha = hashlib.sha256()
        try:
            with open_regular(path) as file:
                while chunk := file.read(_CHUNK):
                    sha.update(chunk)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); make the label bank again.") from error
        if hashes.get(path.name) != sha.hexdigest():
            raise InputError(f"{path} has changed since it was written; make the label bank again.")
