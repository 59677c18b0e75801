"""Sections in Markdown."""

from __future__ import annotations

import re

from datastill.report.section import Code, Items, Paragraph, Part, Shown
from datastill.report.words import markdown as md


def markdown(shown: Shown) -> str:
    """A section as Markdown."""
    return "\n\n".join([f"## {md(shown.title)}", *map(_part, shown.parts)])


def _part(part: Part) -> str:
    if isinstance(part, Paragraph):
        return md(part.text)
    if isinstance(part, Items):
        return "\n".join(f"- {md(text)}" for text in part.texts)
    if isinstance(part, Code):
        return fence(part.language, part.text)
    rule = ["---", *["---:"] * (len(part.heads) - 1)]
    rows = [map(md, part.heads), rule, *(map(md, row) for row in part.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def fence(language: str, text: str) -> str:
    """A block of code."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    ticks = "`" * (longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"
