"""The page of a stream of classes."""

from __future__ import annotations

import io
from pathlib import Path

from datastill.apps.continual.run import RESULT, Streamed
from datastill.report.application import Application, Chapter, Picture
from datastill.report.section import Paragraph, Table
from datastill.store.files import write_json

PAGE = "continual.html"
MEANING = (
    "Accuracy in percent over the test images of all classes seen so far, of fresh networks that are trained on the "
    "memory alone. It falls as classes arrive, since there are more of them to tell apart; what matters is the "
    "distance between methods at the same step."
)


def write_stream(folder: Path, found: Streamed) -> None:
    """Write `continual.json` and `continual.html`."""
    config = found.config
    write_json(folder / RESULT, found.to_dict())
    lead = (
        f"{config['data']} in {config['steps']} steps, {config['ipc']} images of each class remembered, "
        f"{config['orders']} order(s) of classes, {config['networks']} networks under {config['protocol']}."
    )
    chapters = [Chapter("Accuracy", [Table(found.heads, found.rows()), Paragraph(MEANING)],
                        [Picture("Accuracy as classes arrive", drawn(found), "image/svg+xml")])]  # fmt: skip
    title = f"Classes of {config['data']} that arrive in steps"
    Application("continual learning", title, lead, found.verdict, chapters).write(folder / PAGE)


def drawn(found: Streamed) -> bytes:
    """Curves of all methods, SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    count = [int(head.split()[0]) for head in found.heads[1:-1]]
    for method in found.config["methods"]:
        axes.plot(count, [100 * mean for mean in found.means(method)], marker="o", label=method)
    axes.set_xlabel("classes seen")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
