"""What a source hands to `load_real`, and what `load_real` asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.data.store import Store

if TYPE_CHECKING:
    from datastill.data.biased.attribute import Attribute

LabelId = int | str

STORAGE = ("auto", "memory", "memmap", "decode")
MODES = ("L", "RGB")


@dataclass(frozen=True, kw_only=True)
class Request:
    """How images are to be read: the arguments of `load_real` that a source needs."""

    size: tuple[int, int] | None = None  #: (height, width) to resize to, or None for as they are
    mode: str | None = None  #: "L", "RGB" or None for as they are
    skip_bad: bool = False  #: go on past images that cannot be decoded
    storage: str = "auto"  #: "auto", "memory", "memmap" or "decode"
    seed: int = 0  #: of whatever a source draws
    follow_links: bool = False  #: whether links may lead out of a folder of images
    fetch: bool = True  #: whether the Hub may be asked; not where a file, and not the caller, named the source


@dataclass(frozen=True)
class Split:
    """Images and the source's own labels, one each."""

    store: Store
    labels: Sequence[LabelId]
    skipped: tuple[str, ...] = ()  #: names of images left out because they cannot be decoded
    bias: Tensor | None = None  #: bias attribute of each image, (n,) int64, where the set was made biased


@dataclass(frozen=True)
class Raw:
    """A source after reading, before classes, hold-out and Space."""

    name: str
    source: str
    train: Split
    test: Split | None = None
    names: tuple[str, ...] | None = None  #: class names by integer label, where the source tells
    notes: tuple[str, ...] = ()
    attribute: Attribute | None = None  #: what the bias is, where the set was made biased


def make_request(
    size: int | tuple[int, int] | None,
    mode: str | None,
    skip_bad: bool,
    storage: str,
    seed: int,
    follow_links: bool = False,
) -> Request:
    """Check and collect the reading arguments of `load_real`.

    Raises:
        InputError: a size below 1, an unknown mode or an unknown storage.
    """
    if size is not None:
        pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
        if len(pair) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in pair):
            raise InputError(f"size={size!r} is not a size; give whole pixels, size=32 or size=(height, width).")
        size = (pair[0], pair[1])
    if mode is not None and mode not in MODES:
        raise InputError(f"Unknown mode {mode!r}. {nearest(str(mode), MODES)}")
    if storage not in STORAGE:
        raise InputError(f"Unknown storage {storage!r}. {nearest(str(storage), STORAGE)}")
    return Request(size=size, mode=mode, skip_bad=skip_bad, storage=storage, seed=seed, follow_links=bool(follow_links))
