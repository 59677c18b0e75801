"""What the set was made from."""

from __future__ import annotations

from datastill.report import words
from datastill.report.section import Reading, Section
from datastill.report.words import code, count
from datastill.report.words import markdown as md


class Source(Section):
    """The real set, its classes and its Space; the report has them among the facts."""

    name = "data"
    order = 70

    def card(self, reading: Reading) -> str:
        """Sentences."""
        record, data = reading.record, reading.record.data
        names = [md(name) for name in record.classes.names]
        classes = ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
        lines = [
            f"Real set: {md(data.name)}"
            + (f" (`{code(data.source)}`)" if data.source else "")
            + f", {count(data.images)} training and {count(data.test_images)} test images of "
            f"{md('×'.join(str(n) for n in record.shape))} (channels × height × width), "
            f"fingerprint `{code(data.fingerprint)}`.",
            f"Classes, in the order of the labels: {classes}.",
            words.describe_space(record.space),
        ]
        lines += [f"- {md(note)}" for note in data.notes]
        return "## Data\n\n" + "\n\n".join(lines)


SECTION = Source()
