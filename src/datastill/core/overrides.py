"""What a run changes in the data and the plan of any method: one file each in the folder `overrides`.

A method names its choices and knows nothing of overrides. They reach `distill`, `estimate`, `compare`, the command
line, configuration, manifest and reports by being in that folder; nothing names them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from datastill.core.errors import InputError

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task
    from datastill.core.registry import Method
    from datastill.core.runtime import Runtime


@dataclass(frozen=True)
class Override:
    """One change. A file in `overrides` exports its class as OVERRIDE; it imports torch only inside functions.

    Attributes:
        option: the name of the option, and of the record in configuration and manifest.
        label: what it changes, in a few words, where two sets are told apart.
        default: the text that changes nothing.
        help: what the option does, for the command line.
        weighs: whether it gives the real images weights.
    """

    option: ClassVar[str]
    label: ClassVar[str]
    default: ClassVar[str]
    help: ClassVar[str]
    weighs: ClassVar[bool] = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """What the option's text asks for; None for the default.

        Raises:
            InputError: it is no text that the option takes.
        """
        raise NotImplementedError

    def begin(self, real: Any, seed: int, runtime: Runtime) -> tuple[Any, Self]:
        """The real set as the run sees it, and the override with what it learned on the way."""
        return real, self

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        """The plan with one axis exchanged for another object of the same contract.

        Raises:
            InputError: the method's plan has nothing of the kind that is to be changed.
        """
        return plan

    def config(self) -> dict[str, Any]:
        """What a resumed run must agree on, JSON-able."""
        return {self.option: self.describe()}

    def describe(self) -> dict[str, Any]:
        """The manifest's record under `option`, JSON-able."""
        raise NotImplementedError

    def notes(self, method: Method) -> tuple[str, ...]:
        """Sentences for the notes of the run."""
        return ()

    @classmethod
    def schema(cls) -> Any:
        """The type of the manifest's record, a `store.schema.Record`; None takes any JSON object."""
        return None

    @classmethod
    def told(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """What was changed and how, in words, from the manifest's record."""
        raise NotImplementedError

    @classmethod
    def text(cls, record: Mapping[str, Any]) -> str:
        """The option's text that asks for it again; "" where no text does."""
        raise NotImplementedError

    @classmethod
    def placed(cls, text: str) -> str:
        """The option's text with files that it names from the folder of this process named as from any."""
        return text

    @classmethod
    def phrase(cls, record: Mapping[str, Any]) -> tuple[str, str]:
        """The same as a part of a sentence after "made by METHOD on NETWORK", and the text that asked for it."""
        what, how = cls.told(record)
        return f", {what}", how


@cache
def overrides() -> dict[str, type[Override]]:
    """All overrides by option, in the order of their names."""
    package = importlib.import_module("datastill.overrides")  # by name: the files there import this one
    found = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")):
        kind: type[Override] = importlib.import_module(f"{package.__name__}.{module}").OVERRIDE
        lacking = [name for name in ("option", "label", "default", "help") if not hasattr(kind, name)]
        if lacking:
            raise TypeError(f"{kind.__name__} in {package.__name__}.{module} must set {' and '.join(lacking)}.")
        found[kind.option] = kind
    return found


def taken_from(options: dict[str, Any]) -> tuple[tuple[Override, ...], dict[str, Any]]:
    """The overrides among a caller's options, and the options without them.

    Raises:
        InputError: an option's value is no text, or none that it takes.
    """
    asked, rest = [], dict(options)
    for option, kind in overrides().items():
        text = rest.pop(option, kind.default)
        if not isinstance(text, str):
            raise InputError(f"{option} is a text such as {kind.default!r}, not {text!r}.")
        made = kind.parse(text)
        if made is not None:
            asked.append(made)
    return tuple(asked), rest
