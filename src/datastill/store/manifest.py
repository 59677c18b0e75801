"""The manifest of a distilled set, as a typed record. Keys that are not here are kept: later versions add some.

A set in memory may say less than a file must: what has a default here may be left out, and `NEEDED` says what a file
has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from datastill.core.errors import InputError
from datastill.core.overrides import Override, overrides
from datastill.store.files import CHECKSUM, sealed
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

FORMAT: Literal["datastill-distilled-set"] = "datastill-distilled-set"
VERSION: Literal[1] = 1
MANIFEST = "manifest.json"

Means = Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(max_length=4_096)]
Deviations = Annotated[list[Annotated[float, Field(gt=1e-12, le=1e6)]], Field(max_length=4_096)]
Names = Annotated[list[Name], Field(min_length=1, max_length=1_000_000)]


class SpaceRecord(Record):
    """How stored numbers relate to pixels."""

    kind: Literal["raw", "normalised", "zca"]
    mean: Means
    std: Deviations
    source: Text = ""

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> SpaceRecord:
        if len(self.mean) != len(self.std) or (self.kind == "normalised" and not self.mean):
            raise ValueError("a mean and a std for each channel are expected")
        return self


def refuse_unfit_space(
    where: object, space: SpaceRecord, tensors: Mapping[str, Sequence[int]], image: Sequence[int]
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
    wanted = {"centre": (1, *image), "whiten": (size, size), "unwhiten": (size, size)} if space.kind == "zca" else {}
    found = {name: tuple(sizes) for name, sizes in tensors.items()}
    if found != wanted or len(space.mean) not in (0, image[0]):
        raise InputError(f"The Space of {where} does not fit images of {list(image)}; it was changed or damaged.")


class Classes(Record):
    """Classes by position, and the source's own labels."""

    names: Annotated[list[Text], Field(min_length=1, max_length=1_000_000)]
    label_ids: list[Whole | Text] | None = None


class DecoderRecord(Record):
    """The decoder and its options, which the decoder itself checks."""

    decoder: Name


class Data(Record):
    """The real set that it was made from."""

    name: Text
    source: Text = ""
    options: dict[str, Any] = Field(default_factory=dict)
    images: Count | None = None
    test_images: Count | None = None
    counts: list[Count] = Field(default_factory=list)
    class_names: list[Text] = Field(default_factory=list)
    fingerprint: Text = ""
    weighted: bool = False
    attribute: dict[str, Any] | None = None
    notes: list[Text] = Field(default_factory=list)
    captions: dict[str, Any] = Field(default_factory=dict)  #: of a set of pairs: its text encoder, and counts


class NetworkRecord(Record):
    """The architecture that it was distilled on."""

    name: Text
    options: dict[str, Any] = Field(default_factory=dict)
    spec: Text | None = None


class Student(Record):
    """How it wants to be trained on."""

    protocol: Name = "dc-v1"
    lr: Annotated[float, Field(le=1e6)] | None = None
    lr_text: Annotated[float, Field(le=1e6)] | None = None  #: of the text tower of two
    labels: Text | dict[str, Any] | None = None
    patches: Annotated[int, Field(ge=1, le=65_536)] = 1
    combine: Text = "single"

    @field_validator("lr", "lr_text", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise ValueError("a learning rate is a number, and must be above 0")
        return value


class Versions(Record):
    """Of datastill and of what it rests on."""

    datastill: Text = ""
    torch: Text = ""


class Cost(Record):
    """What making it took."""

    steps: Count = 0
    seconds: Seconds = 0.0
    hardware: Text = ""
    device: Text = ""
    versions: Versions = Field(default_factory=Versions)
    known: bool = True
    blocks: Count = 0
    prepare_seconds: Seconds = 0.0
    cpu_seconds: Seconds | None = None
    precision: Text = "float32"
    compile: bool = False
    skipped_steps: Count = 0
    peak_memory_bytes: Count = 0


class Recipe(Record):
    """Which recipe was asked for and which published one applied."""

    asked: Text = ""
    published: Text | None = None


class Changed(Record):
    """A record that holds those of overrides, each under its option's name."""

    @model_validator(mode="after")
    def _changes(self) -> Self:
        for kind, value in self.changes:
            if (schema := kind.schema()) is not None:
                try:
                    schema.model_validate(value)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_context=False)[0]
                    place = ".".join((kind.option, *map(str, first["loc"])))
                    raise ValueError(f"{place}: {first['msg']}") from error
        return self

    @property
    def changes(self) -> list[tuple[type[Override], dict[str, Any]]]:
        """The overrides whose records are here, with the records."""
        found = self.model_extra or {}
        return [(kind, found[option]) for option, kind in overrides().items() if found.get(option)]

    def change(self, option: str) -> dict[str, Any] | None:
        """The record of one override, by its option's name."""
        return next((record for kind, record in self.changes if kind.option == option), None)


class Imported(Record):
    """Where the set of others came from."""

    experiment: Count
    outside_pixel_range: Number
    stored_space: SpaceRecord


class Manifest(Changed):
    """What `manifest.json` says; `docs/reference/artifact.md` has every key."""

    format: Literal["datastill-distilled-set"] = FORMAT
    version: Literal[1] = VERSION
    method: Name
    ipc: Positive
    seed: Whole
    classes: Classes
    labels: Literal["hard", "soft"]
    space: SpaceRecord
    decoder: DecoderRecord
    data: Data
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    label_kind: Text = "classes"
    cost: Cost = Field(default_factory=Cost)
    files: dict[Name, Sha256] = Field(default_factory=dict)
    family: Text = ""
    method_file: Text = ""  #: of a method that is a file of the maker's
    hyper: dict[str, Any] = Field(default_factory=dict)
    recipe: Recipe = Field(default_factory=Recipe)
    network: NetworkRecord | None = None
    student: Student = Field(default_factory=Student)
    notes: list[Text] = Field(default_factory=list)
    captions: list[Text] = Field(default_factory=list)  #: of pairs, the nearest training caption of each
    companions: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    imported: Imported | None = None

    @property
    def method_in_full(self) -> str:
        """The method and what its run changed: "dm + kde:draw=true"."""
        return " + ".join([self.method, *(kind.text(record) or kind.told(record)[1] for kind, record in self.changes)])

    @classmethod
    def of_file(cls, value: Any, where: object) -> Self:
        """The record of what a file says, which is complete.

        Raises:
            InputError: a key is missing or of another type or range; the first is named.
        """
        record = cls.of(value, where)
        for section, names in NEEDED.items():
            missing = [name for name in names if name not in (value[section] if section else value)]
            if missing:
                raise InputError(f"{where} is damaged: {'.'.join(filter(None, (section, missing[0])))} is missing.")
        return record


#: What a file says, by section; beside what a set in memory says too.
NEEDED = {
    "": ("format", "version", "cost", "files", "family", "hyper", "recipe", "network", "student", "notes"),
    "space": ("source",),
    "data": ("source", "options", "images", "fingerprint", "notes"),
    "cost": ("steps", "seconds", "hardware", "device", "versions"),
    "recipe": ("asked", "published"),
    "student": ("protocol",),
}


def refuse_other_format(manifest: Any, where: object) -> None:
    """Refuse what is no manifest of a distilled set, or one of another version.

    Raises:
        InputError: it is.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{where} is not the manifest of a distilled set.")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{where} is of version {manifest.get('version')!r}; this datastill reads version {VERSION}: "
            "update datastill."
        )


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """Over a manifest's content, but for this checksum itself; manifests of older versions have none."""
    files = {name: sha for name, sha in manifest["files"].items() if name != MANIFEST}
    return str(sealed({**manifest, "files": files})[CHECKSUM])
