"""The page of a federated run: rounds, what travels, what a client sends, what it cost in privacy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from datastill.apps.federated.clients import Work, read_payload
from datastill.apps.federated.result import Federation, epsilon_text
from datastill.core.errors import InputError
from datastill.report import charts
from datastill.report.application import Application, Chapter, Picture
from datastill.report.pictures import grid, png
from datastill.report.section import Items, Paragraph, Table
from datastill.report.words import percent, plural

#: Clients whose images are shown.
SHOWN = 3


def write_page(folder: Path, made: Federation, work: Work) -> None:
    """Write `report.html` beside the rounds."""
    real = work.real
    up, down = made.rounds[-1].up_bytes, made.rounds[-1].down_bytes
    rounds = plural(len(made.rounds), "round")
    verdict = (
        f"{percent(made.accuracy)} % test accuracy after {rounds}; {made.megabytes[-1]:.2f} MB were sent. "
        + privacy_sentence(made)
    )
    chapters = [
        Chapter("Rounds", [_table(made), *_dropped(made)], _curves(made)),
        Chapter("What a client sends", [Paragraph(_sent(made, up, down))], _images(folder, made, work)),
        Chapter("Privacy", [Paragraph(privacy_sentence(made)), *_releases(made)]),
        Chapter("Clients", [Table(["client", "images", *real.class_names], _clients(work))]),
    ]
    lead = (
        f"{plural(len(made.sizes), 'client')} of {real.name}, partition {made.config['partition']}, "
        f"seed {made.config['seed']}."
    )
    Application("federated run", f"{made.strategy} on {real.name}", lead, verdict, chapters).write(
        folder / "report.html"
    )


def privacy_sentence(made: Federation) -> str:
    """What bounds the influence of one image on all that was sent, in words that promise nothing else."""
    if not made.privacy:
        return (
            "Nothing bounds what the sent numbers tell of a single image: they were made from real images without a "
            "privacy mechanism."
        )
    last = made.privacy[-1]
    if last["epsilon"] is None:
        return "Contributions were clipped and got no noise, so nothing is bounded: epsilon is infinite."
    return (
        f"What a client sent over all rounds is ({epsilon_text(last['epsilon'])}, {last['delta']:g})-differentially "
        f"private for one image more or less, by the {last['by']}. A large epsilon bounds little."
    )


def _table(made: Federation) -> Table:
    lines = [line.strip("| ").split(" | ") for line in made.table().strip().split("\n")]
    return Table(lines[0], lines[2:])


def _dropped(made: Federation) -> Sequence[Items]:
    texts = [
        f"round {one.round + 1}, client {k}: {why}" for one in made.rounds for k, why in list(one.dropped.items())[:5]
    ]
    return [Items(texts)] if texts else []


def _releases(made: Federation) -> Sequence[Table]:
    if not made.privacy:
        return []
    rows = [[str(r["steps"]), f"{r['sigma']:g}", f"{r['rate']:g}"] for r in made.privacy[-1]["releases"]]
    return [Table(["releases", "noise multiplier sigma", "sampling rate"], rows)]


def _curves(made: Federation) -> list[Picture]:
    accuracy = torch.tensor([one.accuracy for one in made.rounds]).double()
    rounds = torch.tensor([one.round + 1 for one in made.rounds]).double()
    panels = [
        charts.Panel([charts.Curve(made.strategy, x, accuracy)], label, "test accuracy", percent=True)
        for x, label in ((rounds, "round"), (torch.tensor(made.megabytes).double(), "MB sent so far"))
    ]
    return [Picture("Accuracy by round and by megabyte", charts.draw(panels), "image/svg+xml")]


def _sent(made: Federation, up: int, down: int) -> str:
    return (
        f"In the last round {plural(len(made.rounds[-1].clients), 'client')} sent {up / 1e6:.2f} MB and were sent "
        f"{down / 1e6:.2f} MB."
    )


def _images(folder: Path, made: Federation, work: Work) -> list[Picture]:
    """Synthetic images of the last round, of a few clients, where clients send images."""
    real, last, found = work.real, made.rounds[-1], []
    for k in list(last.clients)[:SHOWN]:
        try:
            payload = read_payload(folder / "rounds" / f"{last.round:04d}" / f"client-{k:04d}.safetensors")
        except InputError:
            continue
        if "images" in payload and "labels" in payload:
            pixels = real.space.decode(payload["images"])
            picture = grid(pixels, payload["labels"], real.class_names, columns=10)
            found.append(Picture(f"Client {k}, round {last.round + 1}", png(picture)))
    return found


def _clients(work: Work) -> list[list[str]]:
    rows = []
    for k, index in enumerate(work.held):
        counts = torch.bincount(work.real.labels[index], minlength=work.real.classes).tolist()
        rows.append([str(k), str(len(index)), *map(str, counts)])
    return rows
