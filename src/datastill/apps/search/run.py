"""Networks trained on proxies and on the whole set, and how the two rank them (Zhao et al., arXiv:2006.05929)."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from datastill.apps.kept import arguments_of, code_in, kept_cells, refuse_labels
from datastill.apps.search.grid import grid
from datastill.apps.search.ranks import Agreement, agreement
from datastill.apps.search.trainings import EARLY, WHOLE, Trained, Trainings, read_one, train_one
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.launch import Done, Unit, run_units
from datastill.store.files import digest, write_json
from datastill.store.folders import held
from datastill.store.outputs import Kind

RESULT = "search.json"
SEARCH = Kind("architecture search", RESULT, ("config", "cells"))


@dataclass(frozen=True)
class Search:
    """Which networks, and how they are trained.

    Attributes:
        kind: of grid, "whole" or "mini".
        sample: networks of it; 0 takes all.
        ipc: images of each class in a proxy.
        passes: over a proxy.
        whole_passes: over the whole set.
        top: share of networks whose ranking is told apart.
        heaviest: networks of more million multiply-accumulates an image are left out before the draw; 0 takes all.
        images: training images, drawn, that stand for the whole set; 0 takes all.
    """

    kind: str = "mini"
    sample: int = 0
    ipc: int = 10
    passes: int = 100
    whole_passes: int = 20
    top: float = 0.2
    heaviest: float = 0.0
    images: int = 0


@dataclass(frozen=True)
class Found:
    """Accuracies of all networks after training on each proxy.

    Attributes:
        networks: their names.
        cells: "proxy|network" to accuracy and seconds.
        config: what was asked.
    """

    networks: Sequence[str]
    cells: Mapping[str, Mapping[str, float]]
    config: Mapping[str, Any]

    HEADS = ("trained on", "Spearman", "Kendall", "Spearman, top", "top found", "its choice %", "seconds")

    def accuracies(self, proxy: str) -> list[float]:
        """Of all networks, in order."""
        return [self.cells[f"{proxy}|{name}"]["accuracy"] for name in self.networks]

    def agreement(self, proxy: str) -> Agreement:
        """With the whole set."""
        return agreement(self.accuracies(proxy), self.accuracies(WHOLE), self.config["top"])

    @property
    def proxies(self) -> list[str]:
        """All but the whole set, early stopping last."""
        return [*self.config["methods"], EARLY]

    def rows(self) -> list[list[str]]:
        """Of the table: a proxy each, then the whole set."""
        rows = []
        for proxy in [*self.proxies, WHOLE]:
            one = self.agreement(proxy)
            seconds = sum(self.cells[f"{proxy}|{name}"]["seconds"] for name in self.networks)
            ranks = [f"{v:.2f}" for v in (one.spearman, one.kendall, one.spearman_top, one.overlap)]
            rows.append([proxy, *ranks, f"{100 * one.chosen_accuracy:.1f}", f"{seconds:.0f}"])
        return rows

    @property
    def verdict(self) -> str:
        """Which proxy ranks best, in words."""
        ranks = {p: self.agreement(p).spearman for p in self.proxies}
        sound = {p: r for p, r in ranks.items() if not math.isnan(r)}
        if not sound:
            return "No proxy tells the networks apart."
        best = max(sound, key=lambda p: sound[p])
        return f"Of the proxies, {best} ranks the {len(self.networks)} networks most like the whole set does " \
               f"(Spearman {sound[best]:.2f})."  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        agreements = {
            proxy: {k: None if math.isnan(v) else v for k, v in asdict(self.agreement(proxy)).items()}
            for proxy in self.proxies
        }
        return {"config": dict(self.config), "cells": {k: dict(v) for k, v in self.cells.items()},
                "agreement": agreements, "verdict": self.verdict}  # fmt: skip


def search(
    real: RealSet,
    methods: Sequence[str] = ("random", "dm"),
    asked: Search | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    budget: float | None = None,
    network: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    precision: str = "float32",
    workers: int | str = 1,
    told: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Found:
    """Train every network on every proxy, on the whole set, and for as many steps on the whole set as on a proxy.

    Args:
        real: with a test split.
        methods: that make the proxies, by name or file.
        asked: which networks, and how they are trained.
        settings: hyper-parameters by method, {"dm": {"steps": 60}}.
        budget: seconds of each method that takes steps and has none of its own; None leaves its recipe alone.
        network: to distill with; a ConvNet that fits if None.
        seed: of the proxies, the weights and the orders; networks share the orders.
        out: a folder for proxies and accuracies; the same call goes on in it. None keeps nothing.
        device: to train on: "auto", "cpu", "cuda", "mps".
        precision: of the networks' arithmetic: "float32" or "bf16".
        workers: processes, one thread each; "ray" or "ray:4" for those of a Ray cluster. Results do not depend on it.
        told: called after every network.

    Raises:
        InputError: no test split, a grid that does not fit, one network alone, an `out` of other settings or in use,
            or what `distill` refuses.
        UnitsFailed: trainings failed; the others are kept.
    """
    asked = asked or Search()
    _ = real.known_test
    Runtime.of(device, precision)
    names = grid(asked.kind, (real.shape[1], real.shape[2]), asked.sample, seed, heaviest=asked.heaviest,
                 channels=real.shape[0], classes=real.classes)  # fmt: skip
    if len(names) < 2:
        raise InputError("One network has no rank; take two or more (--sample, --heaviest).")
    given = arguments_of(methods, settings, budget)
    refuse_labels(given, real, asked.ipc, network, True, "which this search does not train on")
    config = {**asdict(asked), "data": real.name, "images_of": real.fingerprint,
              "methods": list(methods), "network": network or "", "seed": seed, "precision": precision,
              "settings": given, **code_in(methods, network, real)}  # fmt: skip
    real = part_of(real, asked.images, seed)
    with tempfile.TemporaryDirectory() as nowhere, contextlib.nullcontext() if out is None else held(out):
        place = out or Path(nowhere)
        cells = kept_cells(place / RESULT, config, Trained)
        trainings = Trainings(real, asked.ipc, asked.passes, asked.whole_passes, given, network, seed, device,
                              precision, place / "proxies")  # fmt: skip
        _train(trainings, [*methods, EARLY, WHOLE], names, place, {"config": config, "cells": cells}, workers, told)
    return Found(names, cells, config)


def part_of(real: RealSet, count: int, seed: int) -> RealSet:
    """So many training images, drawn; all of them for 0.

    Raises:
        InputError: more than there are.
    """
    if count > len(real):
        raise InputError(f"{real.name} has {len(real)} training images, and {count} are asked for; take fewer.")
    if not count:
        return real
    chosen = torch.randperm(len(real), generator=Rng(seed).generator("search images"))[:count].sort().values
    return real.subset(chosen)


def _train(
    trainings: Trainings,
    proxies: Sequence[str],
    names: Sequence[str],
    place: Path,
    found: dict[str, Any],
    workers: int | str,
    told: Callable[[int, int, str], None],
) -> None:
    """Every training that is missing among the cells, which each joins as it ends."""
    cells, total = found["cells"], len(names) * len(proxies)
    pairs = [(proxy, name) for proxy in proxies for name in names if f"{proxy}|{name}" not in cells]
    for proxy in dict.fromkeys(proxy for proxy, _ in pairs if proxy not in (EARLY, WHOLE)):
        trainings.make(proxy, lambda: write_json(place / RESULT, found))
    write_json(place / RESULT, found)
    keys = {place / "trainings" / f"{digest([*pair])}.json": "|".join(pair) for pair in pairs}
    units = [Unit(", ".join(pair), (trainings, *pair), path, pair[0]) for pair, path in zip(pairs, keys, strict=True)]

    def ended(done: Done) -> None:
        if done.failure is None:
            cells[keys[done.unit.target]] = read_one(done.unit.target)
            write_json(place / RESULT, found)
        told(len(cells), total, done.unit.name)

    for path in [path for path in keys if path.is_file()]:  # it was stopped between the two files
        cells[keys[path]] = read_one(path)
    run_units(train_one, units, workers=workers, on_done=ended)
