"""Networks trained on proxies and on the whole set, and how the two rank them (Zhao et al., arXiv:2006.05929)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.apps.kept import kept_cells
from datastill.apps.search.grid import grid
from datastill.apps.search.ranks import Agreement, agreement
from datastill.augment.strategies import strategy_for
from datastill.core.errors import Diverged, InputError
from datastill.core.registry import get_method
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.distillation.distill import distill
from datastill.models import resolve_network
from datastill.store.files import write_json
from datastill.store.outputs import Kind
from datastill.training.hard import Schedule, predict, train

RESULT = "search.json"
SEARCH = Kind("architecture search", RESULT, ("config", "cells"))
#: The two references beside the proxies.
WHOLE, EARLY = "whole set", "early stopping"


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
    """

    kind: str = "mini"
    sample: int = 0
    ipc: int = 10
    passes: int = 100
    whole_passes: int = 20
    top: float = 0.2


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
    settings: Mapping[str, Any] | None = None,
    network: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    told: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Found:
    """Train every network on every proxy, on the whole set, and for as many steps on the whole set as on a proxy.

    Args:
        real: with a test split.
        methods: that make the proxies, by name or file.
        asked: which networks, and how they are trained.
        settings: further arguments of `distill`, for methods that take steps.
        network: to distill with; a ConvNet that fits if None.
        seed: of the proxies, the weights and the orders; networks share the orders.
        out: a folder for the accuracies; the same call goes on in it. None keeps nothing.
        device: to train on: "auto", "cpu", "cuda", "mps".
        told: called after every network.

    Raises:
        InputError: no test split, a grid that does not fit, an `out` of other settings, or what `distill` refuses.
    """
    asked = asked or Search()
    if real.test is None or not len(real.test):
        raise InputError(f"{real.name} has no test images; give it a test split.")
    names = grid(asked.kind, (real.shape[1], real.shape[2]), asked.sample, seed)
    takes_steps = {m: "steps" in get_method(m).cls.__dataclass_fields__ for m in methods}
    config = {**asdict(asked), "data": real.name, "images": real.fingerprint,
              "methods": list(methods), "network": network or "", "seed": seed,
              "settings": dict(settings or {})}  # fmt: skip
    cells = kept_cells(None if out is None else out / RESULT, config)
    total = len(names) * (len(methods) + 2)
    for proxy in (*methods, EARLY, WHOLE):
        if all(f"{proxy}|{name}" in cells for name in names):
            continue
        own = settings if settings and takes_steps.get(proxy) else {}
        work = _work(real, proxy, asked, seed, network, {"device": device, **own})
        for name in names:
            if f"{proxy}|{name}" not in cells:
                cells[f"{proxy}|{name}"] = _cell(real, name, work, seed, device)
                if out is not None:
                    write_json(out / RESULT, {"config": config, "cells": cells})
            told(len(cells), total, f"{proxy}, {name}")
    return Found(names, cells, config)


def _work(
    real: RealSet, proxy: str, asked: Search, seed: int, network: str | None, settings: Mapping[str, Any]
) -> tuple[Callable[[Tensor], Tensor] | Tensor, Tensor, Schedule]:
    """Images, labels and schedule of one proxy."""
    augment = strategy_for(real.name, real.shape)
    if proxy == WHOLE:
        return lambda index: real.batch(index).x, real.labels, Schedule(asked.whole_passes, augment=augment)
    schedule = Schedule(asked.passes, augment=augment)
    if proxy == EARLY:
        size = asked.ipc * real.classes
        seen = asked.passes * (-(-size // schedule.batch)) * schedule.batch
        order = torch.randperm(len(real), generator=Rng(seed).generator("early"))
        part = order[:seen] if seen <= len(real) else order
        short = Schedule(max(1, round(seen / len(real))), augment=augment)
        return lambda index: real.batch(part[index]).x, real.labels[part], short
    made = distill(proxy, real, ipc=asked.ipc, network=network, seed=seed, **settings)
    if made.targets.ndim > 1:
        raise InputError(f"{proxy} makes labels that are no classes, which this search does not train on.")
    return made.images, made.targets, schedule


def _cell(real: RealSet, name: str, work: tuple[Any, Tensor, Schedule], seed: int, device: str) -> dict[str, float]:
    """Train one network and score it; one that diverges has the accuracy of guessing nothing."""
    x, y, schedule = work
    runtime = Runtime.of(device)
    factory = resolve_network(name, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    network = factory(Rng(seed).derive("search", name)).to(runtime.device)
    started = time.process_time()
    try:
        train(network, x, y, schedule, Rng(seed).child("search"), device=runtime.device)
    except Diverged:
        return {"accuracy": 0.0, "seconds": time.process_time() - started}
    seconds = time.process_time() - started
    test = real.test
    assert test is not None
    logits = predict(network, lambda index: test.batch(index).x, len(test), device=runtime.device)
    right = float((logits.argmax(1).cpu() == test.labels).double().mean())
    return {"accuracy": right, "seconds": round(seconds, 3)}
