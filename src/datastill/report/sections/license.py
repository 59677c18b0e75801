"""Whose terms hold for the images."""

from __future__ import annotations

from datastill.report.section import Reading, Section
from datastill.report.words import markdown as md


class License(Section):
    """Those of the real images; the report has them in its last line."""

    name = "license"
    order = 80

    def card(self, reading: Reading) -> str:
        """Two sentences."""
        return (
            "## License\n\nThe images derive from real ones: the license and the terms of use of "
            f"{md(reading.record.data.name)} apply to them too. Distillation is not anonymisation; an image "
            "may resemble a real one."
        )


SECTION = License()
