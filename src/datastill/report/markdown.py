"""Sections in Markdown."""

from __future__ import annotations

import re

from datastill.report.section import Code, Items, Paragraph, Part, Shown
from datastill.report.words import markdown as md


def markdown(shown: Shown) -> str:
    """A section as Markdown."""
    return "\n\n".join([f"## {md(shown.title)}", *map(part, shown.parts)])


def part(one: Part) -> str:
    """A part of a section as Markdown."""
    if isinstance(one, Paragraph):
        return md(one.text)
    if isinstance(one, Items):
        return "\n".join(f"- {md(text)}" for text in one.texts)
    if isinstance(one, Code):
        return fence(one.language, one.text)
    rule = ["---", *["---:"] * (len(one.heads) - 1)]
    rows = [map(md, one.heads), rule, *(map(md, row) for row in one.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def fence(language: str, text: str) -> str:
    """A block of code."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    ticks = "`" * (longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"
