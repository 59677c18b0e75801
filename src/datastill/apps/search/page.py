"""The page of an architecture search."""

from __future__ import annotations

import io
from pathlib import Path

from datastill.apps.search.run import RESULT, Found
from datastill.apps.search.trainings import WHOLE
from datastill.report.application import Application, Chapter, Picture
from datastill.report.section import Paragraph, Table
from datastill.store.files import write_json

PAGE = "search.html"
MEANING = (
    "Rank correlations of accuracies after training on a proxy with those after training on the whole set: over all "
    "networks, and over the best ones alone, which is what a search is for. Over all, hopeless networks that every set "
    "tells from the others make correlations high. Its choice: the network that the proxy ranks first, trained on the "
    "whole set. Early stopping trains on the whole set for as many steps as on a proxy."
)


def write_search(folder: Path, found: Found) -> None:
    """Write `search.json` and `search.html`."""
    config = found.config
    write_json(folder / RESULT, found.to_dict())
    within = f", of at most {config['heaviest']:g} million multiply-accumulates," if config["heaviest"] else ""
    whole = f"{config['images']:,} images in place of the whole set" if config["images"] else "the whole set"
    lead = (
        f"{len(found.networks)} networks of the grid '{config['kind']}'{within} on {config['data']}; {config['ipc']} "
        f"images of each class for {config['passes']} passes, {whole} for {config['whole_passes']}."
    )
    picture = Picture("Every network on a proxy and on the whole set", drawn(found), "image/svg+xml")
    chapters = [Chapter("Rankings", [Table(list(found.HEADS), found.rows()), Paragraph(MEANING)], [picture])]
    title = f"Does a distilled {config['data']} rank networks?"
    Application("architecture search", title, lead, found.verdict, chapters).write(folder / PAGE)


def drawn(found: Found) -> bytes:
    """A panel for every proxy, SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(found.proxies), 2.8), layout="constrained")
    panels = figure.subplots(1, len(found.proxies), sharey=True, squeeze=False)[0]
    whole = [100 * v for v in found.accuracies(WHOLE)]
    for axes, proxy in zip(panels, found.proxies, strict=True):
        axes.scatter([100 * v for v in found.accuracies(proxy)], whole, s=12)
        axes.set_title(f"{proxy}: {found.agreement(proxy).spearman:.2f}", fontsize=9)
        axes.set_xlabel("on it, %")
    panels[0].set_ylabel("on the whole set, %")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
