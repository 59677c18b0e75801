"""Options of `datastill distill` and `estimate` out of a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError, nearest
from datastill.core.registry import get_method

OPTION = "--config"
METHOD = "method"
#: A file of options is short.
_LARGEST = 1 << 20


@dataclass(frozen=True)
class Config:
    """What a file says.

    Attributes:
        path: of the file; None where there is none.
        values: options by name, with underscores.
    """

    path: Path | None
    values: Mapping[str, Any]

    @property
    def method(self) -> str | None:
        """The method that it names."""
        return self.values.get(METHOD)

    def arguments(self, given: Sequence[str], known: Collection[str], method: str) -> tuple[list[str], list[str]]:
        """Its options as arguments, and those that stand on the command line, which win and are left out.

        Args:
            given: arguments on the command line.
            known: names of the options that there are.
            method: that is run, which the command line may name beside the file's.

        Raises:
            InputError: it has an option that there is not.
        """
        names = [arg.partition("=")[0].removeprefix("--") for arg in given if arg.startswith("--")]
        taken = {name.replace("-", "_") for name in (*names, *(n.removeprefix("no-") for n in names))}
        made: list[str] = []
        other = self._other_method(method)
        lost: list[str] = [METHOD] if other else []
        for name, value in self.values.items():
            if name == METHOD:
                continue
            if name not in known or name == "config":
                why = f"{self.path} has an option {name!r} that there is not. {nearest(name, known)}"
                if other:
                    why = (
                        f"{self.path} is of the method {other}, and its option {name!r} is none of {method}, which the "
                        f"command line names; leave {method} out, or remove what {method} does not have from the file."
                    )
                raise InputError(why)
            if name in taken:
                lost.append(name)
            else:
                made += _arguments(f"{self.path}: {name}", name.replace("_", "-"), value)
        return made, lost

    def _other_method(self, method: str) -> str:
        """The file's method, where it is another; else ""."""
        if self.method is None:
            return ""
        named = get_method(self.method).name
        return named if named != method else ""


def config_of(args: Sequence[str]) -> Config:
    """The file that `--config` names among arguments; without one, a config that says nothing.

    Raises:
        InputError: there is no such file, or it is no TOML of options.
    """
    path = _path_of(args)
    if path is None:
        return Config(None, {})
    from datastill.store.opening import read_small, sound_path

    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file of options in it, such as {path / 'run.toml'} (--config).")
    stored = read_small(sound_path(path), _LARGEST)
    try:
        found = tomllib.loads(stored.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # of text, of TOML, of a number of thousands of digits
        raise InputError(
            f"{path} is no TOML ({str(error)[:120]}); write an option on every line: steps = 300"
        ) from error
    values = {name.replace("-", "_"): value for name, value in found.items()}
    if len(values) < len(found):
        raise InputError(f"{path} has an option twice, once with - and once with _.")
    if not isinstance(values.get(METHOD, ""), str):
        raise InputError(f"{path}: method is the name of a method, in quotes.")
    return Config(path, values)


def _path_of(args: Sequence[str]) -> Path | None:
    found = None
    for position, arg in enumerate(args):
        if arg == OPTION and position + 1 < len(args):
            found = args[position + 1]
        elif arg.startswith(f"{OPTION}="):
            found = arg.partition("=")[2]
    return None if found is None else Path(found)


def _arguments(where: str, option: str, value: Any) -> list[str]:
    """As on the command line."""
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    several = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in several):
        raise InputError(f"{where} is no value of an option; write a number, a text in quotes, true, false or a list.")
    if any(isinstance(one, str) and one.startswith("--") for one in several):
        raise InputError(f"{where} holds what looks like another option; write each option on a line of its own.")
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={value}"]
