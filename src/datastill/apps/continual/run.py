"""Class-incremental learning with a distilled memory, trained on from scratch at every step (GDumb's protocol).

At step t the new classes are distilled, and never again looked at. Fresh networks are trained on the memory of all
classes so far and scored on their test images (Prabhu et al., ECCV 2020; with distilled sets: arXiv:2102.08259,
arXiv:2110.04181).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from datastill.apps.continual.stream import class_order, in_steps, of_classes
from datastill.apps.kept import arguments_of, code_in, kept_cells, plain, refuse_labels
from datastill.data.real import RealSet
from datastill.distillation.distill import distill
from datastill.evaluation import evaluate
from datastill.evaluation.protocols import get_protocol
from datastill.models.resolve import NetworkSpec
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.extend import extended
from datastill.store.files import write_json
from datastill.store.folders import held
from datastill.store.outputs import Kind
from datastill.store.schema import Fraction, Record, Seconds, Whole

RESULT = "continual.json"
CONTINUAL = Kind("continual learning", RESULT, ("config", "cells"))


class Step(Record):
    """What was found after a step."""

    accuracies: Annotated[list[Fraction], Field(min_length=1)]
    seen: list[Whole]
    seconds: Seconds


@dataclass(frozen=True)
class Streamed:
    """Accuracies over all classes seen so far.

    Attributes:
        cells: "method|order|step" to accuracies of the networks, the classes seen and the seconds of the step.
        config: what was asked.
    """

    cells: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]

    def means(self, method: str) -> list[float]:
        """Mean accuracy after every step, over orders and networks."""
        found = []
        for t in range(self.config["steps"]):
            values = [v for k in range(self.config["orders"]) for v in self.cells[f"{method}|{k}|{t}"]["accuracies"]]
            found.append(sum(values) / len(values))
        return found

    @property
    def heads(self) -> list[str]:
        """Of the table."""
        seen = [self.cells[f"{self.config['methods'][0]}|0|{t}"]["seen"] for t in range(self.config["steps"])]
        return ["method", *(f"{len(s)} classes" for s in seen), "seconds"]

    def rows(self) -> list[list[str]]:
        """Of the table: a method each, percent."""
        rows = []
        for method in self.config["methods"]:
            seconds = sum(cell["seconds"] for key, cell in self.cells.items() if key.rsplit("|", 2)[0] == method)
            rows.append([method, *(f"{100 * mean:.1f}" for mean in self.means(method)), f"{seconds:.0f}"])
        return rows

    @property
    def verdict(self) -> str:
        """The last step, in words."""
        final = {method: self.means(method)[-1] for method in self.config["methods"]}
        best = max(final, key=lambda method: final[method])
        beside = f", {100 * (final[best] - final['random']):+.1f} over random" if "random" in {*final} - {best} else ""
        return f"After the last step {best} is highest with {100 * final[best]:.1f} %{beside}."

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"config": dict(self.config), "cells": {k: dict(v) for k, v in self.cells.items()}}


@dataclass(frozen=True)
class Stream:
    """What arrives, and how it is remembered.

    Attributes:
        steps: in which the classes arrive.
        ipc: images of each class in the memory.
        orders: of classes, each a permutation by numpy's legacy generator; results are their mean.
        networks: that are trained at each step.
        protocol: of training, the same for all methods.
    """

    steps: int = 5
    ipc: int = 10
    orders: int = 1
    networks: int = 3
    protocol: str = "dsa-quick-v1"


def continual(
    real: RealSet,
    methods: Sequence[str] = ("random", "dm"),
    stream: Stream | None = None,
    *,
    network: NetworkSpec = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    budget: float | None = None,
    seed: int = 0,
    out: Path | None = None,
    told: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Streamed:
    """Let the classes arrive, remember them by each method, train and score.

    Args:
        real: with a test split; its Space is fixed before the first step.
        methods: of distillation or selection, by name or file.
        stream: how classes arrive.
        network: to distill with and to train.
        settings: hyper-parameters by method, {"dm": {"steps": 60}}.
        budget: seconds at each step of a method that has no steps of its own; None leaves its recipe alone.
        seed: of distillation and training.
        out: a folder for memories and numbers; the same call goes on in it. None keeps nothing.
        told: called after every step.

    Raises:
        InputError: more steps than classes, no test split, an `out` of other settings or in use, or what `distill`
            refuses.
    """
    stream = stream or Stream()
    _ = real.known_test
    in_steps(range(real.classes), stream.steps)
    get_protocol(stream.protocol)
    given = arguments_of(methods, settings, budget)
    first = of_classes(real, in_steps(class_order(real.classes, 0), stream.steps)[0])
    refuse_labels(given, first, stream.ipc, network, False, "which know the classes of one step alone")
    config = {**asdict(stream), "data": real.name, "images": real.fingerprint,
              "methods": list(methods), "network": str(network or ""),
              "settings": given, "seed": seed, **code_in(methods, network, real)}  # fmt: skip
    with contextlib.nullcontext() if out is None else held(out):
        cells = kept_cells(None if out is None else out / RESULT, config, Step)
        for which in itertools.product(range(stream.orders), methods):
            _arrive(real, which, stream, network, given[which[1]], out, {"config": config, "cells": cells}, told)
    return Streamed(cells, config)


def _arrive(
    real: RealSet,
    which: tuple[int, str],
    stream: Stream,
    network: NetworkSpec,
    settings: Mapping[str, Any],
    out: Path | None,
    found: dict[str, Any],
    told: Callable[[int, int, str], None],
) -> None:
    """All steps of one order by a method; those that are missing join the cells."""
    k, method = which
    cells, config = found["cells"], found["config"]
    total = len(config["methods"]) * stream.orders * stream.steps
    memory: DistilledSet | None = None
    for t, seen in enumerate(_prefixes(in_steps(class_order(real.classes, k), stream.steps))):
        key, place = f"{method}|{k}|{t}", None if out is None else out / "memories" / f"{plain(method)}-{k}-{t}"
        if key in cells and place is not None:
            memory = load_distilled(place)
        else:
            cells[key], memory = _step(real, method, stream, memory, seen, network, settings, config["seed"])
            if out is not None and place is not None:
                memory.save(place)
                write_json(out / RESULT, found)
        told(len(cells), total, f"{method}, {len(seen[1])} classes")


def _step(
    real: RealSet,
    method: str,
    stream: Stream,
    memory: DistilledSet | None,
    seen: tuple[list[int], list[int]],
    network: NetworkSpec,
    settings: Mapping[str, Any],
    seed: int,
) -> tuple[dict[str, Any], DistilledSet]:
    new, so_far = seen
    made = distill(method, of_classes(real, new), ipc=stream.ipc, network=network, seed=seed, **settings)
    memory = made if memory is None else extended(memory, made)
    result = evaluate(memory, of_classes(real, so_far), protocol=stream.protocol, networks=stream.networks,
                      network=network, seed=seed, random=False)  # fmt: skip
    cost = made.record.cost
    cell = {"accuracies": result.distilled.accuracies.flatten().tolist(), "seen": so_far,
            "seconds": cost.seconds + cost.prepare_seconds}  # fmt: skip
    return cell, memory


def _prefixes(parts: Sequence[list[int]]) -> list[tuple[list[int], list[int]]]:
    """New classes of every step, and all so far."""
    return [(part, [c for before in parts[: t + 1] for c in before]) for t, part in enumerate(parts)]
