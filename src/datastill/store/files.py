"""Files that are whole or absent: written to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it onto `target` on success, remove it on failure.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    target = Path(target)
    make_folder(target.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise write_error(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_error(target: Path, error: OSError) -> InputError:
    """The sentence for a write that failed."""
    return InputError(f"Cannot write {target}: {error.strerror or error}; free some space or choose another place.")


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents, with a clear error when a file stands in the way."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"Cannot make the folder {folder}: a file of that name is in the way; choose another --out."
        ) from error
    except OSError as error:
        raise InputError(
            f"Cannot make the folder {folder}: {error.strerror or error}; choose another --out."
        ) from error
    return Path(folder)


def write_bytes(target: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(target, text.encode())


def write_json(target: Path, record: Any) -> None:
    """Write JSON atomically; NaN is refused, since it is not JSON."""
    write_text(target, json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, with the file's name in the error."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); it may be cut short or damaged.") from error


def member(folder: Path, name: Any, depth: int = 1) -> Path:
    """The path of a name that was read from a file, which must lie in `folder`, at most so deep.

    Raises:
        InputError: it does not, or is no name.
    """
    parts = Path(name).parts if isinstance(name, str) and "\0" not in name else ()
    if not 0 < len(parts) <= depth or {"..", Path(name).anchor} & {*parts}:
        raise InputError(f"A file in {folder} points outside its folder ({name!r}) and is refused.")
    return Path(folder) / name


def write_tensors(target: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically. Serialised in memory, so a full disk is one clean error."""
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_bytes(target, save(plain, metadata=dict(meta or {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read named tensors and their metadata; anything but a sound safetensors file is refused."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path} does not exist.")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a sound safetensors file ({error}); it is cut short, damaged or of another format."
        ) from error


def digest(value: Any) -> str:
    """A short content hash of JSON-able values and tensors."""
    sha = hashlib.sha256()
    _feed(sha.update, value)
    return sha.hexdigest()[:16]


def _feed(update: Callable[[bytes], object], value: Any) -> None:
    if isinstance(value, Tensor):
        update(f"tensor:{value.dtype}:{tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            update(f"key:{key}".encode())
            _feed(update, value[key])
    elif isinstance(value, list | tuple):
        update(f"list:{len(value)}".encode())
        for item in value:
            _feed(update, item)
    else:
        update(json.dumps(value, sort_keys=True).encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
