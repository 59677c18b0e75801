"""The whole real set under its own protocol: what a distilled set is measured against from above."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from datastill.core.errors import InputError
from datastill.core.runtime import Runtime
from datastill.data.cache import cache_folder, kept
from datastill.evaluation.conditions import Setup, macs_of, nominal_training
from datastill.evaluation.metrics import TestSplit
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.scores import Arm
from datastill.models.code import code_key
from datastill.store.files import digest, read_sealed, write_sealed
from datastill.store.schema import Fraction, Name, Record, Seconds
from datastill.training.trainers import Labeled, Trainer

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models import NetworkFactory

PROTOCOL, OF_PAIRS = "ceiling-v1", "vl-v1"


class CeilingRecord(Record):
    """What is kept of a ceiling: one network, so one row of one accuracy."""

    accuracies: Annotated[list[Annotated[list[Fraction], Field(min_length=1)]], Field(min_length=1, max_length=1)]
    per_class: Annotated[list[Fraction | None], Field(min_length=1)]
    seconds: Seconds
    recalls: dict[Name, Fraction] = Field(default_factory=dict)


def ceiling_protocol(real: RealSet) -> Protocol:
    """Of classes one of its own; of pairs the one that distilled pairs are scored by."""
    return get_protocol(PROTOCOL if real.captions is None else OF_PAIRS)


def ceiling_macs(real: RealSet, factory: NetworkFactory) -> float:
    """Multiply-accumulates of one ceiling network."""
    test = 0 if real.test is None else len(real.test)
    return macs_of([len(real)], test, ceiling_protocol(real).passes, 1, factory.macs)


def ceiling_seconds(real: RealSet, factory: NetworkFactory, device: str) -> float:
    """Seconds of one ceiling network at the nominal speed of a device, by its type."""
    test = 0 if real.test is None else len(real.test)
    return nominal_training(ceiling_protocol(real), [len(real)], test, 1, factory.macs, device)


def whole_set(real: RealSet, factory: NetworkFactory, seed: int, runtime: Runtime) -> Arm:
    """One network on the whole real set; kept in the cache under a hash of all that it depends on."""
    protocol = ceiling_protocol(real)
    runtime = runtime.for_work(ceiling_macs(real, factory), not factory.couples_samples)
    sets = [real.fingerprint, real.known_test.fingerprint]
    settings = asdict(protocol.schedule(real.name, real.shape))
    del settings["optimizer"]  # always SGD; so those stay valid that were kept before there was a choice
    how = [seed, runtime.device.type, runtime.precision, runtime.compiled, *code_key(factory).values()]
    key = digest([*sets, factory.describe(), settings, *how, *([] if real.captions is None else [protocol.name])])
    path = cache_folder() / "ceilings" / f"{key}.json"
    with contextlib.suppress(InputError):  # damaged: trained again
        record = read_sealed(path, CeilingRecord)
        per_class = [math.nan if v is None else v for v in record["per_class"]]
        accuracies, recalls = _double(record["accuracies"]), record.get("recalls", {})
        return Arm("whole set", accuracies, _double(per_class), seconds=record["seconds"], recalls=recalls)
    setup = Setup(factory, TestSplit.of(real), 1, seed, runtime, protocol.metric)
    images = Labeled(lambda index: real.batch(index).x, real.targets)
    arm = setup.run("whole set", [images], [_trainer(real, protocol)])
    record = arm.to_dict()
    stored = {"accuracies": arm.accuracies.tolist(), "per_class": record["per_class"], "seconds": arm.seconds}
    stored |= {"recalls": arm.recalls} if arm.recalls else {}
    with kept("The whole set's accuracy is"):
        write_sealed(path, stored)
    return arm


def _trainer(real: RealSet, protocol: Protocol) -> Trainer:
    """The protocol's; the real set of pairs says itself which of them show one image."""
    from datastill.training.contrastive import Contrastive

    made = protocol.trainer(real)
    if real.captions is None or not isinstance(made, Contrastive):
        return made
    return replace(made, same=real.captions.image)


def _double(values: list[list[float]] | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.double)
