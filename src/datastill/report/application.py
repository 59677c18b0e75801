"""The page of an application: a verdict, and sections of parts and pictures, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datastill._version import __version__
from datastill.report.html import render
from datastill.report.section import Part, data_uri
from datastill.store.files import write_text


@dataclass(frozen=True)
class Picture:
    """An image file with its title."""

    title: str
    content: bytes
    kind: str = "image/png"


@dataclass(frozen=True)
class Chapter:
    """One section of the page."""

    title: str
    parts: Sequence[Part]
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Application:
    """What a page says.

    Attributes:
        kind: of application, beside the brand.
        verdict: what the numbers say, in a sentence or two.
    """

    kind: str
    title: str
    lead: str
    verdict: str
    chapters: Sequence[Chapter]

    def write(self, path: Path) -> None:
        """Write the page as one file that needs nothing beside it."""
        from markupsafe import Markup

        shown = [
            {
                "title": one.title,
                "body": Markup(render({"parts": one.parts}, "section.html.j2")),
                "pictures": [{"title": p.title, "source": data_uri(p.content, p.kind)} for p in one.pictures],
            }
            for one in self.chapters
        ]
        record = {"kind": self.kind, "title": self.title, "lead": self.lead, "verdict": self.verdict}
        write_text(path, render({**record, "sections": shown, "version": __version__}, "application.html.j2"))
