"""Pairs as a folder of PNGs with a captions file, as Hugging Face `datasets` and `load_pairs` read it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.data.captions import Captions
from datastill.data.text import text_encoder
from datastill.exchange.parquet import png_of
from datastill.store.artifact import DistilledSet

IMAGES, CAPTIONS = "images", "metadata.csv"


def refuse_no_captions(distilled: DistilledSet) -> None:
    """Refuse pairs without a caption for each image.

    Raises:
        InputError: some have none.
    """
    found, count = distilled.record.captions, len(distilled.targets)
    if len(found) != count or not all(found):
        raise InputError(
            f"{distilled.name} names no caption for each of its {count} images, which a folder with a captions file "
            "needs; export it as 'parquet' or 'tensors', which hold the vectors of its sentences."
        )


def as_captioned(distilled: DistilledSet) -> tuple[DistilledSet, bool]:
    """The set as somebody has it who reads captions, and whether the vectors of its sentences come back as they were.

    Each vector is that of the caption which is nearest to it. Where the text encoder is not at hand the vectors stay,
    and a note says so.
    """
    known, captions = distilled.record.data.captions, distilled.record.captions
    notes = [*distilled.record.notes]
    try:
        encoder = text_encoder(str(known.get("encoder", "")).replace(";", ","))
        if encoder.fingerprint != known.get("fingerprint"):
            raise InputError("It is another one of that name.")
    except InputError:
        notes.append("the text encoder is not at hand, so sentences count as the vectors that they were")
        return replace(distilled, manifest={**distilled.manifest, "notes": notes}), False
    vectors = Captions.of(captions, torch.arange(len(captions)), encoder, "").vectors
    same = torch.allclose(vectors, distilled.labels.cpu().float(), atol=1e-6)
    notes += [] if same else ["each sentence is the training caption nearest to its vector"]
    return replace(distilled, labels=vectors, manifest={**distilled.manifest, "notes": notes}), same


def write_captioned(folder: Path, distilled: DistilledSet, stored: Tensor, labels: Tensor) -> None:
    """Write images, and the captions file that names one for each.

    Args:
        folder: of the export.
        distilled: the set, whose manifest has the captions.
        stored: its images, uint8 (n, c, h, w).
        labels: not written: vectors of sentences have no place in such a folder.
    """
    (folder / IMAGES).mkdir()
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "caption"])
    for k, (image, caption) in enumerate(zip(stored, distilled.record.captions, strict=True)):
        name = f"{IMAGES}/{k:05d}.png"
        (folder / name).write_bytes(png_of(image))
        rows.writerow([name, caption])
    (folder / CAPTIONS).write_text(table.getvalue(), encoding="utf-8")
