"""Reading the `.pt` files of others: tensors, numbers, lists and dicts, and nothing that runs.

A `.pt` file is a pickle, and a pickle is a program. torch's weights-only reader knows a fixed list of names. To
it we add numpy's scalars, which the files of DC, DSA and DM hold, and not as numpy's own functions but as two
small stand-ins that turn the stored bytes into a Python number. Names that others allowed in this process do
not count here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.store.opening import open_regular, refuse_inflated, refuse_sparse

#: The number types that are read, by numpy's name, as `struct` calls them.
_NUMBERS = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Contents:
    """What a file holds, and what identifies it."""

    path: Path
    value: Any  #: tensors, numbers, strings, lists, tuples and dicts
    sha256: str
    size: int  #: bytes

    def tensor(self, value: Any, what: str) -> Tensor:
        """`value` as an ordinary tensor of its own memory.

        Raises:
            InputError: it is none, or claims more numbers than the file holds.
        """
        if not isinstance(value, Tensor):
            raise InputError(f"The {what} in {self.path} are a {type(value).__name__}, not a tensor.")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise InputError(f"The {what} in {self.path} are not an ordinary dense tensor.")
        if value.numel() * value.element_size() > self.size:
            raise InputError(f"The {what} in {self.path} claim {value.numel():,} numbers, more than the file holds.")
        return value.detach().clone(memory_format=torch.contiguous_format)


def read_pt(path: str | Path, widely: bool = False) -> Contents:
    """Read a `.pt` file with the weights-only reader; nothing in the file is run.

    Args:
        path: the file.
        widely: whether what the caller has allowed that reader (`torch.serialization.add_safe_globals`) is read too.

    Raises:
        InputError: there is no such file, it is damaged, or it asks for more than tensors and numbers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} {'is no file' if path.exists() else 'does not exist'}; give a .pt file.")
    refuse_sparse(path)
    with open_regular(path) as file:
        data = file.read()
    refuse_inflated(path, io.BytesIO(data), len(data))
    try:
        with _stand_ins(widely), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _refuse_builders(data)
            value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # whatever a damaged or hostile file provokes in the reader is one refusal
        raise _refusal(path, error) from error
    return Contents(path, value, hashlib.sha256(data).hexdigest(), len(data))


def _refusal(path: Path, error: Exception) -> InputError:
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.<>]+)", text)
    if asked:
        return InputError(
            f"{path} asks to load {asked.group(1)!r}, which images and labels do not need; the file is refused, and "
            "nothing in it was run."
        )
    _, _, reason = text.rpartition("WeightsUnpickler error: ")
    reason = " ".join(reason.split("\n")[0].split())[:120].rstrip(" .") or type(error).__name__
    return InputError(f"{path} is not a sound .pt file ({reason}); it is cut short, damaged or of another format.")


def _refuse_builders(data: bytes) -> None:
    """A `bytearray` of any size can be asked for in a few bytes, and is filled; tensors need none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error, EOFError):
        parts = [data]
    if any(b"bytearray" in part for part in parts):
        raise UnpicklingError("Unsupported global: GLOBAL builtins.bytearray")


@contextlib.contextmanager
def _stand_ins(widely: bool) -> Iterator[None]:
    """Torch's own list and the stand-ins, `widely` beside what others had allowed; their list comes back afterwards."""
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # numpy 1 and numpy 2
    ours: list[Any] = [(_Number, "numpy.dtype"), *((_scalar, f"{module}.scalar") for module in modules)]
    with _LOCK:
        before = torch.serialization.get_safe_globals()
        try:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([*before, *ours] if widely else ours)
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


class _Number:
    """Stands in for `numpy.dtype`: a type of number and its byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if code not in _NUMBERS:
            raise UnpicklingError(f"a numpy value of type {code!r}")
        self.letter, self.order = _NUMBERS[code], "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(kind: Any, data: Any) -> float | int | bool:
    """Stands in for numpy's function that rebuilds a scalar from its bytes."""
    if not isinstance(kind, _Number) or not isinstance(data, bytes):
        raise UnpicklingError("a numpy scalar without its type")
    number: float | int | bool = struct.unpack(kind.order + kind.letter, data)[0]
    return number
