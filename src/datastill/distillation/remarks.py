"""What settling a method's values has to say, for the notes of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from datastill.core.plan import Task
from datastill.core.recipes import Recipe
from datastill.core.registry import Method
from datastill.data.spaces import name_of
from datastill.store.files import digest

#: How a note on values that a time or `auto` changed begins.
CHANGED = "changed from the full setting: "


def changes(before: Method, after: Method) -> list[str]:
    """A sentence on the values in which two settings of a method differ, or nothing."""
    old, new = hyper_of(before), hyper_of(after)
    changed = [f"{n} {_told(old[n])} → {_told(new[n])}" for n in old if old[n] != new[n]]
    return [CHANGED + ", ".join(changed)] if changed else []


def _told(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def filled_in(before: Method, after: Method, ipc: int, recipe: str) -> list[str]:
    """A note on values that no recipe gives: they follow a rule, or stay, and were never published for this set."""
    old, new = hyper_of(before), hyper_of(after)
    filled = [f"{n} {new[n]}" for n in old if old[n] != new[n]]
    instead = f"by the method's rule: {', '.join(filled)}" if filled else "the method's own values are taken"
    return [f"no recipe for this set at {ipc} per class; {instead}"] if filled or recipe == "paper" else []


def other_space(recipe: Recipe, task: Task) -> list[str]:
    """A note where the published setting is for images in another Space."""
    name = name_of(task.real.space)
    if recipe.space in ("", name):
        return []
    return [
        f"the published setting is for {recipe.space} images, and these are {name}: load them with space={recipe.space}"
    ]


def void_values(method: Method, given: Mapping[str, Any]) -> list[str]:
    """Sentences on values of the caller's that another of theirs makes void."""
    void = {by: [name for name in names if name in given] for by, names in method.voids.items() if given.get(by)}
    return [f"{', '.join(names)} changed nothing, since {by} was given" for by, names in void.items() if names]


def hyper_of(method: Method) -> dict[str, Any]:
    """Its values, JSON-able; a tensor by its hash."""
    record: dict[str, Any] = {}
    for f in fields(method):
        value = getattr(method, f.name)
        record[f.name] = f"tensor {digest(value)}" if isinstance(value, Tensor) else value
    return json.loads(json.dumps(record, default=str))
