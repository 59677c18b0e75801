"""The manifest of a distilled set, as a typed record. Keys that are not here are kept: later versions add some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from datastill.core.errors import InputError
from datastill.store.schema import (
    Count,
    Name,
    Number,
    Positive,
    Record,
    Seconds,
    Sha256,
    Side,
    Text,
    Whole,
)

FORMAT = "datastill-distilled-set"
VERSION = 1

Means = Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(max_length=4_096)]
Deviations = Annotated[list[Annotated[float, Field(gt=1e-12, le=1e6)]], Field(max_length=4_096)]
Names = Annotated[list[Name], Field(min_length=1, max_length=1_000_000)]


class SpaceRecord(Record):
    """How stored numbers relate to pixels."""

    kind: Literal["raw", "normalised", "zca"]
    mean: Means
    std: Deviations
    source: Text

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> SpaceRecord:
        if len(self.mean) != len(self.std) or (self.kind == "normalised" and not self.mean):
            raise ValueError("a mean and a std for each channel are expected")
        return self


def refuse_unfit_space(
    where: object, space: Mapping[str, Any], tensors: Mapping[str, Sequence[int]], image: Sequence[int]
) -> None:
    """Refuse a Space that does not fit images (c, h, w).

    Args:
        where: which file says so.
        space: its record.
        tensors: the shapes of its tensors: for whitening three of the size of an image, else none.

    Raises:
        InputError: it does not fit.
    """
    size = math.prod(image)
    wanted = {"centre": (1, *image), "whiten": (size, size), "unwhiten": (size, size)} if space["kind"] == "zca" else {}
    found = {name: tuple(sizes) for name, sizes in tensors.items()}
    if found != wanted or len(space["mean"]) not in (0, image[0]):
        raise InputError(f"The Space of {where} does not fit images of {list(image)}; it was changed or damaged.")


class Classes(Record):
    """Classes by position, and the source's own labels."""

    names: Names
    label_ids: list[Whole | Text] | None = None


class DecoderRecord(Record):
    """The decoder and its options, which the decoder itself checks."""

    decoder: Name


class Data(Record):
    """The real set that it was made from."""

    name: Text
    source: Text
    options: dict[str, Any]
    images: Count
    test_images: Count = 0
    counts: list[Count] = Field(default_factory=list)
    class_names: list[Text] = Field(default_factory=list)
    fingerprint: Text
    weighted: bool = False
    attribute: dict[str, Any] | None = None
    notes: list[Text]


class NetworkRecord(Record):
    """The architecture that it was distilled on."""

    name: Text
    options: dict[str, Any] = Field(default_factory=dict)
    spec: Text | None = None


class Student(Record):
    """How it wants to be trained on."""

    protocol: Name
    lr: Annotated[float, Field(gt=0, le=1e6)] | None = None
    labels: Text | dict[str, Any] | None = None
    patches: Annotated[int, Field(ge=1, le=65_536)] = 1


class Versions(Record):
    """Of datastill and of what it rests on."""

    datastill: Text
    torch: Text


class Cost(Record):
    """What making it took."""

    steps: Count
    seconds: Seconds
    hardware: Text
    device: Text
    versions: Versions
    known: bool = True
    blocks: Count = 0
    prepare_seconds: Seconds = 0.0
    precision: Text = "float32"
    compile: bool = False
    skipped_steps: Count = 0
    peak_memory_bytes: Count = 0


class Chosen(Record):
    """A way against a bias, with its options and what it found."""

    how: Name
    asked: Text | None = None
    warnings: list[Text] = Field(default_factory=list)


class Recipe(Record):
    """Which recipe was asked for and which published one applied."""

    asked: Text
    published: Text | None


class Imported(Record):
    """Where the set of others came from."""

    experiment: Count
    outside_pixel_range: Number
    stored_space: SpaceRecord


class Manifest(Record):
    """What `manifest.json` says; `docs/reference/artifact.md` has every key."""

    format: Literal["datastill-distilled-set"]
    version: Literal[1]
    method: Name
    ipc: Positive
    seed: Whole
    classes: Classes
    labels: Literal["hard", "soft"]
    space: SpaceRecord
    decoder: DecoderRecord
    data: Data
    cost: Cost
    files: dict[Name, Sha256]
    family: Text
    hyper: dict[str, Any]
    recipe: Recipe
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    network: NetworkRecord
    student: Student
    notes: list[Text]
    companions: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    debias: Chosen | None = None
    surrogates: Chosen | None = None
    imported: Imported | None = None
