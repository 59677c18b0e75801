"""Methods are found by walking the `methods` folder; nothing here imports torch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import linecache
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from datastill.core.errors import InputError, nearest
from datastill.core.imports import import_file
from datastill.core.ranges import CALLED, MANY, check_fields, refuse_outside

if TYPE_CHECKING:
    from datastill.core.plan import Plan, Task


@dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters of one published method, and the plan that they make.

    Subclasses are frozen dataclasses whose defaults are the paper's; each field is documented where it
    stands by a `#:` comment, which is also the help of the command line, and declares what it may be
    (`core.ranges`), which is checked before anything is done.
    """

    registered_name: ClassVar[str] = ""
    registered_family: ClassVar[str] = ""
    #: Values of the paper where the default is a cheaper one.
    paper_values: ClassVar[dict[str, Any]] = {}
    #: What may stand beside the images of its real set: "classes", or the captions of "pairs".
    takes: ClassVar[tuple[str, ...]] = ("classes",)
    #: Whether anything of it runs as compiled code where `task.compile` asks for that.
    compiles: ClassVar[bool] = True

    #: Hyper-parameters that have no effect where another is given, by its name: who gives both is told.
    voids: ClassVar[dict[str, tuple[str, ...]]] = {}

    @property
    def steps(self) -> int:
        """Image updates; 0 for a method that selects. A field of that name stands in for it."""
        return 0

    @property
    def teacher(self) -> str:
        """The folder of the pretrained teacher that the method was given, or ""."""
        return ""

    def build(self, task: Task) -> Plan:
        """The method's row of the decomposition table: which objective, surrogates, sampler and so on."""
        raise TypeError(f"{type(self).__name__} must define build(task).")

    def usual_network(self) -> str | None:
        """The network where the caller names none; None takes the library's, which fits the size of the images."""
        return None

    def for_task(self, task: Task) -> Method:
        """This method with the values filled in that follow from the task, such as a schedule from the ipc.

        Called after recipe and caller have had their say; a field that waits to be filled in is 0 or "auto".
        """
        return self

    def macs_per_step(self, task: Task) -> float:
        """Multiply-accumulates of one step, for `recipe="auto"` and estimates; 0 where steps cost nothing."""
        return 0.0

    def remarks(self, task: Task) -> tuple[str, ...]:
        """Sentences for the notes of a run on what the method does otherwise for this task than its name says."""
        return ()

    def affordable(self, task: Task, seconds: float) -> int:
        """Steps of this method within `seconds` at the nominal speed."""
        return min(MANY, int(seconds / nominal_seconds(self.macs_per_step(task), task.device.type)))

    def scaled(self, task: Task, seconds: float) -> Method:
        """This method with fewer or cheaper steps, so that it takes about `seconds` at the nominal speed."""
        if not self.steps:
            return self
        return dataclasses.replace(self, steps=max(20, min(self.steps, self.affordable(task, seconds))))  # type: ignore[call-arg]

    def within(self, cheap: Self, task: Task, seconds: float, most: int = MANY) -> Self:
        """This method where `seconds` pay for all steps of `cheap`; else `cheap`, with the steps that they pay for.

        Args:
            cheap: this method with cheaper steps.
            task: the data, the network and the size.
            seconds: at the nominal speed.
            most: steps of the latter at most.
        """
        steps = cheap.affordable(task, seconds)
        if steps >= self.steps:
            return self
        return dataclasses.replace(cheap, steps=max(20, min(most, steps)))  # type: ignore[call-arg]

    def with_cheap_preparation(self, task: Task, seconds: float, given: Collection[str]) -> Self:
        """This method with a preparation of about `seconds`, where its steps were given and nothing else is scaled.

        Args:
            given: hyper-parameters that the caller named; none of them changes.
        """
        return self


@runtime_checkable
class Chooses(Protocol):
    """A method that stands for another one, which it names once it has seen the task."""

    def choose(self, task: Task) -> tuple[str, dict[str, Any], str]:
        """A method's name, values of its own for this task, and the reason in words."""
        ...


# What `recipe="auto"` takes a device to do: fixed numbers, so that one seed gives one result everywhere.
NOMINAL_MACS_PER_SECOND = {"cpu": 50e9, "mps": 500e9, "cuda": 5e12}
NOMINAL_STEP_SECONDS = 0.01


def nominal_speed(device: str) -> float:
    """Multiply-accumulates a second of a device type; one that is not known is taken for a CPU."""
    return NOMINAL_MACS_PER_SECOND.get(device, NOMINAL_MACS_PER_SECOND["cpu"])


def nominal_seconds(macs: float, device: str) -> float:
    """Seconds of one step at the nominal speed of a device type."""
    return NOMINAL_STEP_SECONDS + macs / nominal_speed(device)


@dataclass(frozen=True)
class MethodInfo:
    """A registered method, as `datastill methods` lists it."""

    name: str
    cls: type[Method]
    paper: str
    family: str

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]

    @property
    def cost(self) -> str:
        """What a step costs, from the line of the module's docstring that starts with 'Cost:'."""
        text = inspect.getdoc(sys.modules[self.cls.__module__]) or ""
        found = re.search(r"Cost:\s*(.+?)(?:\n\s*\n|\n\s*[-*] |\Z)", text, re.S)
        return " ".join(found.group(1).split()) if found else ""


_REGISTRY: dict[str, MethodInfo] = {}
M = TypeVar("M", bound=type[Method])


def method(name: str, *, paper: str, family: str) -> Callable[[M], M]:
    """Register a method class under `name`. `paper` is its source, `family` groups it in listings."""

    def register(cls: M) -> M:
        known = _REGISTRY.get(name)
        if known and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"Two methods are called {name!r}: {known.cls.__module__} and {cls.__module__}.")
        cls.registered_name = name
        cls.registered_family = family
        _REGISTRY[name] = MethodInfo(name, cls, paper, family)
        return cls

    return register


def methods() -> dict[str, MethodInfo]:
    """All methods by name, discovered in `datastill.methods`."""
    package = importlib.import_module("datastill.methods")  # by name: the files there import this one
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def registered(name: str) -> MethodInfo | None:
    """A method by a name that was read from a file, which is a label only: nothing is imported on its word."""
    return methods().get(name)


def get_method(name: str) -> MethodInfo:
    """One method by the name that a caller gives, or from a file of theirs: `path/to/file.py` or `.../file.py:name`.

    Raises:
        InputError: no method has that name; the nearest are named.
    """
    path, _, wanted = name.partition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), wanted)
    if (own := _from_own_file(name)) is not None:
        return own
    known = methods()
    if name not in known:
        raise InputError(f"There is no method {name!r}. {nearest(name, known)}")
    return known[name]


def _from_own_file(name: str) -> MethodInfo | None:
    """A method of ours whose file is called as it is, without an import of all others: half of the time of a help."""
    stem = f"datastill.methods.{name.replace('-', '_')}"
    if re.fullmatch(r"[a-z][a-z0-9-]*", name) and find_spec(stem) is not None:
        importlib.import_module(stem)
    return _REGISTRY.get(name)


def _from_file(path: Path, wanted: str) -> MethodInfo:
    if not path.is_file():
        raise InputError(f"There is no method file {path}; check the path.")
    try:
        module = import_file(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be imported ({type(error).__name__}: {error}); mend it first.") from error
    found = {name: info for name, info in _REGISTRY.items() if info.cls.__module__ == module.__name__}
    if wanted and wanted not in found:
        raise InputError(f"{path} registers no method {wanted!r}. {nearest(wanted, found)}")
    if not found or (len(found) > 1 and not wanted):
        raise InputError(
            f"{path} registers {len(found)} methods with @method(...); it must register one, or name it as {path}:NAME."
        )
    return found[wanted or next(iter(found))]


def field_docs(cls: type) -> Mapping[str, str]:
    """The `#:` comment of every field, from the source of the class and its bases."""
    return _comments(cls)


@functools.cache
def _comments(cls: type) -> Mapping[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is object or not dataclasses.is_dataclass(base):
            continue
        lines = _source(base)
        above: list[str] = []
        for line in lines:
            comment = re.match(r"\s*#:\s?(.*)", line)
            if comment:
                above.append(comment.group(1).strip())
                continue
            found = re.match(r"\s*(\w+)\s*:[^#]*(?:#:\s*(.*)|#.*)?$", line)
            if found and (found.group(2) or above):
                docs[found.group(1)] = " ".join([*above, (found.group(2) or "").strip()]).strip()
            above = []
    return docs


def _source(cls: type) -> list[str]:
    """The lines of a class, or none where there is no file. `inspect.getsource` parses its whole module first."""
    try:
        lines = linecache.getlines(inspect.getfile(cls))
        begins = [k for k, line in enumerate(lines) if re.match(rf"\s*class {cls.__name__}\b", line)]
        return [*inspect.getblock(lines[begins[0] :])] if len(begins) == 1 else inspect.getsource(cls).splitlines()
    except (OSError, TypeError):
        return []


#: Spellings of before, in files of runs and in scripts; taken until 1.0.
_OLD_NAMES = {"normalise": "normalize"}


def with_overrides(instance: Method, overrides: dict[str, Any], called: str = CALLED) -> Method:
    """`dataclasses.replace` for what a caller or recipe gives: every hyper-parameter that a method gets passes here.

    Args:
        instance: the method.
        overrides: values by name.
        called: what a hyper-parameter is called in an error.

    Raises:
        InputError: a name is unknown, or a value, of the instance's own too, is not what its field declares.
    """
    known = {f.name for f in dataclasses.fields(instance)}
    overrides = {name if name in known else _OLD_NAMES.get(name, name): value for name, value in overrides.items()}
    for name in overrides:
        if name not in known:
            label = instance.registered_name or type(instance).__name__
            raise InputError(f"{label} has no hyper-parameter {name!r}. {nearest(name, known)}")
    refuse_outside(type(instance), overrides, called)
    made = dataclasses.replace(instance, **overrides)
    check_fields(made, called)
    return made
