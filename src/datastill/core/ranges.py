"""What options may be: declared with each field or argument, and the one check that reads the declarations.

Ranges are in the words of `annotated-types`, as in `Annotated[int, Ge(1), Le(100)]`. Help, the checks of functions and
commands, and the tests that walk all options read the same annotation. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from datastill.core.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

#: How an option is called in errors: the keyword, and the option of the command.
CALLED = "{name} (--{option})"
#: Most steps, passes or images that can be asked for.
MANY = 10_000_000

Count = Annotated[int, Ge(1), Le(MANY)]
Amount = Annotated[int, Ge(0), Le(MANY)]  #: 0 has a meaning of its own
Few = Annotated[int, Ge(1), Le(10_000)]  #: sets, networks, processes
Processes = Few | str  #: a number; "ray" or "ray:4" for those of a Ray cluster (`launch.Workers`)
Side = Annotated[int, Ge(1), Le(65_536)]  #: pixels, channels
WidthOrNone = Annotated[int, Ge(0), Le(65_536)]
Pixels = Annotated[int, Ge(0), Le(65_536)]  #: a distance
Bits = Annotated[int, Ge(1), Le(8)]  #: of a value
Tiles = Annotated[int, Ge(1), Le(64)]  #: to a side
TilesOrAuto = Annotated[int, Ge(0), Le(64)]  #: to a side; 0 lets the method choose
Rate = Annotated[float, Gt(0), Le(1e6)]
AnyRate = Annotated[float, Gt(0), Le(1e38)]  #: what float32 holds: the guard tells of one that is too high
AdamRate = Annotated[float, Gt(0), Le(100)]  #: pixels vary by about one
RateOrAuto = Annotated[float, Ge(0), Le(1e6)]  #: 0 takes one that follows from something
Weight = Annotated[float, Ge(0), Le(1e6)]
Momentum = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Gt(0), Le(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Seconds = Annotated[float, Gt(0), Le(1e9)]
SecondsOrNone = Annotated[float, Ge(0), Le(1e9)]
Seed = Annotated[int, Ge(-(2**63)), Lt(2**63)]


@dataclass(frozen=True)
class Numbers:
    """Whole or finite numbers between bounds; where none is declared, those that any file keeps."""

    whole: bool
    low: float | None = None
    high: float | None = None
    above: bool = False  #: whether the lower bound itself is left out
    below: bool = False  #: whether the upper bound itself is left out

    @classmethod
    def of(cls, whole: bool, bounds: Iterable[Any]) -> Numbers:
        """Those within what an annotation declares."""
        made = cls(whole)
        for bound in bounds:
            if isinstance(bound, Ge | Gt):
                low: Any = bound.ge if isinstance(bound, Ge) else bound.gt
                made = dataclasses.replace(made, low=low, above=isinstance(bound, Gt))
            elif isinstance(bound, Le | Lt):
                high: Any = bound.le if isinstance(bound, Le) else bound.lt
                made = dataclasses.replace(made, high=high, below=isinstance(bound, Lt))
        return made

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        most = 2**53 if self.whole else sys.float_info.max
        low, high = -most if self.low is None else self.low, most if self.high is None else self.high
        return bool(number > low if self.above else number >= low) and bool(
            number < high if self.below else number <= high
        )

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return "a whole number" if self.whole else "a finite number"
        low = f"{'above' if self.above else 'of at least'} {_short(self.low)}"
        high = f"{'below' if self.below else 'at most'} {_short(self.high)}"
        return f"a {'whole ' if self.whole else ''}number {low} and {high}"

    @property
    def interval(self) -> str:
        """In short, for help: "from 1 to 100"; "" where none is declared."""
        if self.low is None or self.high is None:
            return ""
        low = f"{'above' if self.above else 'from'} {_short(self.low)}"
        return f"{low} to {'below ' if self.below else ''}{_short(self.high)}"


@dataclass(frozen=True)
class Words:
    """A closed set of words."""

    words: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.words

    def __str__(self) -> str:
        *most, last = map(str, self.words)
        return f"{', '.join(most)} or {last}" if most else last


@dataclass(frozen=True)
class Several:
    """Any number of values of one kind."""

    each: tuple[Kind, ...]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, tuple | list) and all(any(one in kind for kind in self.each) for one in value)

    def __str__(self) -> str:
        return f"each {told(self.each)}"


@dataclass(frozen=True)
class Other:
    """What is no number and no closed set of words."""

    what: str
    holds: Callable[[object], bool]

    def __contains__(self, value: object) -> bool:
        return self.holds(value)

    def __str__(self) -> str:
        return self.what


Kind = Numbers | Words | Several | Other

SWITCH = Other("true or false", lambda value: isinstance(value, bool))
#: Whoever reads it knows which; objects in the place of texts (images, a teacher, a path) pass.
TEXT = Other("a text", lambda value: value is not None and not isinstance(value, bool | Real))
_NONE = Other("none", lambda value: value is None)
_ANYTHING = Other("anything", lambda value: True)


def kinds_of(annotation: Any, bounds: tuple[Any, ...] = ()) -> tuple[Kind, ...]:
    """What an annotation takes: a value of any of these kinds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(inner[0], (*bounds, *inner[1:]))
    if origin in (Union, UnionType):
        return tuple(kind for one in inner for kind in kinds_of(one, bounds))
    if origin is Literal:
        return (Words(inner),)
    if origin is tuple and inner[1:] == (Ellipsis,):
        return (Several(kinds_of(inner[0])),)
    if annotation is int or annotation is float:
        return (Numbers.of(annotation is int, bounds),)
    simple = {bool: SWITCH, str: TEXT, NoneType: _NONE}
    return (simple.get(annotation, _ANYTHING) if isinstance(annotation, type) else _ANYTHING,)


def told(kinds: Iterable[Kind]) -> str:
    """In words: "a whole number of at least 1 and at most 100, or none"."""
    return ", or ".join(str(kind) for kind in kinds)


def interval_of(kinds: Iterable[Kind]) -> str:
    """The declared range in short, for help; "" where none is."""
    return next((kind.interval for kind in kinds if isinstance(kind, Numbers)), "")


def brief(kinds: Iterable[Kind]) -> str:
    """What is taken in short, for a table: ranges and words."""
    return ", or ".join(
        kind.interval if isinstance(kind, Numbers) else str(kind) for kind in kinds if kind not in (TEXT, SWITCH)
    )


def declared(owner: Any) -> Mapping[str, tuple[Kind, ...]]:
    """What the fields of a dataclass, or the arguments of a function, take, by name.

    An annotation that cannot be read at run time, since its names are imported for type checkers alone, is left out.
    """
    return _declared(owner)


@functools.cache
def _declared(owner: Any) -> Mapping[str, tuple[Kind, ...]]:
    found: dict[str, tuple[Kind, ...]] = {}
    for part in reversed(owner.__mro__) if isinstance(owner, type) else (owner,):
        space = vars(sys.modules.get(part.__module__, math))
        for name, annotation in inspect.get_annotations(part).items():
            if isinstance(annotation, str):
                try:
                    annotation = eval(annotation, dict(space))
                except NameError:
                    found.pop(name, None)
                    continue
            found[name] = kinds_of(annotation)
    if dataclasses.is_dataclass(owner):
        return {f.name: found[f.name] for f in dataclasses.fields(owner) if f.name in found}
    return found


def refuse_outside(owner: Any, values: Mapping[str, Any], called: str = CALLED) -> None:
    """Refuse values that are not what an owner declares.

    Args:
        owner: a dataclass or a function.
        values: of its fields or arguments, by name; others are passed over.
        called: what an option is called in the error.

    Raises:
        InputError: a value is of another kind or out of its range; the first is named.
    """
    for name, kinds in declared(owner).items():
        if name in values and not any(values[name] in kind for kind in kinds):
            where = called.format(name=name, option=name.replace("_", "-"))
            raise InputError(f"{where} must be {told(kinds)}, not {_shown(values[name])}.")


def check_fields(made: Any, called: str = CALLED) -> None:
    """`refuse_outside` for all fields of a dataclass's instance, and of the dataclasses in it."""
    values = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    refuse_outside(type(made), values, called)
    for value in values.values():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_fields(value, called)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses arguments outside the ranges of its signature before anything is done."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_outside(function, signature.bind(*args, **kwargs).arguments, "{name}")
        return function(*args, **kwargs)

    return inner


def _short(bound: float) -> str:
    if bound in (2**63, -(2**63)):
        return "2^63" if bound > 0 else "-2^63"
    return f"{bound:,}" if isinstance(bound, int) and abs(bound) < 10**12 else f"{bound:,.6g}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "one of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
