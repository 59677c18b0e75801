"""`cross_architecture`: the same sets under several evaluation networks, and whether these rank methods alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.ranges import Few, checked
from datastill.data.real import RealSet
from datastill.evaluation import evaluate
from datastill.evaluation.inputs import Distilled, load_sets, real_for
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.scores import spread_over, t_interval
from datastill.experiments.settings import BASELINE, pick_protocol
from datastill.experiments.tuning import tune, validation_of, with_rate
from datastill.models import resolve_network
from datastill.report.words import markdown, percent, plural
from datastill.store.artifact import DistilledSet

FORMAT = "datastill-cross"

#: Told (what is trained, how many pairs of method and network are done, how many there are).
Progress = Callable[[str, int, int], object]


def silent(name: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class CrossMatrix:
    """Accuracy of every method (rows) under every evaluation network (columns). Accuracies are fractions.

    Attributes:
        accuracies: (sets, repeats) by (method, network).
        rates: the learning rate by (method, network).
        validation: where it was tuned, the validation accuracy of each rate.
    """

    methods: Sequence[str]
    networks: Sequence[str]
    accuracies: Mapping[tuple[str, str], Tensor]
    seeds: Mapping[str, Sequence[int]]
    rates: Mapping[tuple[str, str], float]
    protocol: str
    learning_rates: str
    data: str
    ipc: int
    validation: Mapping[tuple[str, str], Mapping[float, float]] = field(default_factory=dict)

    @property
    def means(self) -> Tensor:
        """(methods, networks)."""
        rows = [[float(self.accuracies[m, n].mean()) for n in self.networks] for m in self.methods]
        return torch.tensor(rows, dtype=torch.double)

    def interval(self, method: str, network: str) -> float:
        """Half-width of the 95 % t-interval, over sets where there are three or more, else over networks."""
        return t_interval(spread_over(self.accuracies[method, network])[0])

    def difference(self, method: str, network: str) -> tuple[float, float]:
        """Mean difference to Random and half of its interval, paired by seed; NaN without Random of the same seeds."""
        if method == BASELINE or BASELINE not in self.methods:
            return math.nan, math.nan
        mine, other = self.accuracies[method, network], self.accuracies[BASELINE, network]
        there = {seed: row for row, seed in enumerate(self.seeds[BASELINE])}
        if not all(seed in there for seed in self.seeds[method]):
            return math.nan, math.nan
        paired = mine - other[[there[seed] for seed in self.seeds[method]]]
        return float(paired.mean()), t_interval(spread_over(paired)[0])

    @property
    def kendall(self) -> Tensor:
        """Kendall's tau between the rankings of methods under each two networks; NaN below two methods."""
        return self._agreement("kendalltau")

    @property
    def spearman(self) -> Tensor:
        """Spearman's rank correlation, likewise."""
        return self._agreement("spearmanr")

    def _agreement(self, name: str) -> Tensor:
        from scipy import stats

        means = self.means
        found = torch.full((len(self.networks),) * 2, math.nan, dtype=torch.double)
        for i in range(len(self.networks)):
            for j in range(len(self.networks)):
                columns = means[:, i].tolist(), means[:, j].tolist()
                if len(self.methods) > 1 and all(len(set(c)) > 1 for c in columns):
                    found[i, j] = float(getattr(stats, name)(*columns).statistic)
        return found

    def table(self) -> str:
        """The matrix in Markdown, in percent, with the agreement of each network with the first."""
        head = ["method", *map(markdown, self.networks)]
        lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * len(self.networks)]
        for method in self.methods:
            lines.append(f"| {' | '.join([markdown(method), *(self.cell(method, n) for n in self.networks)])} |")
        for name, found in (("Kendall's tau", self.kendall), ("Spearman's rho", self.spearman)):
            cells = ["–" if math.isnan(v) else f"{v:.2f}" for v in found[0].tolist()]
            lines.append(f"| *{name}* | {' | '.join(cells)} |")
        return "\n".join([*lines, "", markdown(self.caption())]) + "\n"

    def caption(self) -> str:
        """What the numbers mean."""
        sets = max(len(seeds) for seeds in self.seeds.values())
        repeats = next(iter(self.accuracies.values())).shape[1]
        rates = (
            "each method's learning rate on each network was chosen on real training images held back (in brackets)"
            if self.learning_rates == "tuned"
            else "one learning rate for all networks"
        )
        return (
            f"Test accuracy in percent on {self.data}, ipc {self.ipc}, protocol {self.protocol}; {rates}. "
            f"Mean over {plural(sets, 'set')} × {plural(repeats, 'network')}, ± half of a 95 % interval. "
            f"Tau and rho: how far a network ranks the methods as {self.networks[0]} does, from 1 (alike) to -1."
        )

    def cell(self, method: str, network: str) -> str:
        """Accuracy in percent with its interval, and the learning rate where it was tuned."""
        width = self.interval(method, network)
        text = percent(float(self.accuracies[method, network].mean()))
        text += "" if math.isnan(width) else f" ± {percent(width)}"
        return text + (f" ({self.rates[method, network]:g})" if self.learning_rates == "tuned" else "")

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able, NaN as None."""
        return {
            "format": FORMAT,
            "version": 1,
            "data": self.data,
            "ipc": self.ipc,
            "protocol": self.protocol,
            "learning_rates": self.learning_rates,
            "methods": list(self.methods),
            "networks": list(self.networks),
            "means": self.means.tolist(),
            "cells": [self._record(m, n) for m in self.methods for n in self.networks],
            "kendall": [[_number(v) for v in row] for row in self.kendall.tolist()],
            "spearman": [[_number(v) for v in row] for row in self.spearman.tolist()],
        }

    def _record(self, method: str, network: str) -> dict[str, Any]:
        difference, width = self.difference(method, network)
        return {
            "method": method,
            "network": network,
            "seeds": list(self.seeds[method]),
            "accuracies": [[round(a, 6) for a in row] for row in self.accuracies[method, network].tolist()],
            "interval_95": _number(self.interval(method, network)),
            "difference": _number(difference),
            "difference_interval_95": _number(width),
            "learning_rate": self.rates[method, network],
            "validation": {f"{r:g}": a for r, a in self.validation.get((method, network), {}).items()},
        }


@checked
def cross_architecture(
    distilled_sets: Sequence[Distilled] | Mapping[str, Sequence[Distilled]],
    real: Any = None,
    networks: Sequence[str] = ("convnet", "mlp", "lenet"),
    *,
    protocol: str | Protocol = "auto",
    repeats: Few = 3,
    learning_rates: str = "fixed",
    random: bool = True,
    device: str = "auto",
    compile: str = "auto",
    progress: Progress = silent,
) -> CrossMatrix:
    """Score sets on several architectures that they were not all made with.

    Every set is evaluated on every network, from weights and orders that the sets of one seed share; so does
    the Random of each seed, which is drawn as `distill("random", ...)` draws it.

    Args:
        distilled_sets: sets or their folders, sorted by the method in their manifests and what was changed in it
            (weights against a bias); or method -> its sets. All of one data set and size.
        real: the real set; None takes the source that the first set names.
        networks: names as `resolve_network` reads them.
        protocol: one for all; "auto" as in `compare`.
        repeats: networks of each architecture for each set.
        learning_rates: "fixed" trains all networks at the protocol's learning rate (or at the set's own, where it
            learned one); "tuned" takes the best of .001, .003, .01, .03 and .1 for each method and network on
            a stratified part of the real training set. Test images choose nothing.
        random: whether Random stands among the methods.
        device: "auto", "cpu", "cuda", "mps".
        compile: "on", "off" or "auto": compiled code, for long evaluations on a CPU.
        progress: told after every pair of method and network.

    Raises:
        InputError: sets of different sizes or data, unknown names, numbers out of range.
    """
    if learning_rates not in ("fixed", "tuned"):
        raise InputError(f"learning_rates must be 'fixed' or 'tuned', not {learning_rates!r}.")
    if not networks or len(set(networks)) < len(networks):
        raise InputError(f"Name one or more different networks to evaluate on, not {list(networks)}.")
    by_method = _by_method(distilled_sets)
    first = next(iter(by_method.values()))[0]
    data = real_for(first, real)
    for name in networks:
        resolve_network(name, **data.network_shape)
    if random and BASELINE not in by_method:
        by_method = {BASELINE: _random_sets(by_method, data, device), **by_method}
    recipe = pick_protocol(protocol, [data.shape], [data.kind])
    validation = validation_of(data) if learning_rates == "tuned" else None
    accuracies: dict[tuple[str, str], Tensor] = {}
    rates: dict[tuple[str, str], float] = {}
    tried: dict[tuple[str, str], dict[float, float]] = {}
    total = len(by_method) * len(networks)
    for method, sets in by_method.items():
        for network in networks:
            key, rate = (method, network), _own_rate(sets) or recipe.lr
            if validation is not None:
                rate, tried[key] = tune(sets, validation, recipe, network, rate, device=device, compile=compile)
            rates[key] = rate
            accuracies[key] = _score(sets, data, with_rate(recipe, rate), network, repeats, device, compile)
            progress(f"{method} on {network}", len(accuracies), total)
    seeds = {method: [one.record.seed for one in sets] for method, sets in by_method.items()}
    return CrossMatrix(
        list(by_method), list(networks), accuracies, seeds, rates, recipe.name, learning_rates,
        data.name, first.ipc, tried,
    )  # fmt: skip


def _score(
    sets: Sequence[DistilledSet],
    data: RealSet,
    protocol: Protocol,
    network: str,
    repeats: int,
    device: str,
    compile: str,
) -> Tensor:
    """Accuracies (sets, repeats); a set's networks come from its own seed, as in `compare`."""
    rows = [
        evaluate(
            one,
            data,
            protocol=protocol,
            network=network,
            networks=repeats,
            seed=one.record.seed,
            random=False,
            device=device,
            compile=compile,
        ).distilled.accuracies[0]
        for one in sets
    ]
    return torch.stack(rows)


def _by_method(given: Sequence[Distilled] | Mapping[str, Sequence[Distilled]]) -> dict[str, list[DistilledSet]]:
    """Sets by method, all of one size and, within a method, of different seeds."""
    found: dict[str, list[DistilledSet]] = {}
    if isinstance(given, Mapping):
        found = {str(method): load_sets(sets) for method, sets in given.items()}
    else:
        for one in load_sets(given):
            found.setdefault(one.record.method_in_full, []).append(one)
    if not found:
        raise InputError("There is no distilled set to evaluate.")
    sizes = {one.ipc for sets in found.values() for one in sets}
    if len(sizes) > 1:
        raise InputError(f"The sets have {sorted(sizes)} images per class; compare sets of one size.")
    for method, sets in found.items():
        seeds = [one.record.seed for one in sets]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"Two sets of {method} have the same seed ({seeds}); give sets from different seeds.")
    return found


def _random_sets(by_method: Mapping[str, Sequence[DistilledSet]], data: RealSet, device: str) -> list[DistilledSet]:
    """The Random of every seed that any method has, in the Space of the first set."""
    from datastill.distillation.distill import distill

    sets = [one for group in by_method.values() for one in group]
    seeds = sorted({one.record.seed for one in sets})
    real = data.with_space(sets[0].space)
    return [distill("random", real, ipc=sets[0].ipc, seed=seed, device=device) for seed in seeds]


def _own_rate(sets: Sequence[DistilledSet]) -> float | None:
    """The learning rate that the sets learned, where they did: the mean over them."""
    rates = [one.record.student.lr for one in sets]
    known = [rate for rate in rates if rate is not None]
    return sum(known) / len(known) if known else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
