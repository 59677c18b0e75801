"""The page of a comparison: one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill._version import __version__
from datastill.core.errors import InputError
from datastill.core.overrides import overrides
from datastill.experiments.figures import charts, image_groups, limits
from datastill.experiments.settings import BASELINE
from datastill.experiments.tables import caption, cells, headlines, score_cells, scores_in
from datastill.report import words
from datastill.report.html import render
from datastill.report.reproduce import literal
from datastill.store.files import write_text
from datastill.store.sizes import bytes_in_words
from datastill.training.optimizers import usual, values_by
from datastill.training.soft_schedule import optimizer_of

if TYPE_CHECKING:
    from datastill.experiments.result import Comparison, Row

#: Colors of methods on the page; Random has one of its own, number 0.
COLORS = 8
#: Classes in a heat table at most: those on which methods differ most.
HEAT_CLASSES = 30


def write_comparison_report(path: str | Path, comparison: Comparison) -> Path:
    """Write the page; images are taken from the comparison's run folders where they are there.

    Raises:
        InputError: the comparison has no finished cell, or the file cannot be written.
    """
    if not comparison.rows:
        raise InputError("There is nothing to report yet: no cell of the comparison is finished.")
    path = Path(path)
    target = path / "report.html" if path.is_dir() else path
    write_text(target, render(page(comparison), "compare.html.j2"))
    return target


def page(comparison: Comparison) -> dict[str, Any]:
    """Everything that the template names."""
    rows = comparison.rows
    methods = list(dict.fromkeys(row.method for row in rows))
    others = [name for name in methods if name != BASELINE]
    colors = {name: 0 if name == BASELINE else others.index(name) % COLORS + 1 for name in methods}
    data = list(dict.fromkeys(row.data for row in rows))
    groups = comparison.groups()
    return {
        "title": _title(methods, data),
        "lead": _lead(comparison, methods),
        "headlines": headlines(comparison),
        "tiles": _tiles(comparison),
        "groups": [_table(name, ipc, group, colors, len(data) > 1) for (name, ipc), group in groups.items()],
        "scores": [
            (f"{name}, ipc {ipc:,}", [(r.method, colors[r.method], score_cells(r)) for r in group])
            for (name, ipc), group in (groups.items() if scores_in(comparison) else ())
        ],
        "caption": caption(comparison),
        "charts": [c for one in data for c in charts([r for r in rows if r.data == one], colors, one)],
        "images": image_groups(comparison, colors),
        "heat": [_heat(name, ipc, group, colors) for (name, ipc), group in groups.items()],
        "networks": [(r, seed, _percents(r.cells[seed]["accuracies"])) for r in rows for seed in r.seeds],
        "costs": [_cost(row, colors) for row in rows],
        "machine": _machine(rows),
        "settings": _settings(comparison),
        "hyper": [(name, colors[name], _hyper(comparison, name)) for name in methods],
        "notes": _notes(comparison),
        "missing": list(comparison.missing),
        "command": comparison.command,
        "python": _python(comparison),
        "terms": ", ".join(data),
        "version": __version__,
    }


def _title(methods: Sequence[str], data: Sequence[str]) -> str:
    others = [name for name in methods if name != BASELINE]
    what = others[0] if len(others) == 1 else words.plural(len(others), "method")
    return f"{what} and Random on {_and(data)}" if others else f"Random on {_and(data)}"


def _lead(comparison: Comparison, methods: Sequence[str]) -> str:
    config = comparison.config
    sizes = _and([f"{ipc:,}" for ipc in config["ipc"]])
    count = sum(len(row.cells) for row in comparison.rows)
    return (
        f"{_and([name for name in methods if name != BASELINE] or methods)}, at {sizes} "
        f"image{'s' * (config['ipc'] != [1])} per class, from {words.plural(len(config['seeds']), 'seed')} each: "
        f"{words.plural(count, 'set')}, every one scored by {words.plural(config['networks'], 'fresh network')} "
        f"under protocol {comparison.protocol}."
    )


def _tiles(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """(kind, number, unit, meaning) of the few numbers to see first."""
    tiles = []
    groups = comparison.groups()
    for (data, ipc), rows in list(groups.items())[:4]:
        best = max(rows, key=lambda row: row.mean)
        other = next((row for row in rows if row.method == BASELINE), None)
        where = f"{data}, ipc {ipc:,}" if len(comparison.config["data"]) > 1 else f"ipc {ipc:,}"
        beside = f"; Random {words.percent(other.mean)}" if other is not None and other is not best else ""
        tiles.append(("main", words.percent(best.mean), "%", f"{best.method} at {where}{beside}"))
    number, _, unit = words.duration(comparison.seconds).partition(" ")
    tiles.append(("plain", number, unit, f"on one thread, to distill and score {_everything(comparison)}"))
    return tiles


def _everything(comparison: Comparison) -> str:
    """With what a network on the whole real set took of it, where scores asked for one."""
    whole = sum(comparison.whole_set_seconds.values())
    return "everything" + (f", {words.duration(whole)} of it on the whole real set" if whole else "")


@dataclass(frozen=True)
class TableRow:
    """A line of the table, its error bar in percent of the axis."""

    method: str
    color: int
    accuracy: str
    difference: str
    made: str
    scored: str
    networks: str
    sets: str
    at: float
    start: float
    length: float
    best: bool


def _table(data: str, ipc: int, rows: Sequence[Row], colors: Mapping[str, int], several: bool) -> dict[str, Any]:
    low, high = limits(rows)

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    best = max(row.mean for row in rows)
    lines = []
    for row in rows:
        name, accuracy, difference, made, scored = cells(row)
        half = 0.0 if math.isnan(row.interval) else row.interval
        start = place(row.mean - half)
        lines.append(
            TableRow(
                name, colors[name], accuracy, difference, made, scored, words.percent(row.arm.std_networks),
                words.percent(row.arm.std_sets), place(row.mean), start, round(place(row.mean + half) - start, 2),
                row.mean == best,
            )
        )  # fmt: skip
    random = next((place(row.mean) for row in rows if row.method == BASELINE), None)
    title = f"{data}, ipc {ipc:,}" if several else f"{words.plural(ipc, 'image')} per class"
    return {"title": title, "rows": lines, "low": f"{100 * low:.0f}", "high": f"{100 * high:.0f}", "random": random}


def _heat(data: str, ipc: int, rows: Sequence[Row], colors: Mapping[str, int]) -> dict[str, Any]:
    """Accuracy of each class, by method."""
    names = next(iter(rows[0].cells.values()))["real"]["class_names"]
    values = [row.arm.per_class.tolist() for row in rows]
    spread = [max(column) - min(column) if not any(map(math.isnan, column)) else -1.0 for column in zip(*values)]
    kept = sorted(sorted(range(len(names)), key=lambda c: -spread[c])[:HEAT_CLASSES])
    seen = [mine[c] for mine in values for c in kept if not math.isnan(mine[c])] or [0.0]
    low, high = min(seen), max(seen)
    lines = [
        (row.method, colors[row.method], [_heat_cell(mine[c], low, high) for c in kept])
        for row, mine in zip(rows, values)
    ]
    cut = f"The {len(kept)} of {len(names)} classes on which the methods differ most." if len(kept) < len(names) else ""
    return {"title": f"{data}, ipc {ipc:,}", "names": [names[c] for c in kept], "rows": lines, "cut": cut}


def _heat_cell(value: float, low: float, high: float) -> tuple[str, int]:
    """(percent, strength of the color in percent): the table's lowest is faint, its highest strong."""
    if math.isnan(value):
        return "–", 0
    return f"{100 * value:.0f}", round(6 + 84 * (value - low) / (high - low or 1.0))


def _cost(row: Row, colors: Mapping[str, int]) -> dict[str, Any]:
    return {
        "data": row.data,
        "ipc": row.ipc,
        "method": row.method,
        "color": colors[row.method],
        "steps": f"{round(row.cost('steps')):,}",
        "made": words.duration(row.cost("distillation_seconds")),
        "prepared": words.duration(row.cost("prepare_seconds")) if row.cost("prepare_seconds") else "–",
        "scored": words.duration(row.evaluation_seconds),
        "cpu": words.duration(row.cost("cpu_seconds")),
        "memory": bytes_in_words(max(cell["cost"]["peak_memory_bytes"] for cell in row.cells.values())),
    }


def _machine(rows: Sequence[Row]) -> list[tuple[str, str]]:
    every = [cell for row in rows for cell in row.cells.values()]
    hardware = dict.fromkeys(cell["hardware"] for cell in every)
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in cell["versions"].items()) for cell in every)
    return [("Hardware", "; ".join(hardware)), ("Versions", "; ".join(versions))]


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    config = comparison.config
    first = {row.data: next(iter(row.cells.values())) for row in comparison.rows}
    used = values_by(config.get("optimizer", "auto"), config["protocol"])
    protocol = ", ".join(f"{k} {words.value(v)}" for k, v in used.items() if k not in ("name", "summary"))
    described = {words.describe_network(cell["network"]) for cell in first.values()}
    soft = str(config["protocol"].get("soft", ""))
    found = [
        ("Images per class", ", ".join(map(str, config["ipc"]))),
        ("Seeds", ", ".join(map(str, config["seeds"]))),
        ("Networks per set", str(config["networks"])),
        ("Network", "; ".join(sorted(described))),
        ("Protocol", f"{config['protocol']['name']}: {protocol}"),
        ("Labels and optimizer", f"{'teacher' if soft else 'hard'} labels, {_optimizer(config, soft)}"),
        ("Recipe", str(config["recipe"])),
        ("Budget", "–" if config["budget"] is None else f"{words.duration(config['budget'])} per set"),
        ("Device", str(config["device"])),
    ]
    for option, text in config.get("changes", {}).items():
        found.append((overrides()[option].label.capitalize(), f"{text}, but for {BASELINE}"))
    for name, cell in first.items():
        real = cell["real"]
        shape = "×".join(map(str, real["shape"]))
        about = f"{real['images']:,} training and {real['test_images']:,} test images of {shape}"
        found.append((f"Data: {name}", f"{about}, {real['classes']} classes, fingerprint {real['fingerprint']}"))
    return found


def _optimizer(config: Mapping[str, Any], soft: str) -> str:
    return usual(config["optimizer"]).called if config.get("optimizer") else optimizer_of(soft)


def _hyper(comparison: Comparison, method: str) -> list[tuple[str, str, str]]:
    """(name, value, meaning); where values differ between data sets and sizes, each with where it holds."""
    mine = [row for row in comparison.rows if row.method == method]
    found: dict[str, tuple[str, dict[str, list[str]]]] = {}
    for row in mine:
        cell = next(iter(row.cells.values()))
        for name, text, meaning in words.hyper_rows(method, cell["hyper"]):
            where = f"{row.data}, ipc {row.ipc}" if len(comparison.config["data"]) > 1 else f"ipc {row.ipc}"
            found.setdefault(name, (meaning, {}))[1].setdefault(text, []).append(where)
    return [
        (
            name,
            next(iter(values)) if len(values) == 1 else "; ".join(f"{v} ({', '.join(w)})" for v, w in values.items()),
            meaning,
        )
        for name, (meaning, values) in found.items()
    ]


def _notes(comparison: Comparison) -> list[str]:
    notes = []
    for row in comparison.rows:
        cell = next(iter(row.cells.values()))
        notes += [f"{row.method}, {row.data}, ipc {row.ipc}: {note}." for note in cell["notes"]]
        notes += cell["real"]["notes"]
        skipped = sum(one["skipped_steps"] for one in row.cells.values())
        if skipped:
            notes.append(f"{row.method}, {row.data}, ipc {row.ipc}: {skipped} steps were not finite and left out.")
    return list(dict.fromkeys(notes))


def _python(comparison: Comparison) -> str:
    """The call that makes the comparison again."""
    config = comparison.config
    sources = [next(r for r in comparison.rows if r.data == name) for name in config["data"]]
    reals = [next(iter(row.cells.values()))["real"]["source"] for row in sources]
    asked: dict[str, Any] = {"ipc": config["ipc"], "seeds": config["seeds"], "network": config["network"]}
    asked |= {"protocol": comparison.protocol, "networks": config["networks"], "recipe": config["recipe"]}
    asked |= {"settings": config["settings"] or None, "budget": config["budget"]}
    asked |= {name: config.get(name) for name in ("optimizer", "scores")}
    given = [f"    {name}={literal(item)}," for name, item in asked.items() if item is not None]
    first = [f"    {literal(config['methods'])},", f"    {literal(reals if len(reals) > 1 else reals[0])},"]
    lines = ["result = compare(", *first, *given, ")", "print(result.table())"]
    return "\n".join(["from datastill import compare", "", *lines])


def _percents(values: Sequence[float]) -> list[str]:
    return [words.percent(value) for value in values]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
