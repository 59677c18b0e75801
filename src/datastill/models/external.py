"""Networks of torchvision and timm by name, always with fresh weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from datastill.core.errors import InputError, MissingExtra, nearest
from datastill.core.torchvision import import_torchvision
from datastill.models.anatomy import Embed, Size
from datastill.models.factory import NetworkFactory, refuse_outsized
from datastill.models.user import factory_of

RESERVED = ("weights", "weights_backbone", "pretrained", "num_classes", "in_chans")
#: Options of timm that read or fetch weights, where networks are always fresh.
_WEIGHTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir")


def external_factory(
    library: str,
    name: str,
    options: Mapping[str, Any],
    *,
    channels: int,
    classes: int,
    size: Size,
    embed: Embed | None,
) -> NetworkFactory:
    """A factory for "torchvision/<name>" or "timm/<name>", with further keyword options of that library.

    Raises:
        InputError: no such network, a reserved option, or images that the network cannot take.
        MissingExtra: timm is not installed.
    """
    for option in options:
        if option in RESERVED:
            raise InputError(f"{library}/{name}: the option {option!r} is set by the data; leave it out.")
        if option in _WEIGHTS:
            raise InputError(f"{library}/{name}: networks have fresh weights; leave {option!r} out.")
    known = _torchvision_names() if library == "torchvision" else _timm_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = nearest(name, close) if close else f"It has {len(known)}, such as {known[len(known) // 2]!r}."
        raise InputError(f"{library} has no classification network {name!r}. {hint}")
    build = _build_torchvision if library == "torchvision" else _build_timm
    whole = partial(build, name, channels, classes, dict(options))
    refuse_outsized(whole, f"{library}/{name}", options)
    return factory_of(
        whole,
        f"{library}/{name}",
        channels=channels,
        classes=classes,
        size=size,
        embed=embed,
        options=options,
    )


def _torchvision_names() -> list[str]:
    models = import_torchvision().models
    return list(models.list_models(module=models))


def _import_timm() -> Any:
    import_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "Networks named timm/... need timm, which is not installed: pip install 'datastill[timm]'"
        ) from error
    return timm


def _timm_names() -> list[str]:
    return list(_import_timm().list_models())


def _build_timm(name: str, channels: int, classes: int, options: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = _import_timm().create_model(
        name, pretrained=False, num_classes=classes, in_chans=channels, **options
    )
    return model


def _build_torchvision(name: str, channels: int, classes: int, options: Mapping[str, Any]) -> nn.Module:
    extra = dict(options)
    if name in ("googlenet", "inception_v3"):
        # Their training mode otherwise returns a tuple with auxiliary logits.
        extra = {"aux_logits": False, "init_weights": True, **extra}
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, num_classes=classes, **extra)
    if channels != 3:
        _replace_first_convolution(model, name, channels)
    return model


def _replace_first_convolution(model: nn.Module, name: str, channels: int) -> None:
    """Let the first convolution take `channels`, with fresh weights as spread as those it had."""
    for old in model.modules():
        if isinstance(old, nn.Conv2d) and old.in_channels == 3 and old.groups == 1:
            spread = old.weight.detach().std()
            old.in_channels = channels
            old.weight = nn.Parameter(torch.randn(old.out_channels, channels, *old.kernel_size) * spread)
            return
    raise InputError(f"torchvision/{name} takes three channels only; the images have {channels}.")
