"""What a file may say: types, ranges and lengths in JSON, kinds of tensors; checked before anything is built."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from datastill.core.errors import InputError

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=65_536)]
#: Hashes of what was in a file of the user's, by its name.
Code = dict[Text, Annotated[list[Text], Field(min_length=1)]]


class Record(BaseModel):
    """A JSON object. Types are strict and numbers finite; keys that are not known here are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    @classmethod
    def of(cls, value: Any, where: object) -> Self:
        """The typed record of what a file says.

        Args:
            value: as JSON gives it.
            where: which file, for the error.

        Raises:
            InputError: a key is missing or of another type or range; the first is named.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InputError(f"{where} is damaged: {_sentence(error)}.") from error

    def plain(self) -> dict[str, Any]:
        """The record as JSON, with every key that it was made of."""
        return self.model_dump(exclude_unset=True)


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:200]
    if first["type"] == "missing":
        return f"{place} is missing"
    wanted = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):  # what its parts are to each other
        return f"{place}: {wanted}" if place else wanted
    found = repr(first["input"])
    said = f"{place} is" if place else "it is"
    return f"{said} {found if len(found) <= 60 else found[:57] + '...'}, and that cannot be ({wanted[:200]})"


def as_record(data: bytes | str, where: object, schema: type[Record] | None = None) -> Any:
    """What JSON says, with finite numbers of at most 64 bits and characters that are ones.

    Args:
        data: the text.
        where: which file, for the error.
        schema: what it may say.

    Raises:
        InputError: it is none, or does not fit.
    """
    try:
        found = json.loads(data, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # a lone surrogate, too deep a nesting, digits without an end
        reason = "a character that is none" if isinstance(error, UnicodeEncodeError) else str(error)[:120]
        raise InputError(f"{where} is not readable JSON ({reason}); it may be cut short or damaged.") from error
    if schema is not None:
        schema.of(found, where)
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:20])


def _whole(text: str) -> int | float:
    value = int(text) if len(text) <= 40 else 10**40
    return value if abs(value) < 2**64 else _no_number(text[:20] + "...")


class Shape(NamedTuple):
    """What the header of a safetensors file says of a tensor."""

    dtype: str  #: in the format's own words
    sizes: tuple[int, ...]


_INTEGERS = ("U8", "I8", "I16", "I32", "I64")
_FLOATS = ("F16", "BF16", "F32", "F64")
_ANY = ("BOOL", *_INTEGERS, *_FLOATS)


@dataclass(frozen=True)
class Kind:
    """What a tensor may be.

    Attributes:
        dtypes: in the words of the format.
        dims: how many dimensions it may have.
        finite: whether NaN and infinity are refused.
    """

    dtypes: tuple[str, ...] = _ANY
    dims: tuple[int, ...] = tuple(range(9))
    finite: bool = True


#: Numbers of any common type, which may be NaN: losses of steps that were skipped, states of a run.
ANY = Kind(finite=False)
#: Weights and buffers of a network.
WEIGHTS = Kind((*_FLOATS, "I64"))
FLOAT32 = Kind(("F32",))
#: Tensors of a Space: the center (1, c, h, w) and two matrices.
SPACE = Kind(("F32", "F64"), (2, 4))


def refuse_other_kinds(path: object, shapes: Mapping[str, Shape], kinds: Mapping[str, Kind]) -> None:
    """Compare the header of a file with what its tensors may be.

    Args:
        path: which file, for the error.
        shapes: by name.
        kinds: by name, or by a pattern such as "weight/*"; the first that fits counts, and a name that fits none passes
            where its numbers are of a common type.

    Raises:
        InputError: a tensor is of another dtype or number of dimensions; it is named.
    """
    for name, shape in shapes.items():
        kind = _kind_of(name, kinds)
        if shape.dtype not in kind.dtypes or len(shape.sizes) not in kind.dims:
            dims = " or ".join(map(str, kind.dims)) if len(kind.dims) < 9 else "at most 8"
            raise InputError(
                f"{path} is damaged: {name} is {shape.dtype} of {len(shape.sizes)} dimensions, and "
                f"{' or '.join(kind.dtypes)} of {dims} is expected."
            )


def refuse_not_finite(path: object, tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> None:
    """Refuse NaN and infinity where a kind does.

    Raises:
        InputError: a tensor holds one; it is named.
    """
    for name, tensor in tensors.items():
        if _kind_of(name, kinds).finite and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path} is damaged: {name} holds numbers that are NaN or infinite.")


def _kind_of(name: str, kinds: Mapping[str, Kind]) -> Kind:
    return next((kind for pattern, kind in kinds.items() if fnmatchcase(name, pattern)), ANY)
