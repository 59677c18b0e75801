"""An evaluation out of the file that `datastill evaluate` wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from datastill.evaluation.scores import Arm, Evaluation, Groups
from datastill.store.files import read_json
from datastill.store.schema import Fraction, Number, Record, Seconds, Text, Whole

Scores = Annotated[list[Annotated[list[Fraction], Field(min_length=1)]], Field(min_length=1, max_length=10_000)]


class GroupsRecord(Record):
    """Accuracies by the bias attribute of test images."""

    aligned: Fraction | None
    conflicting: Fraction | None
    matrix: list[list[Fraction | None]]


class ArmRecord(Record):
    """One side."""

    name: Text
    accuracies: Scores
    per_class: list[Fraction | None]
    seconds: Seconds = 0.0
    lr: list[Number] = Field(default_factory=list)
    groups: GroupsRecord | None = None
    recalls: dict[Text, Fraction] = Field(default_factory=dict)

    def arm(self) -> Arm:
        """As `evaluate` returned it, but for the losses on the way."""
        groups = None
        if self.groups is not None:
            matrix = torch.tensor([[_nan(a) for a in row] for row in self.groups.matrix])
            groups = Groups(_nan(self.groups.aligned), _nan(self.groups.conflicting), matrix)
        return Arm(
            self.name,
            torch.tensor(self.accuracies, dtype=torch.float64),
            torch.tensor([_nan(a) for a in self.per_class]),
            seconds=self.seconds,
            rates=list(self.lr),
            groups=groups,
            recalls=dict(self.recalls),
        )


class EvaluationRecord(Record):
    """What `evaluation.json` says."""

    protocol: Text
    network: dict[str, Any]
    data: dict[str, Any]
    cost: dict[str, Any]
    distilled: ArmRecord
    random: ArmRecord | None = None
    ceiling: ArmRecord | None = None
    seed: Whole = 0
    sets: list[Text] = Field(default_factory=list)
    made: list[dict[str, Any]] = Field(default_factory=list)
    notes: list[Text] = Field(default_factory=list)
    training: dict[str, Any] | None = None
    labels: Text = ""
    optimizer: Text = ""
    chance: dict[Text, Fraction] = Field(default_factory=dict)


def read_evaluation(path: Path) -> Evaluation:
    """What `evaluate` found, as far as its file tells it.

    Raises:
        InputError: the file cannot be read, or is of something else; the first field is named.
    """
    told = EvaluationRecord.of(read_json(path), path)
    return Evaluation(
        told.distilled.arm(),
        told.random.arm() if told.random is not None else None,
        told.ceiling.arm() if told.ceiling is not None else None,
        protocol=told.protocol,
        network=told.network,
        data=told.data,
        cost=told.cost,
        seed=told.seed,
        names=told.sets,
        made=told.made,
        notes=told.notes,
        training=told.training,
        labels=told.labels,
        optimizer=told.optimizer,
        chance=told.chance,
    )


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
