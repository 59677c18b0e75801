"""Published settings as data: `recipes/<method>/<dataset>-ipc<k>.toml`. Nothing here imports torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from datastill.core.errors import InputError, nearest


@dataclass(frozen=True)
class Recipe:
    """One table cell of a paper: hyper-parameters, the protocol, and the accuracy with its source."""

    method: str
    dataset: str
    ipc: int
    hyper: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = ""
    accuracy: float | None = None  #: as a fraction; None where no verified number is known
    std: float | None = None
    source: str = ""
    space: str = ""  #: kind of Space that the images were in, where it was not the usual one: "zca"

    @property
    def name(self) -> str:
        """As the file is called."""
        return f"{self.method}/{self.dataset}-ipc{self.ipc}"


def recipes(method: str) -> list[Recipe]:
    """All recipes of a method, by data set and size."""
    folder = resources.files("datastill").joinpath("recipes", method)
    if not folder.is_dir():
        return []
    found = []
    for file in folder.iterdir():
        name = re.fullmatch(r"(.+)-ipc(\d+)\.toml", file.name)
        if not name:
            continue
        record = tomllib.loads(file.read_text(encoding="utf-8"))
        published = record.get("published", {})
        found.append(
            Recipe(
                method,
                name.group(1),
                int(name.group(2)),
                record.get("hyper", {}),
                record.get("evaluation", {}).get("protocol", ""),
                published.get("accuracy"),
                published.get("std"),
                published.get("source", ""),
                record.get("data", {}).get("space", ""),
            )
        )
    return sorted(found, key=lambda r: (r.dataset, r.ipc))


def find_recipe(method: str, dataset: str, ipc: int) -> Recipe | None:
    """The recipe for a data set and size, or None. Names match whatever their case, dashes or owner."""
    wanted = canonical(dataset)
    return next((r for r in recipes(method) if canonical(r.dataset) == wanted and r.ipc == ipc), None)


def get_recipe(name: str) -> Recipe:
    """A recipe by its name, `dm/cifar10-ipc10`.

    Raises:
        InputError: unknown; the nearest are named.
    """
    method = name.split("/")[0]
    known = {r.name: r for r in recipes(method)}
    if name not in known:
        raise InputError(f"There is no recipe {name!r}. Use auto, paper or a name; {nearest(name, known)}")
    return known[name]


def canonical(name: str) -> str:
    """A data set's name without owner, options, case or punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.split(":")[0].rstrip("/").split("/")[-1].lower())
