"""Files that are whole or absent: written to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.store.opening import open_regular, read_small, refuse_sparse, sha256_of
from datastill.store.schema import Kind, Record, Shape, as_record, refuse_not_finite, refuse_other_kinds
from datastill.store.unfinished import locked_temporary, remove_rests

#: The name of a checksum in JSON objects and in the metadata of tensors.
CHECKSUM = "content_sha256"
#: Bytes of the header of a safetensors file; 100,000 tensors have about a tenth of it.
LARGEST_HEADER = 16 << 20


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it onto `target` on success, remove it on failure.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full.
    """
    target = Path(target)
    make_folder(target.parent)
    try:
        remove_rests(target)
        handle, temporary = locked_temporary(target)
    except OSError as error:
        raise write_error(target, error) from error
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


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
    write_text(target, as_json(record))


def as_json(record: Any) -> str:
    """A record as the text of a JSON file."""
    return json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a checksum over all that it says; `read_sealed` compares it."""
    plain = {name: value for name, value in record.items() if name != CHECKSUM}
    return {**plain, CHECKSUM: hashlib.sha256(_canonical(json.loads(json.dumps(plain)))).hexdigest()}


def write_sealed(target: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically: what a later run reads and goes on from."""
    write_json(target, sealed(record))


def read_sealed(path: Path, schema: type[Record] | None = None) -> Any:
    """Read what `write_sealed` wrote, without the checksum. A record without one, of an older datastill, is taken.

    Args:
        schema: as of `read_json`.

    Raises:
        InputError: it cannot be read, does not fit the schema, or is not what was written.
    """
    record = read_json(path, schema)
    refuse_changed(path, record)
    return {k: v for k, v in record.items() if k != CHECKSUM} if isinstance(record, dict) else record


def refuse_changed(path: Path, record: Any) -> None:
    """Compare a record with the checksum in it; for readers that first say what exactly is wrong with a record.

    Raises:
        InputError: it is not what was written.
    """
    if isinstance(record, dict) and record.get(CHECKSUM, known := sealed(record)[CHECKSUM]) != known:
        raise damaged(path)


def damaged(path: Path) -> InputError:
    """The sentence for a file that is not what was written."""
    return InputError(
        f"{path} is not what was written: its checksum differs, so it was changed or damaged; remove it to have it "
        "made again, or put the sound file back."
    )


def read_json(path: Path, schema: type[Record] | None = None) -> Any:
    """Read a JSON file of at most 64 MiB. What it says is given back as it stands, once it fits the schema.

    Args:
        schema: what it may say; None for what is compared and not used.

    Raises:
        InputError: it is missing, no regular file, too large, no JSON, or does not fit; the first field is named.
    """
    return as_record(read_small(path), path, schema)


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
    """Write named tensors as safetensors with a checksum, atomically.

    Serialized in memory, so a full disk is one clean error. Equal tensors give equal bytes.
    """
    from safetensors.torch import save

    contiguous = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    data = memoryview(save(contiguous, metadata=dict(meta or {})))
    del contiguous
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    about = header.pop("__metadata__", {})
    about[CHECKSUM] = _checksum(header, about, [data[start:]])
    text = json.dumps({"__metadata__": dict(sorted(about.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_bytes(target, b"".join((len(text).to_bytes(8, "little"), text, data[start:])))


def read_shapes(path: Path) -> dict[str, Shape]:
    """What the header of a safetensors file says of its tensors, none of which is read.

    Raises:
        InputError: as `read_tensors`.
    """
    from safetensors import safe_open

    _refuse_claims(path)
    with _sound(path), safe_open(str(path), framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: Shape(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def read_tensors(
    path: Path, kinds: Mapping[str, Kind] | None = None, *, resuming: bool = False, whole: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read named tensors and their metadata; anything but a sound safetensors file is refused.

    Args:
        kinds: what they may be, see `refuse_other_kinds`; compared with the header before a tensor is read.
        resuming: a run goes on from them; a file without a checksum, of an older datastill, is taken with a warning.
        whole: the SHA-256 of the file that another file tells; it stands for the checksum that the file carries.

    Raises:
        InputError: there is no such file, it is of another format, or not what was written.
    """
    from safetensors import safe_open

    refuse_other_kinds(path, read_shapes(path), kinds or {})
    with _sound(path):
        with safe_open(str(path), framework="pt") as file:
            tensors, meta = {n: file.get_tensor(n) for n in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        known = meta.pop(CHECKSUM, None)
        sound = sha256_of(path) == whole if whole else known is None or known == _checksum_of(path)
        if not sound:
            raise damaged(path)
    refuse_not_finite(path, tensors, kinds or {})
    if resuming and known is None:
        warnings.warn(f"{path} carries no checksum: an older datastill wrote it. It is taken as it is.", stacklevel=3)
    return tensors, meta


def seconds_of(meta: Mapping[str, str]) -> float:
    """How long making a file took, as its metadata say; 0 where they say nothing that can be."""
    with contextlib.suppress(ValueError):
        seconds = float(meta.get("seconds", ""))
        return seconds if 0 <= seconds < 1e12 else 0.0
    return 0.0


@contextlib.contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Whatever a file provokes in the reader of the format is one refusal."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} is not a sound safetensors file ({str(error)[:200]}); it is cut short, damaged or of another "
            "format."
        ) from error


def _refuse_claims(path: Path) -> None:
    """Refuse a file that is mostly a hole, or whose header is far longer than names and shapes need."""
    refuse_sparse(path)
    with open_regular(path) as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LARGEST_HEADER:
        raise InputError(f"{path} is not a sound safetensors file: its header claims {header / 1e6:,.0f} MB.")


def _checksum(header: Any, about: Mapping[str, str], parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 over names, dtypes, shapes, metadata and the bytes of the tensors."""
    sha = hashlib.sha256(_canonical([header, {name: text for name, text in about.items() if name != CHECKSUM}]))
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def _checksum_of(path: Path) -> str:
    with open_regular(path) as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return _checksum(header, header.pop("__metadata__", {}), iter(lambda: file.read(1 << 22), b""))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def digest(value: Any, characters: int = 16) -> str:
    """A content hash of JSON-able values and tensors; 64 characters are all of it."""
    sha = hashlib.sha256()
    _feed(sha.update, value)
    return sha.hexdigest()[:characters]


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
