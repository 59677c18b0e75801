"""Options that several commands share, and how they become what the library takes."""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

from datastill.core.errors import InputError
from datastill.core.overrides import overrides
from datastill.core.ranges import Side, check_fields, declared, interval_of
from datastill.core.registry import field_docs

if TYPE_CHECKING:
    from datastill.data.raw import Request
    from datastill.data.real import RealSet

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which real data, and how images are read."""

    data: str = "digits"  #: a folder of class sub-folders, a parquet folder, a set's name, or "digits"
    size: Side | None = None  #: resize images to this many pixels a side
    mode: str | None = None  #: convert images to this mode: L (gray) or RGB
    skip_bad: bool = False  #: leave out images that cannot be read, and count them
    follow_links: bool = False  #: let links lead out of a folder of images; such a folder is refused otherwise
    train: str | None = None  #: which part of the data to train on: a sub-folder, parquet files, a split; * and commas
    test: str | None = None  #: which part is the test split; none holds one out
    val: str | None = None  #: which part stands in for the test split where there is none

    def request(self) -> Request:
        """How the images are to be read."""
        from datastill.data.raw import make_choice, make_request

        choice = make_choice(self.train, self.test, self.val)
        return make_request(self.size, self.mode, self.skip_bad, "auto", 0, self.follow_links, choice)

    def load(self, space: str = "auto") -> RealSet:
        """The real set, in a space."""
        from datastill.data import load_real

        return load_real(
            self.data,
            size=self.size,
            mode=self.mode,
            skip_bad=self.skip_bad,
            space=space,
            follow_links=self.follow_links,
            train=self.train,
            test=self.test,
            val=self.val,
        )


@dataclass(frozen=True, kw_only=True)
class NamedSource(SourceOptions):
    """Real data that must be named."""

    data: str = field()  #: the real data that it was made from: a folder, a parquet folder or a set's name


@dataclass(frozen=True, kw_only=True)
class DataOptions(SourceOptions):
    """Which real data, how images are read and stored."""

    space: str = "auto"  #: how pixels are stored: auto (mean/std), raw, zca or zca-absolute (of the papers)

    def load(self, space: str | None = None) -> RealSet:
        """The real set, in its space."""
        return super().load(self.space if space is None else space)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where it is computed."""

    device: str = "auto"  #: auto, cpu, cuda or mps


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(DeviceOptions):
    """Where it is computed, and how exactly."""

    #: of the networks' arithmetic: float32, or bf16 where the processor is fast at it
    precision: Literal["float32", "bf16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(PrecisionOptions):
    """Where and how it is computed."""

    #: compiled code for the networks: auto (in long runs on a CPU), on or off
    compile: Literal["auto", "on", "off"] = "auto"

    @property
    def engine(self) -> dict[str, Any]:
        """As the library's functions take them."""
        return {"device": self.device, "precision": self.precision, "compile": self.compile}


@functools.cache
def override_options() -> type:
    """A dataclass with one option for every override that there is."""
    import tyro

    made = [
        (name, Annotated[str, tyro.conf.arg(help=kind.help)], field(default=kind.default))
        for name, kind in overrides().items()
    ]
    about = {"__doc__": "What the run changes in any method."}
    return make_dataclass("OverrideOptions", made, frozen=True, kw_only=True, namespace=about)


def method_options(cls: Any) -> Any:
    """A dictionary of the hyper-parameters that are given on the command line; the parser leaves the others out."""
    hints, docs, kinds = get_type_hints(cls, include_extras=True), field_docs(cls), declared(cls)
    taken = {
        f.name: _helped(hints[f.name], docs.get(f.name, ""), interval_of(kinds[f.name]), str(f.default) or "none")
        for f in fields(cls)
    }
    name: Any = cls.__name__
    made: Any = TypedDict(name, taken, total=False)  # type: ignore[misc]
    made.__doc__ = cls.__doc__
    return made


def parse(cls: type[T], args: list[str], prog: str, description: str) -> T:
    """Options from the command line; a bad one ends the program with exit code 2.

    Raises:
        InputError: a value is outside the range that its field declares.
    """
    import tyro

    options: Any = cls
    made: T = tyro.cli(
        _with_ranges(options), args=args, prog=f"datastill {prog}", description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip
    check_fields(made, "--{option}")
    return made


def refuse_void(options: Any, names: Sequence[str], why: str) -> None:
    """Refuse options that were given and would change nothing.

    Args:
        options: as parsed.
        names: of those options.
        why: what makes them void, as in "with --sets".

    Raises:
        InputError: one is not as it is by default.
    """
    for f in fields(options):
        if f.name in names and getattr(options, f.name) != f.default:
            raise InputError(f"--{f.name.replace('_', '-')} changes nothing {why}; leave it out.")


@functools.cache
def _with_ranges(cls: Any) -> Any:
    """The dataclass with the ranges of its fields in their help."""
    hints, docs, kinds, made = get_type_hints(cls, include_extras=True), field_docs(cls), declared(cls), []
    for f in fields(cls):
        hint, default = hints[f.name], field(default=f.default, default_factory=f.default_factory)
        nested = is_dataclass(hint)
        told = _with_ranges(hint) if nested else _helped(hint, docs.get(f.name, ""), interval_of(kinds[f.name]))
        made.append((f.name, told, default))
    about = {"__doc__": cls.__doc__}
    return make_dataclass(cls.__name__, made, bases=(cls,), frozen=True, kw_only=True, namespace=about)


def _helped(hint: Any, text: str, interval: str, default: str | None = None) -> Any:
    """An annotation with the help of its option; a default is told where the parser does not know it."""
    import tyro

    limits = f"; {interval}" if interval else ""
    told = None if default is None and not interval else lambda known: f"(default: {default or known}{limits})"
    return Annotated[hint, tyro.conf.arg(help=text or None, help_behavior_hint=told)]


def names_of(text: str) -> tuple[str, ...]:
    """Names of classes: with commas, or "@FILE" for a file with a name on every line.

    Raises:
        InputError: the file cannot be read, is no text, or holds none.
    """
    if not text.startswith("@"):
        return tuple(name.strip() for name in text.split(","))
    from datastill.store.opening import read_small

    try:
        lines = read_small(text[1:]).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{text[1:]} is no text in UTF-8; write a class name on every line.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{text[1:]} holds no names; write a class name on every line.")
    return names


def value_of(text: str) -> Any:
    """What the value of a --set NAME=VALUE is: JSON, True or False, else a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False}.get(text.strip(), text.strip())


def usage_of(command: str, about: str, actions: Mapping[str, str]) -> str:
    """What the `--help` of a command with actions prints."""
    lines = "\n".join(f"  {name:<9} {text}" for name, text in actions.items())
    return (
        f"usage: datastill {command} ACTION [options]\n\n{about}\n\nactions:\n{lines}\n\n"
        f"`datastill {command} ACTION --help` shows the options of an action."
    )


def helped(args: list[str], usage: Callable[[], str]) -> bool:
    """Whether help is asked for of a command whose name of a method or an action is missing; it is printed."""
    wanted = any(a in ("-h", "--help") for a in args)
    if wanted:
        print(usage())
    return wanted


def positional_first(args: list[str]) -> tuple[str | None, list[str]]:
    """A leading word that is no option, and the rest."""
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    return None, args


@contextlib.contextmanager
def plain_warnings(quiet: bool) -> Iterator[None]:
    """Warnings as one line each, none when quiet."""
    import sys

    def show(message: Any, *_: Any, **__: Any) -> None:
        if not quiet:
            print(f"note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def parse_settings(given: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Settings by method out of "dm.steps=60"; values as JSON, else as words."""
    settings: dict[str, dict[str, Any]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        method, dot, name = key.strip().rpartition(".")
        if not (equals and dot and method and name):
            raise InputError(f"Cannot read --set {text!r}; write it as METHOD.NAME=VALUE, such as dm.steps=60.")
        values, name = settings.setdefault(method, {}), name.replace("-", "_")
        if name in values:
            raise InputError(f"{method}.{name} is given twice; give it once.")
        values[name] = value_of(value)
    return settings


__all__ = [
    "DataOptions",
    "DeviceOptions",
    "NamedSource",
    "RuntimeOptions",
    "helped",
    "method_options",
    "names_of",
    "override_options",
    "parse",
    "parse_settings",
    "plain_warnings",
    "positional_first",
    "refuse_void",
    "usage_of",
    "value_of",
]
