"""Real images that weights against a bias took for the crowd and for the odd ones, while weights are in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.debias.overview import crowd_and_odd
from datastill.debias.reweight import kept_set
from datastill.report.pictures import comparison, png
from datastill.report.section import Page, Paragraph, Reading, Section, Shown, data_uri

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Classes in the picture.
CLASSES = 20


class Weights(Section):
    """The lightest and the heaviest images."""

    name = "weights"
    title = "Weights against a bias"
    order = 35

    def page(self, reading: Reading) -> Shown | Page | None:
        """A picture, or why there is none; None where the set has no weights, or they have to be made again."""
        record = reading.record.change("debias")
        if record is None or "asked" not in record or reading.real is None:
            return None
        try:
            weighted = kept_set(reading.real, record["asked"], reading.record.seed, reading.record.cost.device)
        except InputError as error:  # damaged, or in words of another version
            return Shown(self.title, [Paragraph(f"The weights by {record['asked']} cannot be shown: {error}")])
        if weighted is None:
            return None
        values = {"picture": data_uri(weights_picture(weighted, 8)), "asked": record["asked"]}
        return Page(self.title, "sections/weights.html.j2", values)


def weights_picture(real: RealSet, count: int) -> bytes:
    """The lightest images of each class on the left, the heaviest on the right, as PNG.

    Args:
        real: the weighted set.
        count: of each class and side, at most.
    """
    shown = [index[real.labels[index] < CLASSES] for index in crowd_and_odd(real, count)]
    sides = [(real.pixels(index), real.labels[index], real.class_names) for index in shown]
    titles = ("the crowd: lightest images", "the odd ones: heaviest images")
    return png(comparison(sides[0], sides[1], titles, columns=count, rows=CLASSES))


SECTION = Weights()
