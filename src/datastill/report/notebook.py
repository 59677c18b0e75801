"""Sets and results as notebooks show them: HTML that stands for itself, and matplotlib figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any, cast

from markupsafe import Markup

from datastill.core.errors import InputError, nearest
from datastill.data.real import RealSet
from datastill.data.survey import samples
from datastill.evaluation.scores import Arm, Evaluation
from datastill.report import words
from datastill.report.charts import loss_curve, spans
from datastill.report.pictures import grid, png, preview
from datastill.report.plotting import plotting
from datastill.report.progress import CELL, ipython
from datastill.report.section import data_uri
from datastill.store.artifact import DistilledSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

#: Images of each class of a real set.
_SHOWN = 8


@singledispatch
def as_html(shown: Any) -> str:
    """A distilled set, a real set or an evaluation as HTML: a picture and a table, without scripts or links.

    Notebooks call it for the last value of a cell.

    Raises:
        TypeError: it is none of these.
    """
    raise TypeError(f"{type(shown).__name__} has no HTML.")


@as_html.register(DistilledSet)
def _(shown: DistilledSet) -> str:
    record = shown.record
    facts = [("method", record.method), ("images", words.images(shown)), ("labels", shown.label_kind)]
    facts += [(kind.option, kind.text(one) or kind.told(one)[1]) for kind, one in record.changes]
    if record.network is not None:
        facts.append(("network", words.describe_network(record.network.plain())))
    if record.cost.known and "seconds" in record.cost.model_fields_set:
        facts.append(("time", words.duration(record.cost.seconds)))
    facts += [("note", note) for note in record.notes]
    return _block(shown.name, preview(shown), facts)


@as_html.register(RealSet)
def _(shown: RealSet) -> str:
    counts = [int(n) for n in shown.counts]
    spread = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    test = 0 if shown.test is None else len(shown.test)
    facts = [
        ("train images", f"{len(shown):,}, {spread} of each of {shown.classes} classes"),
        ("test images", f"{test:,}"),
        ("size", " × ".join(str(n) for n in shown.shape)),
        *(("note", note) for note in shown.notes),
    ]
    return _block(shown.name, _contact_sheet(shown), facts)


@as_html.register(Evaluation)
def _(shown: Evaluation) -> str:
    rows = [(name, words.with_interval(arm.mean, arm.interval) + " %") for name, arm in _arms(shown)]
    if shown.random is not None:
        gain = f"{words.signed(shown.difference)} ± {words.percent(shown.difference_interval)} points"
        rows.append(("distilled − Random", gain))
    rows += [("note", note) for note in shown.notes]
    return _block(f"{shown.measure.capitalize()}, {shown.conditions}", None, rows)


def plot(shown: Any, kind: str = "") -> Figure:
    """A distilled set, a real set or an evaluation as a matplotlib figure.

    Args:
        shown: which.
        kind: of a distilled set "images"; of a real set "images", or "classes": how many there are of each; of an
            evaluation "accuracies", or "curves": the training loss of its networks. "" takes the first.

    Raises:
        TypeError: it is none of these.
        InputError: an unknown kind, or curves that were not recorded.
    """
    kinds = _kinds(shown)
    if kind and kind not in kinds:
        raise InputError(f"{type(shown).__name__} has no plot {kind!r}. {nearest(kind, kinds)}")
    return kinds[kind or next(iter(kinds))](shown)


@singledispatch
def _kinds(shown: Any) -> dict[str, Callable[[Any], Figure]]:
    """Ways to plot it, by name, the usual one first."""
    raise TypeError(f"{type(shown).__name__} has no plot.")


@_kinds.register(DistilledSet)
def _(shown: DistilledSet) -> dict[str, Callable[[Any], Figure]]:
    return {"images": lambda made: _pictured(preview(made))}


@_kinds.register(RealSet)
def _(shown: RealSet) -> dict[str, Callable[[Any], Figure]]:
    return {"images": lambda real: _pictured(_contact_sheet(real)), "classes": _class_counts}


@_kinds.register(Evaluation)
def _(shown: Evaluation) -> dict[str, Callable[[Any], Figure]]:
    return {"accuracies": _accuracies, "curves": _curves}


def _class_counts(real: RealSet) -> Figure:
    figure = new_figure(6.0, 0.6 + 0.25 * real.classes)
    axes = figure.add_subplot()
    axes.barh(range(real.classes), real.counts.numpy())
    axes.set_yticks(range(real.classes), real.class_names)
    axes.invert_yaxis()
    axes.set_xlabel(f"training images of {real.name}")
    return figure


def _accuracies(found: Evaluation) -> Figure:
    arms = _arms(found)
    return dots([(name, 100 * arm.accuracies.flatten().numpy()) for name, arm in arms], f"{found.measure} (%)")


def _curves(found: Evaluation) -> Figure:
    figure = new_figure(6.0, 3.0)
    axes = figure.add_subplot()
    arms = [(name, arm) for name, arm in _arms(found) if arm.losses]
    if not arms:
        raise InputError("No training losses were recorded with these accuracies.")
    for name, arm in arms:
        curve = loss_curve(arm.losses, name)
        axes.plot(curve.x.numpy(), curve.y.numpy(), label=name)
    axes.set_yscale("log" if all(spans(arm.losses) for _, arm in arms) else "linear")
    axes.set_xlabel("pass over the set")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)
    return figure


def dots(rows: Sequence[tuple[str, Any]], label: str) -> Figure:
    """One row for each name, from the top: its values as dots, their mean as a line."""
    figure = new_figure(6.0, 0.9 + 0.4 * len(rows))
    axes = figure.add_subplot()
    for k, (_, values) in enumerate(rows):
        axes.plot(values, [k] * len(values), "o", alpha=0.6)
        axes.plot([values.mean()] * 2, [k - 0.3, k + 0.3], "-", color="black")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(label)
    return figure


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], told: str) -> str:
    """A table of texts as HTML, with what it means above it."""
    cell = f'<{{0}} style="{CELL};white-space:nowrap">{{{{}}}}</{{0}}>'
    lines = [
        Markup("<tr>{}</tr>").format(Markup("").join(Markup(cell.format(kind)).format(text) for text in row))
        for kind, row in [("th", heads), *(("td", row) for row in rows)]
    ]
    return str(
        Markup('<div>{}<div style="overflow-x:auto"><table>{}</table></div></div>').format(told, Markup("").join(lines))
    )


def _arms(evaluation: Evaluation) -> list[tuple[str, Arm]]:
    named = [("distilled", evaluation.distilled), ("Random", evaluation.random), ("whole set", evaluation.ceiling)]
    return [(name, arm) for name, arm in named if arm is not None]


def _contact_sheet(real: RealSet) -> Image.Image:
    index = samples(real, _SHOWN)
    return grid(real.pixels(index), real.labels[index], real.class_names, title=real.name, columns=_SHOWN, rows=20)


def _pictured(picture: Image.Image) -> Figure:
    figure = new_figure(picture.width / 100, picture.height / 100)
    axes = figure.add_subplot()
    axes.imshow(picture)
    axes.set_axis_off()
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, so many inches large, that notebooks draw as it is."""
    kind = plotting().figure.Figure
    if (shell := ipython()) is not None:
        _let_draw(shell, kind)
    return cast("Figure", kind(figsize=(width, max(1.0, height)), layout="constrained"))


def _let_draw(shell: Any, kind: type) -> None:
    """A notebook draws figures once pyplot has made one; ours are made without it."""
    try:
        shell.display_formatter.formatters["image/png"].lookup_by_type(kind)
    except KeyError:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})


def _block(title: str, picture: Image.Image | None, rows: Sequence[tuple[str, str]]) -> str:
    shown = Markup("<strong>{}</strong>").format(title)
    if picture is not None:  # which has the title in it
        shown = Markup('<img alt="{}" src="{}">').format(title, data_uri(png(picture)))
    line = Markup(f'<tr><th style="{CELL};white-space:nowrap">{{}}</th><td style="{CELL}">{{}}</td></tr>')
    cells = Markup("").join(line.format(*row) for row in rows)
    return str(Markup("<div>{}<br><table>{}</table></div>").format(shown, cells))
