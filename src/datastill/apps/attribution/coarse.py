"""Families of classes: a coarse label for every fine one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.data.real import RealSet

#: Families of data sets that have none of their own.
FAMILIES: dict[str, str] = {
    "digits": "0,1,2,3,4/5,6,7,8,9",
    "mnist": "0,1,2,3,4/5,6,7,8,9",
    "cifar10": "airplane,automobile,ship,truck/bird,cat,deer,dog,frog,horse",
    "fashion_mnist": "T - shirt / top,Trouser,Pullover,Dress,Coat,Shirt|Sandal,Sneaker,Ankle boot,Bag",
}


def families(real: RealSet, text: str = "auto") -> tuple[tuple[str, ...], Tensor]:
    """Names of the families, and the family of every class, (C,) int64.

    Args:
        real: whose classes they are.
        text: names of classes with commas, families with slashes (or with "|" where names hold slashes), as in
            "cat,dog/car,truck"; "auto" knows those of `FAMILIES`.

    Raises:
        InputError: a class in no family or in two, a name that is none, fewer than two families.
    """
    if text == "auto":
        if real.name not in FAMILIES:
            raise InputError(
                f"{real.name} has no families of classes that are known here; name them, classes with commas and "
                f"families with slashes, as in --families {','.join(real.class_names[:2])}/..."
            )
        text = FAMILIES[real.name]
    groups = [[name.strip() for name in part.split(",")] for part in text.split("|" if "|" in text else "/")]
    if len(groups) < 2:
        raise InputError("Name two families or more, with a slash between them, as in cat,dog/car,truck.")
    found = _positions(groups, real.class_names)
    names = tuple(", ".join(group) for group in groups)
    return names, torch.tensor([found[name] for name in real.class_names])


def _positions(groups: Sequence[Sequence[str]], class_names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for k, group in enumerate(groups):
        for name in group:
            if name not in class_names:
                raise InputError(f"There is no class {name!r}; there are {', '.join(class_names)}.")
            if name in found:
                raise InputError(f"The class {name!r} is in two families; put it into one.")
            found[name] = k
    missing = [name for name in class_names if name not in found]
    if missing:
        raise InputError(f"Every class belongs into a family; in none: {', '.join(missing)}.")
    return found


def coarse(real: RealSet, names: tuple[str, ...], of_class: Tensor) -> RealSet:
    """The same images with families as their classes, test split and all."""
    test = None if real.test is None else coarse(real.test, names, of_class)
    return dataclasses.replace(
        real, labels=of_class[real.labels], class_names=names, label_ids=tuple(range(len(names))), test=test,
        name=f"{real.name}-families", source="", options={},
    )  # fmt: skip
