"""Accuracy against the time that a distilled set costs: every method at several budgets, baselines as lines.

Each budget is a comparison of its own in a folder of its own, so all of it can be stopped at any time and goes on. What
a method prepares (experts, a teacher) is part of its time.
"""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.cost import pick_device
from datastill.core.errors import InputError
from datastill.core.recipes import find_recipe
from datastill.core.registry import Chooses, get_method, methods
from datastill.data.places import places_of
from datastill.distillation.budget import seconds_of
from datastill.experiments.comparison import Progress, compare, silent
from datastill.experiments.grid import refusals
from datastill.experiments.result import Comparison, Row
from datastill.experiments.settings import make_settings
from datastill.experiments.sources import RealSets, real_sets
from datastill.launch import cluster
from datastill.report.markdown import part as markdown
from datastill.report.section import Items, Paragraph, Part, Table
from datastill.report.words import duration, plural
from datastill.store.files import atomic_path, write_json, write_text
from datastill.store.folders import held
from datastill.store.outputs import FRONTIER, refuse_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "datastill-frontier"
#: What stands as a line: it takes no time that a budget could change.
LINES = ("random", "mosaic", "herding")
#: Methods up to which the legend has room in the figure.
_FEW = 10
_TICKS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 18_000, 36_000, 86_400)


@dataclass(frozen=True)
class Point:
    """A method at one budget. Accuracies are fractions."""

    method: str
    budget: float
    seconds: float  #: of one set, with all that was prepared for it
    mean: float
    interval: float  #: half-width of its 95 % interval; NaN where there is one network


@dataclass(frozen=True)
class Frontier:
    """What `frontier` returns.

    Attributes:
        data, ipc, protocol: what was compared.
        lines: mean accuracy of the baselines.
        points: of every other method, by budget.
        published: accuracy and source by method, where a recipe has one for this data and size.
        left_out: methods of "all" that cannot do what was asked for, and why.
    """

    data: str
    ipc: int
    protocol: str
    lines: Mapping[str, float]
    points: Sequence[Point]
    published: Mapping[str, tuple[float, str]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> list[Point]:
        """The points that no cheaper one reaches, by time."""
        found: list[Point] = []
        for point in sorted(self.points, key=lambda p: (p.seconds, -p.mean)):
            if not found or point.mean > found[-1].mean:
                found.append(point)
        return found

    def parts(self) -> list[Part]:
        """A row for each method, a column for each budget, accuracies in percent; where published ones come from."""
        budgets = sorted({p.budget for p in self.points})
        head = ["method", *(duration(b) for b in budgets), "published"]
        told = Paragraph(
            f"{self.data}, {plural(self.ipc, 'image')} per class, test accuracy in percent under {self.protocol}; in "
            "brackets what a set took, with all that is prepared for it; ± where there are several networks."
        )
        rows = [[name, *[f"{100 * mean:.1f}"] * len(budgets), "–"] for name, mean in self.lines.items()]
        for name in dict.fromkeys(p.method for p in self.points):
            by_budget = {p.budget: p for p in self.points if p.method == name}
            cells = [_cell(by_budget.get(b)) for b in budgets]
            known = self.published.get(name)
            rows.append([name, *cells, f"{100 * known[0]:.1f}" if known else "–"])
        sources = [f"{name}: {source}" for name, (_, source) in self.published.items()]
        lead = Paragraph("Published numbers, under the protocols of their papers:")
        found: list[Part] = [told, Table(head, rows), *((lead, Items(sources)) if sources else ())]
        left = [f"{name}: {reason}" for name, reason in self.left_out.items()]
        return [*found, Paragraph("Left out:"), Items(left)] if left else found

    def table(self) -> str:
        """The same in Markdown."""
        return "\n\n".join(map(markdown, self.parts())) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, NaN as None."""
        points = [
            {**vars(p), "interval": None if math.isnan(p.interval) else round(p.interval, 6)} for p in self.points
        ]
        return {
            "format": FORMAT,
            "version": 1,
            "data": self.data,
            "ipc": self.ipc,
            "protocol": self.protocol,
            "lines": dict(self.lines),
            "points": points,
            "published": {name: {"accuracy": a, "source": s} for name, (a, s) in self.published.items()},
            "left_out": dict(self.left_out),
        }

    def figure(self, format: str = "svg") -> bytes:
        """Accuracy over seconds on a logarithmic axis: a curve for each method, a line for each baseline.

        Args:
            format: "svg" or "png".
        """
        out = io.BytesIO()
        self.plot().savefig(out, format=format, dpi=150, metadata={"Date": None} if format == "svg" else {})
        return out.getvalue()

    def plot(self) -> Figure:
        """The same as a matplotlib figure."""
        from datastill.report.notebook import new_figure

        figure = new_figure(8.5 if len({p.method for p in self.points}) <= _FEW else 11.0, 5.2)
        self._draw(figure.subplots())
        return figure

    def _draw(self, axes: Axes) -> None:
        best = self.best
        axes.step([p.seconds for p in best], [100 * p.mean for p in best], color="0.85", linewidth=6, where="post")
        names = list(dict.fromkeys(p.method for p in self.points))
        for k, name in enumerate(names):
            mine = sorted((p for p in self.points if p.method == name), key=lambda p: p.seconds)
            color, marker = f"C{k % 10}", "osD^vP*X"[k // 10 % 8]
            axes.plot([p.seconds for p in mine], [100 * p.mean for p in mine], marker + "-", color=color, label=name)
            if name in self.published:
                axes.plot(1.0, 100 * self.published[name][0], "<", color=color, transform=axes.get_yaxis_transform(),
                          clip_on=False)  # fmt: skip
        for k, (name, mean) in enumerate(self.lines.items()):
            axes.axhline(100 * mean, color="0.4", linestyle=("-", "--", ":")[k % 3], linewidth=1, label=name)
        axes.set_xscale("log")
        ends = [p.seconds for p in self.points]
        ticks = [t for t in _TICKS if 0.5 * min(ends) <= t <= 2 * max(ends)]
        axes.set_xticks(ticks, [duration(t) for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("seconds for one set, with all that is prepared for it")
        axes.set_ylabel(f"test accuracy in %, {self.protocol}")
        marks = "; ◂ published, under its paper's protocol" if self.published else ""
        axes.set_title(f"{self.data}, {self.ipc} image{'s' * (self.ipc > 1)} per class{marks}", fontsize=10)
        axes.grid(color="0.92")
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if len(names) > _FEW else {}
        axes.legend(fontsize=8, ncols=2, **beside)
        room = (axes.get_xlim()[1] / axes.get_xlim()[0]) ** 0.05
        for point, after in zip(best, [p.seconds for p in best[1:]] + [math.inf], strict=True):
            if after > room * point.seconds:  # else two names would lie on each other
                at = (point.seconds, 100 * point.mean)
                axes.annotate(point.method, at, (0, 7), textcoords="offset points", ha="center", fontsize=8)

    def save(self, folder: Path) -> None:
        """Write frontier.json, frontier.md, frontier.svg and frontier.png."""
        write_json(folder / "frontier.json", self.to_dict())
        write_text(folder / "frontier.md", self.table())
        for format in ("svg", "png"):
            with atomic_path(folder / f"frontier.{format}") as temporary:
                temporary.write_bytes(self.figure(format))


def frontier(
    names: Sequence[str],
    real: RealSets | Any,
    *,
    ipc: int,
    budgets: Sequence[float | str],
    out: str | Path,
    progress: Progress = silent,
    **options: Any,
) -> Frontier:
    """Compare methods at several budgets under one protocol.

    Args:
        names: methods; "all" stands for all that these real sets, network and protocol suit.
        real: one real set, as `compare` takes it.
        ipc: images per class.
        budgets: seconds, or times such as "5m", ascending or not.
        out: a folder for the comparisons, one for each budget, and the results; what is finished in it is kept.
        progress: told after every unit.
        options: further arguments of `compare`, such as seeds, networks and protocol.

    Raises:
        InputError: something given cannot be used.
        CellsFailed: some cells failed; the others are kept.
    """
    times = sorted({time for budget in budgets if (time := seconds_of(budget)) is not None})
    if not times or any(not 0 < b < math.inf for b in times):
        raise InputError("Give at least one budget, a time above 0 seconds: --budgets 30s 2m 10m.")
    everything, reals = list(names) == ["all"], real_sets(real)
    wanted = every_method(reals.get(reals.labels()[0]).kind) if everything else names
    timed = [name for name in wanted if name not in LINES]
    if not timed:
        raise InputError("Name a method that takes time: random, mosaic and herding stand beside it in any case.")
    folder = Path(out)
    refuse_out(folder, places_of(real), FRONTIER)
    pick_device(options.get("device", "auto"))
    if "all" in timed:
        raise InputError("all stands for every method; name it alone, or name methods (--methods).")
    settings = dict(options.pop("settings", None) or {})
    own = {key: settings.pop(key) for key in list(settings) if key in LINES}
    left = _refused(timed, reals, ipc, folder, {**options, "settings": settings})
    if left and not everything:
        name, reason = next(iter(left.items()))
        raise InputError(f"{name} cannot be compared here: {reason}")
    timed = [name for name in timed if name not in left]
    settings = {key: values for key, values in settings.items() if key not in left}
    with held(folder), cluster(options.get("workers", 1)):
        first = compare(
            list(LINES), real, ipc=ipc, out=folder / "baselines", progress=progress, settings=own, **options
        )
        done = {
            budget: compare(
                timed,
                real,
                ipc=ipc,
                budget=budget,
                out=folder / f"{budget:g}s",
                progress=progress,
                settings=settings,
                **options,
            )
            for budget in times
        }
        found = replace(gathered(first, done), left_out=left)
        found.save(folder)
    return found


def every_method(kind: str = "classes") -> list[str]:
    """All methods for real sets of a kind, but those that stand for another."""
    made = {name: info.cls() for name, info in methods().items()}
    return [name for name, one in made.items() if kind in one.takes and not isinstance(one, Chooses)]


def _refused(names: Sequence[str], reals: RealSets, ipc: int, out: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Which methods `compare` would refuse with these options, and why."""
    usual = {k: p.default for k, p in inspect.signature(compare).parameters.items() if p.default is not p.empty}
    told = {**usual, **options, "budget": None}
    taken = inspect.signature(make_settings).parameters
    settings = make_settings(list(names), reals, **{**{k: v for k, v in told.items() if k in taken}, "ipc": ipc})
    return refusals(settings, reals, out)


def gathered(baselines: Comparison, budgets: Mapping[float, Comparison]) -> Frontier:
    """One frontier out of comparisons."""
    rows = list(baselines.rows)
    data, ipc = rows[0].data, rows[0].ipc
    points = [
        Point(row.method, budget, row.distillation_seconds, row.mean, row.interval)
        for budget, comparison in budgets.items()
        for row in comparison.rows
        if row.method not in LINES
    ]
    return Frontier(data, ipc, baselines.protocol, _lines(rows), points, _published(points, data, ipc))


def _lines(rows: Sequence[Row]) -> dict[str, float]:
    return {row.method: row.mean for row in rows if row.method in LINES}


def _published(points: Sequence[Point], data: str, ipc: int) -> dict[str, tuple[float, str]]:
    found = {}
    for name in dict.fromkeys(p.method for p in points):
        recipe = find_recipe(get_method(name).name, data, ipc)
        if recipe is not None and recipe.accuracy is not None:
            found[name] = (recipe.accuracy, recipe.source)
    return found


def _cell(point: Point | None) -> str:
    if point is None:
        return "–"
    spread = "" if math.isnan(point.interval) else f" ± {100 * point.interval:.1f}"
    return f"{100 * point.mean:.1f}{spread} ({duration(point.seconds)})"
