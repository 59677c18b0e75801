"""Runs that go on with files of the user's code that have changed since: they say so."""

from __future__ import annotations

import warnings

from datastill.models.code import States


def code_since(before: States, now: States, since: str) -> States:
    """Every state of each file that a run has been at work with, the last one of now; warns of one that has changed.

    Args:
        before: of the earlier start.
        now: of this one.
        since: when `before` was, such as "the run began".
    """
    for name, (last,) in now.items():
        if before.get(name, [last])[-1] != last:
            warnings.warn(f"{name} has changed since {since}; what is there already stays as it was.", stacklevel=2)
    return {name: [*(one for one in before.get(name, []) if one != last), last] for name, (last,) in now.items()}


def changed_code(code: States) -> list[str]:
    """A sentence on each file that has changed."""
    return [
        f"{name} was changed while the run was under way: a part of it is of the earlier code"
        for name, states in code.items()
        if len(states) > 1
    ]
