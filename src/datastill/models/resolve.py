"""From what a user writes or holds to a factory of networks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from datastill.core.errors import InputError, nearest
from datastill.models.anatomy import Embed, Size
from datastill.models.external import external_factory
from datastill.models.factory import NetworkFactory, refuse_outsized
from datastill.models.layers import StackedNetwork, require_positive
from datastill.models.resnet import ResNet18, ResNet18AP
from datastill.models.towers import towers_of
from datastill.models.user import (
    factory_of,
    factory_of_callable,
    factory_of_module,
    factory_of_reference,
    qualified_name,
)
from datastill.models.zoo import MLP, VGG11, AlexNet, ConvNet, DoublingConvNet, LeNet

ZOO: dict[str, type[StackedNetwork]] = {
    "convnet": ConvNet,
    "convnet-doubling": DoublingConvNet,
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "resnet18-ap": ResNet18AP,
}
LIBRARIES = ("torchvision", "timm")
_REFERENCE = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")

NetworkSpec = None | str | NetworkFactory | nn.Module | Callable[..., nn.Module]


def resolve_network(
    spec: NetworkSpec,
    *,
    channels: int,
    classes: int,
    size: Size | int,
    embed: Embed | None = None,
    text: int = 0,
) -> NetworkFactory:
    """The factory that `spec` means for images (channels, *size) of `classes` classes.

    Args:
        spec: None (a ConvNet whose depth suits the size); a name of the zoo with options, such as "resnet18"
            or "convnet:width=32,norm=batch"; "torchvision/<name>" or "timm/<name>", with options alike;
            "package.module:Name" or "path/to/file.py:Name"; a class or function that builds a network, called
            with those of channels=, classes=, size= that its signature names; a module, whose copies are
            initialized anew by `reset_parameters`; or a factory, returned as it is.
        size: height and width in pixels; one number for square images.
        embed: (module, images) -> features, where these are not the input of the last linear layer.
        text: numbers of a sentence's vector: the network then becomes the image tower of two (`models.towers`).

    Raises:
        InputError: unknown name or option, or a network that does not fit the data.
        MissingExtra: timm is named and not installed.
    """
    if text:
        image = resolve_network(spec, channels=channels, classes=classes, size=size, embed=embed)
        return towers_of(image, text)
    height, width = (size, size) if isinstance(size, int) else size
    require_positive(channels=channels, classes=classes, height=int(height), width=int(width))
    shape: dict[str, Any] = {"channels": channels, "classes": classes, "size": (int(height), int(width))}
    if isinstance(spec, NetworkFactory):
        if embed is not None:
            raise InputError("embed= was given with a NetworkFactory; give it where the factory is made.")
        return _fitting(spec, shape)
    if spec is None:
        return _zoo("convnet", default_options(min(shape["size"])), shape, embed)
    if isinstance(spec, str):
        return _named(spec.strip(), shape, embed)
    if isinstance(spec, nn.Module):
        return factory_of_module(spec, **shape, embed=embed)
    if callable(spec):
        return factory_of_callable(spec, qualified_name(spec), **shape, embed=embed)
    raise InputError(f"A network is a name, a class, a function or a torch.nn.Module, not {type(spec).__name__}.")


def is_built_in(spec: Any) -> bool:
    """Whether a name builds a network of the zoo, or of a library with no options but numbers and switches.

    An option of a library that is a word may name a file.
    """
    if not isinstance(spec, str):
        return False
    name, _, rest = spec.strip().partition(":")
    library, slash, model = name.partition("/")
    if name in ZOO:
        return True
    if not slash or library not in LIBRARIES or not re.fullmatch(r"[\w.-]+", model):
        return False
    try:
        return not any(isinstance(value, str) for value in parse_options(rest).values())
    except InputError:  # timm's own way to name what lies elsewhere, such as hf-hub:owner/name
        return False


def resolve_recorded(spec: Any, holder: object, option: str, **shapes: Any) -> NetworkFactory:
    """The factory that a name in a file means. What is not built in is not imported on the file's word.

    Args:
        spec: what the file says.
        holder: which file.
        option: how a caller gives the name, in an error.
        shapes: as `resolve_network` takes them.

    Raises:
        InputError: it is not built in; or as `resolve_network`.
    """
    if not is_built_in(spec):
        raise InputError(
            f"{holder} names the network {spec!r}, which is not built in, and no code is imported on a file's word; "
            f"if you know and trust that network, give it by {option}."
        )
    return resolve_network(spec, **shapes)


def spec_of(factory: NetworkFactory) -> str | None:
    """The network as `resolve_network` reads it, or None for an object that only the caller has."""
    spec = str(factory)
    if is_built_in(spec):
        return spec
    try:
        resolve_network(spec, channels=factory.channels, classes=factory.classes, size=factory.size)
    except InputError:
        return None
    return spec


def narrowed(factory: NetworkFactory, width: int) -> NetworkFactory:
    """The same architecture with `width` channels, where it has a width and is wider; else the factory itself."""
    if not 0 < width < int(factory.options.get("width", 0)) or factory.name not in ZOO:
        return factory
    shape = {"channels": factory.channels, "classes": factory.classes, "size": factory.size}
    return _zoo(factory.name, {**factory.options, "width": width}, shape, None)


def default_options(side: int) -> dict[str, Any]:
    """Options of the default ConvNet for images of `side` pixels on the shorter side."""
    if side < 16:
        return {"width": 32, "depth": 2, "padding": 1}
    return {"depth": 3 if side <= 40 else 4 if side <= 80 else 5}


def networks() -> dict[str, str]:
    """Every name that `resolve_network` knows, or the form of it, with one line on each."""
    lines = {name: (inspect.getdoc(kind) or "").splitlines()[0] for name, kind in ZOO.items()}
    lines["torchvision/<name>"] = "Any classification network of torchvision, such as torchvision/resnet18."
    lines["timm/<name>"] = "Any network of timm (pip install 'datastill[timm]'), such as timm/resnet10t."
    lines["package.module:Name"] = "Your own class or function; path/to/file.py:Name works too."
    return lines


def _fitting(factory: NetworkFactory, shape: Mapping[str, Any]) -> NetworkFactory:
    for key, wanted in shape.items():
        if getattr(factory, key) != wanted:
            raise InputError(
                f"The network {factory} was made for {key} {getattr(factory, key)}, the data has {wanted}."
            )
    return factory


def _named(text: str, shape: Mapping[str, Any], embed: Embed | None) -> NetworkFactory:
    name, _, rest = text.partition(":")
    library, slash, model = name.partition("/")
    if name in ZOO:
        return _zoo(name, parse_options(rest), shape, embed)
    if slash and library in LIBRARIES:
        return external_factory(library, model, parse_options(rest), **shape, embed=embed)
    if _REFERENCE.fullmatch(text):
        return factory_of_reference(text, **shape, embed=embed)
    raise InputError(
        f"Unknown network {name!r}. {nearest(name, ZOO)} "
        "Or torchvision/<name>, timm/<name>, package.module:Name, path/to/file.py:Name."
    )


def parse_options(text: str) -> dict[str, Any]:
    """Text such as "width=32,norm=batch" as keyword arguments: numbers, true and false, else words."""
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not key or not value:
            raise InputError(f"Cannot read the network option {part!r}; write options as width=32,norm=batch.")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _zoo(name: str, given: Mapping[str, Any], shape: Mapping[str, Any], embed: Embed | None) -> NetworkFactory:
    kind = ZOO[name]
    parameters = inspect.signature(kind).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for option in given:
        if option not in defaults:
            known = nearest(option, defaults) if defaults else f"{name} has no options."
            raise InputError(f"The network {name} has no option {option!r}. {known}")
    options = {**defaults, **given}
    build = partial(kind, **shape, **options)
    refuse_outsized(build, name, options)
    if embed is not None:
        return factory_of(build, name, **shape, embed=embed, options=options)
    factory = NetworkFactory(name, **shape, build=build, options=options, defaults=defaults)
    _ = factory.macs  # a wrong option or a size too small speaks here, not at the first step
    return factory
