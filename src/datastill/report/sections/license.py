"""Whose terms hold for the images."""

from __future__ import annotations

from datastill.report.section import Reading, Section
from datastill.report.words import markdown as md


class License(Section):
    """Those of the real images; the report has them in its last line."""

    name = "license"
    order = 80

    def card(self, reading: Reading) -> str:
        """A few sentences."""
        data = md(reading.record.data.name)
        told = ""
        if reading.license:
            told = f" {data} is under: {md(reading.license)}, as whoever published this set says."
        elif reading.layout == "hub":
            told = f" Which license {data} is under is unknown: whoever published this set did not say."
        return (
            "## License\n\nThe images derive from real ones: the license and the terms of use of "
            f"{data} apply to them too.{told} Distillation is not anonymisation; an image may resemble a real one."
        )


SECTION = License()
