"""What an audit found, where `datastill privacy` was run on the set."""

from __future__ import annotations

from datastill.core.errors import InputError
from datastill.report.section import Paragraph, Reading, Section, Shown
from datastill.store.files import read_json
from datastill.store.schema import Record, Text


class Audited(Record):
    """`privacy.json`, as far as the report reads it."""

    verdict: Text


class Privacy(Section):
    """The verdict of the audit that lies beside the set."""

    name = "privacy"
    order = 47

    def shown(self, reading: Reading) -> Shown | None:
        """The verdict; None where no audit was made."""
        folder = reading.first.folder
        if folder is None or not (folder / "privacy.json").is_file():
            return None
        try:
            verdict = read_json(folder / "privacy.json", Audited)["verdict"]
        except InputError:
            return None
        return Shown("What the set tells of its images", [Paragraph(verdict), Paragraph("More in privacy.html.")])


SECTION = Privacy()
