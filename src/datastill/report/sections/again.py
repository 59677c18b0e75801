"""How to make it again, and to score it."""

from __future__ import annotations

from datastill.report import reproduce
from datastill.report.markdown import fence
from datastill.report.section import Page, Reading, Section


class Again(Section):
    """Calls and commands."""

    name = "again"
    order = 60

    def page(self, reading: Reading) -> Page:
        """With the command that made the page."""
        record, evaluation = reading.record, reading.evaluation
        values = {
            "command": reading.command,
            "sets": reading.sets,
            "python": reproduce.python_call(record),
            "again": reproduce.command(record),
            "evaluate": None if evaluation is None else reproduce.evaluate_call(evaluation.to_dict()),
        }
        return Page("Make it again", "sections/again.html.j2", values)

    def card(self, reading: Reading) -> str:
        """The score of an artifact only: an export is read otherwise."""
        record, evaluation = reading.record, reading.evaluation
        parts = ["## Make it again", fence("python", reproduce.python_call(record))]
        command = reproduce.command(record)
        if command:
            parts += ["or", fence("sh", command)]
        if evaluation is not None and reading.layout in ("artifact", "hub"):
            parts += ["Its score:", fence("python", reproduce.evaluate_call(evaluation.to_dict(), reading.place))]
        return "\n\n".join(parts)


SECTION = Again()
