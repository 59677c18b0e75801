"""`datastill methods [NAME]`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from dataclasses import dataclass
from typing import Any

import tyro

from datastill.cli.options import parse
from datastill.core.ranges import brief, declared, told
from datastill.core.recipes import recipes
from datastill.core.registry import MethodInfo, field_docs, get_method, methods


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """Which method."""

    name: tyro.conf.Positional[str | None] = None  #: a method to show whole; none lists them all
    json: bool = False  #: print as JSON


def main(args: list[str]) -> int:
    """Parse and print."""
    options = parse(MethodsOptions, args, "methods", "List the methods, or show one whole.")
    if options.name is None:
        if options.json:
            print(json.dumps([_record(i) for i in methods().values()], indent=2))
        else:
            _list()
        return 0
    info = get_method(options.name)
    if options.json:
        print(json.dumps(_record(info), indent=2))
    else:
        _show(info)
    return 0


def _record(info: MethodInfo) -> dict[str, Any]:
    docs, kinds = field_docs(info.cls), declared(info.cls)
    return {
        "name": info.name,
        "summary": info.summary,
        "paper": info.paper,
        "family": info.family,
        "cost": info.cost,
        "hyper": {
            f.name: {"default": f.default, "range": told(kinds[f.name]), "meaning": docs.get(f.name, "")}
            for f in dataclasses.fields(info.cls)
        },
        "recipes": [dataclasses.asdict(r) for r in recipes(info.name)],
    }


def _list() -> None:
    """One method a paragraph: what it does, what it costs, where it comes from."""
    found = methods().values()
    width = max(len(i.name) for i in found) + 2
    for info in found:
        print(f"{info.name:<{width}}{info.summary}")
        print(f"{'':<{width}}cost: {info.cost}")
        print(f"{'':<{width}}paper: {info.paper}; family: {info.family}; recipes: {len(recipes(info.name))}\n")
    print("`datastill methods NAME` shows every hyper-parameter and the published settings.")


def _show(info: MethodInfo) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    module = inspect.getdoc(sys.modules[info.cls.__module__]) or info.summary
    console.print(module)
    docs, kinds = field_docs(info.cls), declared(info.cls)
    if dataclasses.fields(info.cls):
        table = Table(title="\nHyper-parameters", title_justify="left")
        for column in ("option", "default", "range", "meaning"):
            table.add_column(column, no_wrap=column == "option")
        for f in dataclasses.fields(info.cls):
            table.add_row(f"--{f.name.replace('_', '-')}", str(f.default), brief(kinds[f.name]), docs.get(f.name, ""))
        console.print(table)
    found = recipes(info.name)
    if found:
        table = Table(title="\nRecipes (--recipe paper takes the one that fits)", title_justify="left")
        for column in ("recipe", "values", "protocol", "published %", "source"):
            table.add_column(column, no_wrap=column in ("recipe", "published %"))
        for r in found:
            number = (
                "" if r.accuracy is None else f"{100 * r.accuracy:.1f}" + (f" ± {100 * r.std:.1f}" if r.std else "")
            )
            values = ", ".join(f"{k} {v}" for k, v in r.hyper.items())
            table.add_row(r.name, values, r.protocol, number, r.source)
        console.print(table)
