"""Real sets that are known by a name of their own, one file each, found by walking this folder.

A source is a function `(request, *, option=default, ...) -> Raw` under `@source("name")`. Users write
`name:option=value,...`; values take the type of the option's default. To add one, add a file here that
imports nothing slow at its top.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from datastill.core.errors import InputError, nearest
from datastill.data.raw import Raw

_SOURCES: dict[str, Callable[..., Raw]] = {}


def source(name: str) -> Callable[[Callable[..., Raw]], Callable[..., Raw]]:
    """Register a function `(request, *, options) -> Raw` under `name`."""

    def register(function: Callable[..., Raw]) -> Callable[..., Raw]:
        _SOURCES[name] = function
        return function

    return register


def sources() -> dict[str, Callable[..., Raw]]:
    """All named sources."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_SOURCES.items()))


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """`name:key=value,key=value` to the name and its options.

    Raises:
        InputError: an option without a value, or given twice.
    """
    name, _, tail = text.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in tail.split(","))):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or not key or not value:
            raise InputError(f"{part!r} in {text!r} is not an option; write {name}:key=value,key=value.")
        if key in options:
            raise InputError(f"{text!r} gives {key} twice; give it once.")
        options[key] = value
    return name, options


def join_options(name: str, options: Mapping[str, Any]) -> str:
    """What `split_options` takes apart: "name:key=value,key=value", or the name alone."""
    return name + (":" if options else "") + ",".join(f"{key}={value}" for key, value in options.items())


def call_source(function: Callable[..., Raw], name: str, options: dict[str, str], *args: Any) -> Raw:
    """Call `function(*args, **options)` with each option in the type of its default.

    Raises:
        InputError: an unknown option (the known ones are named), or a value of another type.
    """
    known = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in known:
            told = nearest(key, known) if known else "It takes none."
            listed = f" Known: {', '.join(sorted(known))}." if known and "Known:" not in told else ""
            raise InputError(f"{name} has no option {key!r}. {told}{listed}")
        values[key] = typed_option(text, known[key], f"{name}:{key}")
    return function(*args, **values)


def typed_option(text: str, default: Any, where: str) -> Any:
    """The text of an option in the type of its default; as it is where that is None.

    Args:
        where: what the option is called in an error.

    Raises:
        InputError: the text is of another type.
    """
    kind = str if default is None else type(default)
    if kind is bool:
        if text.lower() in ("true", "yes", "1", "false", "no", "0"):
            return text.lower() in ("true", "yes", "1")
        raise InputError(f"{where}={text} must be true or false.")
    try:
        return kind(text)
    except ValueError as error:
        what = {int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
        raise InputError(f"{where}={text} must be {what}.") from error
