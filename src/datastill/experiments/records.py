"""What the JSON files of comparisons, evaluations and studies may say; all of them are read through these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from datastill.store.manifest import Changed
from datastill.store.schema import Code, Count, Fraction, Name, Number, Positive, Record, Seconds, Text, Whole

#: Part of a path: no separator, and no dot in front.
FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$", max_length=250)]
Accuracies = Annotated[list[Fraction], Field(min_length=1, max_length=100_000)]
PerClass = Annotated[list[Fraction | None], Field(min_length=1, max_length=1_000_000)]
#: By part of a set.
Bytes = dict[Text, Count]


class Network(Record):
    """An architecture."""

    name: Text
    options: dict[str, Any] = Field(default_factory=dict)


class Real(Record):
    """A real set."""

    name: Text
    fingerprint: Text
    notes: list[Text] = Field(default_factory=list)


class CellCost(Record):
    """What a cell took."""

    steps: Count
    distillation_seconds: Seconds
    prepare_seconds: Seconds
    evaluation_seconds: Seconds
    scores_seconds: Seconds = 0.0  #: of the trainings that scores ask for, the whole real set's apart
    whole_set_seconds: Seconds = 0.0  #: of a network on the whole real set, which all cells of the data share
    prepared: dict[Text, Seconds] = Field(default_factory=dict)  #: what it shares, by the name of its file
    cpu_seconds: Seconds | None = None
    peak_memory_bytes: Number | None = None


class ApartRecord(Record):
    """Accuracies of a cell's set without the help of labels and augmentation."""

    arithmetic: Literal["fractions", "released"]
    whole_set: Fraction
    hard: Accuracies
    augmented: Accuracies | None
    bare: Accuracies | None


class WholeRecord(Record):
    """The accuracy of a network on the whole real set."""

    accuracy: Fraction
    seconds: Seconds


class CellRecord(Changed):
    """The result of a cell, as the ledger needs it."""

    method: Name
    data: Text
    real: Real
    ipc: Positive
    seed: Whole
    protocol: Name
    network: Network
    accuracy: Fraction | None = None
    accuracies: Accuracies
    per_class: PerClass
    hyper: dict[str, Any]
    cost: CellCost
    lr: Number | None = None
    lr_tried: dict[str, Fraction | None] | None = None
    optimizer: Text = ""
    apart: ApartRecord | None = None
    bytes: Bytes | None = None
    versions: dict[str, Text | None] = Field(default_factory=dict)


class ComparedCell(CellRecord):
    """The result of a cell, as the page of a comparison needs it."""

    cell: FileName
    notes: list[Text]
    skipped_steps: Count
    hardware: Text
    versions: dict[str, Text | None]


class Arm(Record):
    """One side of an evaluation."""

    accuracies: Annotated[list[Accuracies], Field(min_length=1)]
    per_class: PerClass
    seconds: Seconds


class MadeCost(Record):
    """What making a set took."""

    steps: Count
    seconds: Seconds
    hardware: Text = ""
    versions: dict[str, Text | None] = Field(default_factory=dict)


class Made(Changed):
    """How a set was made."""

    method: Name
    ipc: Positive
    seed: Whole
    cost: MadeCost
    hyper: dict[str, Any] = Field(default_factory=dict)
    bytes: Bytes | None = None


class Training(Record):
    """How networks were trained, where not as the protocol says."""

    how: Text


class EvaluationRecord(Record):
    """What `datastill evaluate` wrote."""

    protocol: Name
    network: Network
    data: Real
    made: Annotated[list[Made], Field(min_length=1)]
    distilled: Arm
    random: Arm | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def _one_made_for_each(self) -> EvaluationRecord:
        if len(self.made) != len(self.distilled.accuracies):
            raise ValueError("there is not one accuracy for each set")
        return self


class Settled(Record):
    """Hyper-parameters of a method on one data set at one size."""

    hyper: dict[str, Any]
    notes: list[Text]


class PlannedCell(Record):
    """A cell of a plan."""

    data: Text
    method: Name
    ipc: Positive
    seed: Whole
    name: FileName


class PlanProtocol(Record):
    """The protocol of a plan."""

    name: Name


class PlanConfig(Record):
    """What was asked for."""

    data: Annotated[dict[Text, Text], Field(min_length=1)]
    methods: Annotated[list[Name], Field(min_length=1)]
    ipc: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[Whole], Field(min_length=1)]
    protocol: PlanProtocol
    networks: Positive
    recipe: Text
    settings: dict[str, dict[str, Any]]
    budget: Seconds | None
    device: Text
    network: Text | dict[str, Any] | None
    code: Code = Field(default_factory=dict)
    optimizer: Text = "auto"
    scores: Text = "none"


class PlanRecord(Record):
    """`plan.json` of a comparison."""

    config: PlanConfig
    command: Text | None
    settled: dict[Text, Settled]
    cells: list[PlannedCell]


class RateRecord(Record):
    """A learning rate that was chosen."""

    lr: Annotated[float, Field(gt=0, le=1e6)]
    lr_tried: dict[str, Fraction]


class StudyWeights(Record):
    """Numbers of the weights of a cell."""

    conflict_mass: Number | None = None
    effective_share: Number | None = None


class StudyCell(Record):
    """A cell of a de-biasing study."""

    ipc: Positive
    method: Name
    init: Text
    surrogates: Text
    debias: Text
    training: Text
    accuracies: Accuracies
    aligned: Fraction | None
    conflicting: Fraction | None
    weights: StudyWeights
    conflicting_images: Number | None
    seconds: Seconds | None
