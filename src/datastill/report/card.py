"""The README.md of an artifact or export: a Hugging Face dataset card."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datastill.report import words
from datastill.report.markdown import markdown
from datastill.report.pictures import png, preview
from datastill.report.section import HERE, Reading, Section, Shown, sections
from datastill.report.words import markdown as md
from datastill.store.artifact import DistilledSet
from datastill.store.files import write_bytes, write_text

if TYPE_CHECKING:
    from datastill.evaluation.scores import Evaluation

CARD, PICTURE = "README.md", "preview.png"
#: Those of data that the Hub knows by a name of its own; another is told in words.
LICENSES = (
    "afl-3.0 apache-2.0 bsd bsd-2-clause bsd-3-clause c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 "
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 "
    "etalab-2.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl-3.0 mit odbl odc-by pddl unlicense unknown"
)


def card(
    distilled: DistilledSet,
    evaluation: Evaluation | None = None,
    *,
    layout: str = "artifact",
    notes: Sequence[str] = (),
    place: str = "",
    license: str = "",
) -> str:
    """The card of a distilled set, in Markdown with the front matter of the Hugging Face Hub.

    Args:
        evaluation: its numbers, with Random beside them.
        layout: what the folder holds: "artifact", or the format of an export.
        notes: sentences to add, one each.
        place: what to load it by, "hub:NAME/SET"; "" is the folder that the card lies in.
        license: of the real images, as their owner names it; "" is unknown.
    """
    reading = Reading([distilled], evaluation, layout=layout, notes=notes, place=place or HERE, license=license)
    record = distilled.record
    count, data = len(distilled.targets), record.data
    parts = [
        _front(distilled, layout, count, license),
        f"# {md(record.method)} on {md(data.name)}: {_size(distilled)}",
        f"![The images, class by class]({PICTURE})" if layout in ("artifact", "hub") else "",
        _stands_for(distilled),
        *(_markdown(one, reading) for one in sections()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _size(distilled: DistilledSet) -> str:
    if distilled.label_kind == "pairs":
        return f"{distilled.stored:,} pairs of an image and a sentence"
    return f"{words.images(distilled)}, {distilled.ipc} per class"


def _stands_for(distilled: DistilledSet) -> str:
    record, count = distilled.record, len(distilled.targets)
    data, kind = record.data, words.kind_of_images(distilled.record)
    real = f"in place of the {words.count(data.images)} training"
    if distilled.label_kind == "pairs":
        return (
            f"A distilled data set: {count:,} {kind} images, each with the vector of a sentence (`labels`), to train "
            f"two towers on {real} pairs of {md(data.name)}."
        )
    return (
        f"A distilled data set: {count:,} {kind} images to train networks on {real} images of {md(data.name)} in "
        f"{len(record.classes.names)} classes."
    )


def _markdown(section: Section, reading: Reading) -> str:
    shown = section.card(reading)
    return markdown(shown) if isinstance(shown, Shown) else shown or ""


def write_card_and_preview(
    distilled: DistilledSet, folder: str | Path, evaluation: Evaluation | None = None
) -> tuple[Path, Path]:
    """Write README.md and preview.png into an artifact's folder, each whole or not at all."""
    folder = Path(folder)
    text, picture = card(distilled, evaluation), png(preview(distilled))
    write_bytes(folder / PICTURE, picture)
    if not (folder / CARD).is_file() or "datastill" in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
        write_text(folder / CARD, text)
    else:
        warnings.warn(f"{folder / CARD} is not a card of datastill and stays as it is.", stacklevel=3)
    return folder / CARD, folder / PICTURE


def _front(distilled: DistilledSet, layout: str, count: int, license: str) -> str:
    record = distilled.record
    size = next(
        (name for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K")) if count < limit),
        "100K<n<1M",
    )
    tags = ["datastill", "dataset-distillation", "dataset-condensation", _tag(record.method)]
    tags += ["synthetic"] if words.kind_of_images(record) == "synthetic" else ["coreset"]
    lines = [
        "---",
        f"pretty_name: {json.dumps(distilled.name)}",
        *_license(layout, license),
        "task_categories:",
        "- image-to-text" if distilled.label_kind == "pairs" else "- image-classification",
        "tags:",
        *(f"- {tag}" for tag in dict.fromkeys(tags) if tag),
        "size_categories:",
        f"- {size}",
    ]
    if layout in ("parquet", "hub"):
        lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train"]
        lines += ["    path: data/train-*"]
    elif layout not in ("imagefolder", "captioned"):
        lines.append("viewer: false")
    return "\n".join([*lines, "---"])


def _license(layout: str, license: str) -> list[str]:
    """The license of the images is that of the real ones."""
    if license.lower() in LICENSES.split():
        return [f"license: {license.lower()}"]
    if license:
        return ["license: other", f"license_name: {_tag(license)[:90] or 'as-the-source-data'}"]
    return ["license: unknown"] if layout == "hub" else ["license: other", "license_name: as-the-source-data"]


def _tag(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")
