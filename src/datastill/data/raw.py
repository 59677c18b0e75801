"""What a source hands to `load_real`, and what `load_real` asks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.data.store import Store

if TYPE_CHECKING:
    from datastill.data.biased.attribute import Attribute

LabelId = int | str

STORAGE = ("auto", "memory", "memmap", "decode")
MODES = ("L", "RGB")


class Unlabeled(InputError):
    """A split whose images have no labels, so that another may stand in for it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which parts of a source are which split: patterns of names, () for none, or None to have it found out."""

    train: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    val: tuple[str, ...] | None = None  #: stands in for a test split where there is none

    def __bool__(self) -> bool:
        return (self.train, self.test, self.val) != (None, None, None)


def make_choice(train: Any = None, test: Any = None, val: Any = None) -> Choice:
    """Names as a caller gives them: one, several with commas or in a list, or "none".

    Raises:
        InputError: they are no names, or there is to be no training split.
    """
    found = {}
    for option, given in (("train", train), ("test", test), ("val", val)):
        if given is None:
            continue
        parts = given.split(",") if isinstance(given, str) else given
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part.strip() for part in parts):
            told = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
            raise InputError(
                f"{option} is {told}, which names no part of the data; give a name, or several with commas. Arrays go "
                "together into the source: load_real(((x, y), (x_test, y_test)))."
            )
        names = tuple(part.strip() for part in parts)
        found[option] = () if names == ("none",) else names
        if option == "train" and not found[option]:
            raise InputError("There must be a training split; name a part of the data with --train (train=).")
    return Choice(**found)


@dataclass(frozen=True, kw_only=True)
class Request:
    """How images are to be read: the arguments of `load_real` that a source needs."""

    size: tuple[int, int] | None = None  #: (height, width) to resize to, or None for as they are
    mode: str | None = None  #: "L", "RGB" or None for as they are
    skip_bad: bool = False  #: go on past images that cannot be decoded
    storage: str = "auto"  #: "auto", "memory", "memmap" or "decode"
    seed: int = 0  #: of whatever a source draws
    follow_links: bool = False  #: whether links may lead out of a folder of images
    choice: Choice = Choice()  #: which parts of the source are which split
    #: is shown every listing of encoded images before it is read, for a survey
    watch: Callable[[Any], None] | None = None
    fetch: bool = True  #: whether the Hub may be asked; not where a file, and not the caller, named the source


def refuse_choice(request: Request, what: str) -> None:
    """Refuse a choice of parts for a source that has none; that there be no test split may be said of any.

    Raises:
        InputError: there is one.
    """
    choice = request.choice
    if choice.train or choice.test or choice.val:
        raise InputError(
            f"{what} has no parts to choose from; train=, test= and val= (--train, --test, --val) name sub-folders, "
            "parquet files or the splits of a DatasetDict."
        )


@dataclass(frozen=True)
class Sentences:
    """Captions of a split's images, which are then no classes' but those of pairs."""

    texts: Sequence[str]
    image: Tensor  #: position in the split of the image that each is of, (m,) int64
    group: Tensor | None = None  #: what the image shows, where many show the same, (m,) int64


@dataclass(frozen=True)
class Split:
    """Images and the source's own labels, one each."""

    store: Store
    labels: Sequence[LabelId]
    skipped: tuple[str, ...] = ()  #: names of images left out because they cannot be decoded
    bias: Tensor | None = None  #: bias attribute of each image, (n,) int64, where the set was made biased
    sentences: Sentences | None = None  #: captions in the place of labels, of a source of pairs


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
    text: Any = "hashed"  #: the text encoder of a source of pairs, by name or itself


def make_request(
    size: int | tuple[int, int] | None,
    mode: str | None,
    skip_bad: bool,
    storage: str,
    seed: int,
    follow_links: bool = False,
    choice: Choice = Choice(),
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
    links = bool(follow_links)
    return Request(
        size=size, mode=mode, skip_bad=skip_bad, storage=storage, seed=seed, follow_links=links, choice=choice
    )
