"""What weights against a bias are, and which real images they took for odd, while weights are in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datastill.core.errors import InputError
from datastill.debias.overview import crowd_and_odd
from datastill.debias.reweight import Weighed, kept_set
from datastill.report.pictures import comparison, png
from datastill.report.section import Page, Reading, Section, data_uri
from datastill.report.words import percent

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Classes in the picture.
CLASSES = 20


class Weights(Section):
    """Effective sample sizes, and the lightest and the heaviest images."""

    name = "weights"
    title = "Weights against a bias"
    order = 35

    def page(self, reading: Reading) -> Page | None:
        """Numbers, and a picture where weights are at hand; None where the set has none, or was given them."""
        record = reading.record.change("debias")
        told = None if record is None else Weighed.model_validate(record)
        if told is None or told.asked is None:
            return None
        picture, why = _picture(reading, told.asked)
        values = {
            "asked": told.asked,
            "effective": _span(told.effective_samples, 1),
            "images": _span(reading.record.data.counts or [], 0),
            "mass": None if told.conflict_mass is None else percent(told.conflict_mass),
            "random": reading.evaluation is not None and reading.evaluation.random is not None,
            "picture": picture,
            "why": why,
        }
        return Page(self.title, "sections/weights.html.j2", values)


def _span(values: Sequence[float], digits: int) -> str:
    """ "6.2 to 8.0"; "" of none."""
    texts = [f"{value:,.{digits}f}" for value in (min(values, default=0), max(values, default=0))]
    return " to ".join(dict.fromkeys(texts)) if values else ""


def _picture(reading: Reading, asked: str) -> tuple[str, str]:
    """The picture, or why there is none; "" and "" where weights would have to be made again."""
    if reading.real is None or reading.real.with_weights(None).fingerprint != reading.record.data.fingerprint:
        return "", ""
    try:
        weighted = kept_set(reading.real, asked, reading.record.seed, reading.record.cost.device)
    except InputError as error:  # damaged, or in words of another version
        return "", f"The weights by {asked} cannot be shown: {error}"
    return ("" if weighted is None else data_uri(weights_picture(weighted, 8))), ""


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
