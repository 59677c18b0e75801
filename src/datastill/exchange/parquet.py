"""Images of a distilled set in 8 bits, and the parquet file that Hugging Face `datasets` reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.store.artifact import DistilledSet

#: What `datasets.load_dataset` finds without being told, and the card names.
PLACE = "data/train-00000-of-00001.parquet"


def in_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], those beyond clamped, as uint8."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def png_of(stored: Tensor) -> bytes:
    """An image (c, h, w) uint8 of one or three channels."""
    from PIL import Image

    array = stored[0].numpy() if len(stored) == 1 else stored.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def refuse_no_pictures(images: Tensor) -> None:
    """Refuse images that are neither gray nor color.

    Raises:
        InputError: they are.
    """
    if images.shape[1] not in (1, 3):
        raise InputError(
            f"Images of {images.shape[1]} channels cannot become image files (1 or 3 can); export them as 'tensors'."
        )


def write_parquet(folder: Path, distilled: DistilledSet, stored: Tensor, labels: Tensor) -> None:
    """Write images and labels; soft labels, or vectors of sentences, have a column of their own.

    Args:
        folder: of the export or repository.
        distilled: the set, for names and the kind of its labels.
        stored: its rendered images, uint8 (n, c, h, w).
        labels: of these, class positions (n,) or rows (n, k).
    """
    import datasets
    import pyarrow
    from pyarrow import parquet

    kind = distilled.label_kind
    features: dict[str, Any] = {"image": datasets.Image()}
    columns: dict[str, Any] = {
        "image": [{"bytes": png_of(image), "path": f"{i:05d}.png"} for i, image in enumerate(stored)]
    }
    if kind == "pairs":
        told = distilled.record.captions
        features["caption"] = datasets.Value("string")
        columns["caption"] = told if len(told) == len(stored) else [""] * len(stored)
    else:
        features["label"] = datasets.ClassLabel(names=list(distilled.class_names))
        columns["label"] = (labels if labels.ndim == 1 else labels.argmax(1)).tolist()
    if labels.ndim != 1:
        features[kind] = datasets.List(datasets.Value("float32"), length=labels.shape[1])
        columns[kind] = labels.float().tolist()
    schema = datasets.Features(features).arrow_schema
    (folder / PLACE).parent.mkdir()
    table = pyarrow.Table.from_pydict(columns, schema=schema)
    parquet.write_table(table, folder / PLACE, row_group_size=1000)
