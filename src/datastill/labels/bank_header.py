"""What `bank.json` says: whose labels they are, of which images, under which augmentation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from datastill._version import __version__
from datastill.augment.trace import TraceSpec
from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.labels.bank_labels import LabelCode
from datastill.labels.bank_layout import Layout
from datastill.store.files import digest
from datastill.store.manifest import SpaceRecord
from datastill.store.opening import stored_bytes
from datastill.store.schema import Fraction, Name, Number, Positive, Record, Sha256, Side, Whole

FORMAT, VERSION = "datastill-label-bank", 1

HEADER = "bank.json"

#: How a stored seed becomes numbers; a bank of another generator is refused.
RNG = "torch-cpu-mt19937"


class Images(Record):
    """The images that are labeled."""

    shape: Annotated[list[Positive], Field(min_length=4, max_length=4)]
    hash: Name


class Labels(Record):
    """How logits are stored, see `LabelCode`."""

    dtype: Name
    top_k: Positive | None = None
    temperature: Number | None = None


class LabelerRecord(Record):
    """How labels are made, see `Labeler.describe`."""

    mode: Name
    combine: Name


class Augmentation(Record):
    """How batches are augmented, see `TraceSpec`."""

    version: Positive
    crop: Name
    min_scale: Fraction
    max_scale: Fraction
    flip: bool
    mix: Name
    alpha: Number
    pad: Annotated[int, Field(ge=0, le=65_536)]
    shuffle: Side


class HeaderRecord(Record):
    """What `bank.json` says."""

    images: Images
    space: SpaceRecord | None = None
    teacher: dict[str, Any] = Field(default_factory=dict)
    labeler: LabelerRecord = Field(alias="labeller")
    classes: Positive
    epochs: Annotated[int, Field(ge=1, le=10_000_000)]
    batch: Positive
    seed: Whole
    augmentation: Augmentation
    encoding: Name
    labels: Labels
    files: dict[str, Sha256]


def make_header(
    images: Tensor,
    layout: Layout,
    labeler: Mapping[str, Any],
    seed: int,
    teacher: Mapping[str, Any] | None,
    space: Space | None,
) -> dict[str, Any]:
    """The header, but for the hashes of the arrays.

    Args:
        images: (n, c, h, w), those that are labeled.
        layout: of the arrays.
        labeler: how the labels are made, see `Labeler.describe`.
        seed: of order and augmentation.
        teacher: what the caller knows of the teachers.
        space: of the images, if told.

    Raises:
        InputError: `teacher` is not JSON.
    """
    try:
        json.dumps(dict(teacher or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"What is told of the teacher must be JSON ({error}); use numbers and text.") from error
    return {
        "format": FORMAT,
        "version": VERSION,
        "images": {"shape": list(images.shape), "hash": digest(images)},
        "space": None if space is None else {"id": space.id, **space.to_dict()},
        "teacher": dict(teacher or {}),
        "labeller": dict(labeler),
        "classes": layout.classes,
        "epochs": layout.epochs,
        "batch": layout.batch,
        "seed": seed,
        "augmentation": layout.trace.describe(),
        "encoding": layout.encoding,
        "rng": RNG,
        "labels": dataclasses.asdict(layout.code),
        "versions": {"datastill": __version__, "torch": torch.__version__},
    }


def read_layout(folder: Path, header: Any) -> Layout:
    """The layout that a header tells of.

    Raises:
        InputError: no header of a label bank, one of another version, or an incomplete one.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{folder} is no label bank.")
    if (header.get("version"), header.get("rng")) != (VERSION, RNG):
        raise InputError(
            f"The label bank {folder} is of version {header.get('version')} with {header.get('rng')}; "
            f"this datastill reads version {VERSION} with {RNG}."
        )
    HeaderRecord.of(header, folder / HEADER)
    try:
        count, _, height, width = (int(v) for v in header["images"]["shape"])
        spec, code = TraceSpec.from_description(header["augmentation"]), LabelCode(**header["labels"])
        classes, epochs, batch = (int(header[name]) for name in ("classes", "epochs", "batch"))
        _refuse_claims(folder, count, epochs)
        return Layout(count, (height, width), classes, epochs, batch, spec, header["encoding"], code)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"The header of the label bank {folder} is damaged ({error}); make it again.") from error


def _refuse_claims(folder: Path, count: int, epochs: int) -> None:
    """There is at least a byte of every image in every epoch; batches are not counted on a header's word."""
    index = folder / "index.npy"
    if index.exists() and stored_bytes(index) < count * epochs:
        raise InputError(
            f"The header of the label bank {folder} is damaged: it tells of {epochs:,} epochs of {count:,} images, and "
            f"{index.name} holds fewer; make the label bank again."
        )
    if not index.exists():
        raise InputError(f"{index} is missing; the label bank is incomplete and must be made again.")
