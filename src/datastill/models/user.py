"""Networks that the user brings: found by name, called with the shapes that they ask for, wrapped."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from datastill.core.errors import InputError, nearest
from datastill.core.imports import import_file
from datastill.core.rng import isolated
from datastill.core.usercode import FindsTheirs
from datastill.models.anatomy import Anatomy, Embed, Size, dissect
from datastill.models.base import Network
from datastill.models.factory import NetworkFactory
from datastill.models.wrapped import Wrapped, prepare, reinitialized

Builder = Callable[[], nn.Module]

ARGUMENTS = {
    "channels": ("channels", "in_channels", "in_chans"),
    "classes": ("classes", "num_classes"),
    "size": ("size",),
}


def load_object(reference: str) -> Any:
    """The object that "package.module:Name" or "path/to/file.py:Name" names.

    The code is imported with the global torch generator set aside. A file is imported once per process;
    modules are also looked up in the working directory.

    Raises:
        InputError: the module or file cannot be imported, or has no such name.
    """
    place, _, name = reference.rpartition(":")
    try:
        with isolated(0):
            module = import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"Cannot import {place!r}: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(module) if not n.startswith("_")]
            raise InputError(f"{place!r} has no {name!r}. {nearest(name, public)}")
        found = getattr(found, part)
    return found


def _import_module(name: str) -> ModuleType:
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def arguments_for(function: Callable[..., Any], shapes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keyword arguments that `function` accepts among channels, classes and size.

    `in_channels`, `in_chans` and `num_classes` are understood too.

    Raises:
        InputError: the function needs further arguments.
    """
    parameters = _parameters(function)
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = {p.name for p in parameters.values() if p.kind in by_name}
    given: dict[str, Any] = {}
    for shape, names in ARGUMENTS.items():
        given.update({n: shapes[shape] for n in names if n in accepted})
    try:
        inspect.Signature(list(parameters.values())).bind(**given)
    except TypeError as error:
        raise InputError(
            f"Cannot build the network {name}: {error}; pass a function that takes channels=, classes= and "
            "size=, or nothing."
        ) from error
    return given


def build_wrapped(
    build: Builder, name: str, anatomy: Anatomy, channels: int, classes: int, size: Size, embed: Embed | None
) -> Network:
    """One network: built, made fit, and wrapped where it is not a `Network` already."""
    module = _fresh(build, name, channels, size)
    if isinstance(module, Network) and embed is None:
        for fact, value in (("channels", channels), ("classes", classes), ("size", size)):
            setattr(module, fact, value)
        module.embed_size = anatomy.embed_size
        return module
    return Wrapped(module, anatomy, channels, classes, size, embed)


def _fresh(build: Builder, name: str, channels: int, size: Size) -> nn.Module:
    try:
        module = build()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"Cannot build the network {name}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{name} must build a torch.nn.Module, not {type(module).__name__}.")
    return prepare(module, name, channels, size)


def factory_of(
    build: Builder,
    name: str,
    *,
    channels: int,
    classes: int,
    size: Size,
    embed: Embed | None = None,
    options: Mapping[str, Any] | None = None,
) -> NetworkFactory:
    """A factory for any builder of modules, after one trial that finds where the features are.

    Raises:
        InputError: the network cannot be built, cannot take the images, or has the wrong number of outputs.
    """
    with isolated(0):
        module = _fresh(build, name, channels, size)
    anatomy = dissect(module, name, channels, classes, size, embed or _own_embed(module))
    return NetworkFactory(
        name,
        channels,
        classes,
        size,
        build=partial(build_wrapped, build, name, anatomy, channels, classes, size, embed),
        options=dict(options or {}),
        embed="" if embed is None else qualified_name(embed),
    )


def _own_embed(module: nn.Module) -> Embed | None:
    """The features of a module that is a `Network` already."""
    if not isinstance(module, Network):
        return None
    network = module
    return lambda _, x: network.embed(x)


def factory_of_callable(
    function: Callable[..., Any], name: str, *, channels: int, classes: int, size: Size, embed: Embed | None
) -> NetworkFactory:
    """A factory for a class or function, called with the shapes that its signature asks for."""
    shapes = {"channels": channels, "classes": classes, "size": size}
    given = arguments_for(function, shapes, name) or _through_kwargs(function, shapes)
    build = partial(function, **given)
    factory = factory_of(build, name, channels=channels, classes=classes, size=size, embed=embed)
    with isolated(0):
        if build() is build():
            raise InputError(f"{name} returns the same network at every call; return a new one each time.")
    return factory


def _through_kwargs(function: Callable[..., Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """What a function with a bare `**kwargs` takes: our names, else the class count as torchvision has it."""
    kinds = [p.kind for p in _parameters(function).values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return {}
    for guess in (dict(shapes), {"num_classes": shapes["classes"]}):
        try:
            with isolated(0):
                function(**guess)
            return guess
        except TypeError:
            continue
    return {}


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable written in C
        return {}


def factory_of_module(
    module: nn.Module, *, channels: int, classes: int, size: Size, embed: Embed | None
) -> NetworkFactory:
    """A factory for an instance: copies with fresh weights; the instance itself is never changed."""
    name = qualified_name(type(module))
    build = partial(reinitialized, module)
    return factory_of(build, name, channels=channels, classes=classes, size=size, embed=embed)


@dataclass(frozen=True)
class Named(FindsTheirs):
    """Finds the user's class, function or module by name, and calls it; so it pickles to any process."""

    reference: str

    def found(self) -> Any:
        return load_object(self.reference)

    def __call__(self, **given: Any) -> nn.Module:
        found = self.found()
        return reinitialized(found) if isinstance(found, nn.Module) else found(**given)

    @property
    def __signature__(self) -> inspect.Signature:
        found = self.found()
        return inspect.Signature() if isinstance(found, nn.Module) else inspect.signature(found)


def factory_of_reference(
    reference: str, *, channels: int, classes: int, size: Size, embed: Embed | None
) -> NetworkFactory:
    """A factory for "package.module:Name" or "path/to/file.py:Name"."""
    target = load_object(reference)
    if not callable(target):
        raise InputError(f"{reference} must name a class, a function or a network, not {type(target).__name__}.")
    place, _, name = reference.rpartition(":")
    where = str(Path(place).expanduser().resolve()) if place.endswith(".py") else place
    return factory_of_callable(
        Named(f"{where}:{name}"), reference, channels=channels, classes=classes, size=size, embed=embed
    )


def qualified_name(thing: Any) -> str:
    """module.Name of a class or function, following partials."""
    while isinstance(thing, partial):
        thing = thing.func
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
