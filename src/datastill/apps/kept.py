"""Runs of applications that go on where they were stopped, and what their methods are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.errors import InputError
from datastill.core.registry import get_method
from datastill.distillation.job import prepare_job
from datastill.experiments.settings import settings_of
from datastill.models import resolve_network
from datastill.models.code import code_of
from datastill.store.files import digest, read_json
from datastill.store.schema import Record, Text

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.resolve import NetworkSpec


class Cells(Record):
    """What was asked, and what was found by name."""

    config: dict[str, Any]
    cells: dict[Text, Any]


def kept_cells(path: Path | None, config: Mapping[str, Any], kind: type[Record]) -> dict[str, Any]:
    """The cells in a file of results; none where there is no file.

    Args:
        path: of the file; None is none.
        config: what is asked for now.
        kind: of every cell.

    Raises:
        InputError: the file is damaged, or of other settings; the first that differs is named.
    """
    if path is None or not path.is_file():
        return {}
    kept = read_json(path, Cells)
    other = next((name for name, value in config.items() if kept["config"].get(name) != value), None)
    if other == "code":
        raise InputError(
            f"{path.parent} holds a run with other code in {', '.join(config['code'])}; give another folder (--out)."
        )
    if other is not None:
        raise InputError(
            f"{path.parent} holds a run with {other} = {kept['config'].get(other)!r}, not {config[other]!r}; give "
            "another folder (--out)."
        )
    return {name: kind.of(cell, f"{path} ({name})").plain() for name, cell in kept["cells"].items()}


def plain(method: str) -> str:
    """A method's name as the name of a file; a path gets a hash, since a/b.py and a-b.py are two."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in method)
    return name if name == method else f"{name[-60:]}-{digest([method])}"


def code_in(methods: Sequence[str], network: NetworkSpec, real: RealSet) -> dict[str, Any]:
    """For a config: hashes of the user's files in which methods and the network stand; nothing where there are none."""
    things: list[Any] = [get_method(name).cls for name in methods]
    if network is not None:
        things.append(resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:]))
    found = code_of(*things)
    return {"code": dict(found)} if found else {}


def arguments_of(
    methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None, budget: float | None
) -> dict[str, dict[str, Any]]:
    """What `distill` is given for each method: its own settings, and the budget where these do not decide the steps.

    Args:
        methods: by name or file.
        settings: hyper-parameters by method, {"dm": {"steps": 60}}.
        budget: seconds of each method that takes steps; None leaves its recipe alone.

    Raises:
        InputError: an unknown method or one that is named twice, settings for one that is not there, or values that
            it does not take.
    """
    names = [get_method(name).name for name in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"The method {twice!r} is named twice; name each once.")
    named = dict(zip(names, methods, strict=True))
    checked = settings_of(settings or {}, named)
    found = {}
    for known, name in named.items():
        own = dict(checked.get(known, {}))
        takes = budget is not None and "steps" in get_method(name).cls.__dataclass_fields__ and "steps" not in own
        found[name] = own | ({"budget": budget} if takes else {})
    return found


def refuse_labels(
    given: Mapping[str, Mapping[str, Any]], real: RealSet, ipc: int, network: NetworkSpec, teachers: bool, why: str
) -> None:
    """Refuse methods whose sets have labels that are no classes, before anything is distilled.

    Args:
        given: what `distill` is given, by method.
        real, ipc, network: as for `distill`.
        teachers: whether sets that come with a teacher may be trained on as their classes alone.
        why: what becomes of such labels, in the sentence.

    Raises:
        InputError: there is one; or what `distill` refuses before it begins.
    """
    for name, own in given.items():
        hyper = {key: value for key, value in own.items() if key != "budget"}
        plan = prepare_job(name, real, ipc=ipc, network=network, **hyper).own_plan
        if plan.labels.kind != "classes" or (plan.companions is not None and not teachers):
            whose = "a teacher's labels" if plan.labels.kind == "classes" else "labels that are no classes"
            raise InputError(f"Sets of {name} are trained on with {whose}, {why}; take another method, such as dm.")
