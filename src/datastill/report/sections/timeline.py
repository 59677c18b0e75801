"""The images on their way from start to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from datastill.report.pictures import framed, frames, png, timeline_of
from datastill.report.section import Page, Reading, Section, data_uri
from datastill.report.snapshots import Snapshots, Timeline


class Moments(Section):
    """A slider over the moments of a run."""

    name = "timeline"
    order = 20

    def page(self, reading: Reading) -> Page | None:
        """Where more than one moment was kept."""
        found = reel(reading.snapshots, reading.first.class_names)
        return None if found is None else Page("From start to end", "sections/timeline.html.j2", {"reel": found})


@dataclass(frozen=True)
class Reel:
    """The timeline as one picture per moment."""

    pictures: list[str]
    captions: list[str]
    width: int  #: on the page
    classes: str
    total: int


def reel(snapshots: Timeline | Snapshots | None, names: Sequence[str]) -> Reel | None:
    """The pictures of the slider; None where there are fewer than two moments."""
    if snapshots is None or (isinstance(snapshots, Snapshots) and snapshots.timeline is None):
        return None
    timeline = timeline_of(snapshots)
    if len(timeline) < 2:
        return None
    drawn = frames(timeline, background=(0, 0, 0, 0), gap=1, smallest=1)
    side = min(timeline.pixels.shape[-2:])
    factor = max(1, min(math.ceil(96 / side), 720 // drawn[0].width))
    shown = [names[int(c)] for c in timeline.labels[framed(timeline)].unique()]
    captions = [f"step {step:,}" if step else "start" for step in timeline.steps]
    classes = ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")
    pictures = [data_uri(png(picture)) for picture in drawn]
    return Reel(pictures, captions, drawn[0].width * factor, classes, timeline.total)


SECTION = Moments()
