"""The pairs of a distilled set: each image beside the real caption that is nearest to its sentence's vector."""

from __future__ import annotations

from dataclasses import dataclass

from datastill.report.pictures import thumbnail
from datastill.report.section import Page, Reading, Section, data_uri

#: Pairs that are shown at all, and at once.
_MOST, _OPEN = 300, 60


@dataclass(frozen=True)
class Pair:
    """An image and a caption."""

    src: str
    caption: str


class Pairs(Section):
    """Small images with captions."""

    name, order = "pairs", 29

    def page(self, reading: Reading) -> Page | None:
        """All pairs, the first ones open."""
        record = reading.record
        if reading.first.label_kind != "pairs":
            return None
        pixels, captions = reading.first.pixels.float(), record.captions
        shown = [
            Pair(data_uri(thumbnail(image)), caption)
            for image, caption in zip(pixels[:_MOST], [*captions, *[""] * len(pixels)], strict=False)
        ]
        values = {"open": shown[:_OPEN], "folded": shown[_OPEN:], "learned": record.cost.steps > 0}
        return Page("The pairs", "sections/pairs.html.j2", values)


SECTION = Pairs()
