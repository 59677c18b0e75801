"""Shadow networks: each trained on a set that was distilled from a random half of a pool, as a unit of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.apps.privacy.lira import confidence, halves
from datastill.core.plan import Progress, silent
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.data.store import MemoryStore
from datastill.distillation.distill import distill
from datastill.evaluation.evaluate import trained
from datastill.launch import Unit, run_units
from datastill.store.artifact import DistilledSet
from datastill.store.files import digest, read_tensors, write_tensors
from datastill.training.hard import predict


@dataclass(frozen=True)
class Recipe:
    """How a set is made, and networks are trained on it; it can be pickled.

    Attributes:
        hyper: of the method.
    """

    method: str
    ipc: int
    hyper: Mapping[str, Any]
    network: str | None
    protocol: str
    device: str
    matched: str | None = None  #: what sets are distilled with

    def make(self, real: RealSet, seed: int) -> DistilledSet:
        """A set from real images."""
        return distill(
            self.method, real, ipc=self.ipc, seed=seed, network=self.matched, device=self.device, **self.hyper
        )


@dataclass(frozen=True)
class Shadows:
    """The shadows of one pool; it can be pickled.

    Attributes:
        pool: samples, in memory.
        inside: which of them each shadow is made from, (k, n) bool.
    """

    pool: RealSet
    recipe: Recipe
    inside: Tensor
    seed: int

    @classmethod
    def of(cls, sides: Sequence[RealSet], recipe: Recipe, count: int, seed: int) -> Shadows:
        """So many shadows, an even number, of all samples of some sides together."""
        images = torch.cat([side.pixels(torch.arange(len(side))) for side in sides])
        labels = torch.cat([side.labels for side in sides])
        pool = replace(sides[0], store=MemoryStore(images), labels=labels, weights=None, bias=None, test=None)
        return cls(pool, recipe, halves(labels, count, seed), seed)

    def confidences(self, folder: Path, *, workers: int | str = 1, progress: Progress = silent) -> Tensor:
        """phi of every sample of the pool under every shadow, (k, n); those that are in the folder are read.

        Args:
            folder: a file for each shadow; the same call goes on in it.
            workers: processes; "ray" or "ray:4": those of a Ray cluster.
            progress: told after every shadow.
        """
        key = digest([self.pool.fingerprint, vars(self.recipe), self.seed, self.inside.to(torch.uint8)])
        units = [
            Unit(f"shadow {k + 1}", (self, k), folder / f"shadow-{key}-{k:03d}.safetensors", "shadow")
            for k in range(len(self.inside))
        ]
        run_units(
            cast_shadow, units, workers=workers, on_done=lambda done: progress("shadows", done.done, done.total, {})
        )
        return torch.stack([read_tensors(unit.target)[0]["confidence"] for unit in units])


def cast_shadow(shadows: Shadows, k: int, target: Path) -> None:
    """Make one shadow.

    Args:
        shadows: all of them.
        k: which one.
        target: where its confidences are written.
    """
    pool = shadows.pool
    half = pool.subset(shadows.inside[k].nonzero().flatten())
    seed = Rng(shadows.seed).derive("shadow", k)
    made = shadows.recipe.make(half, seed % 2**62)
    write_tensors(target, {"confidence": confidences(made, half, pool, shadows.recipe, seed % 2**62)[0]})


def confidences(
    made: DistilledSet, real: RealSet, pool: RealSet, recipe: Recipe, seed: int, networks: int = 1
) -> Tensor:
    """phi of every sample of a pool under networks trained on a set, (networks, n).

    Args:
        made: the set.
        real: what it stands for.
        pool: samples.
        recipe: says the protocol and the network.
        seed: of the networks.
        networks: how many.
    """
    logits = logits_of(made, real, pool, recipe, seed, networks)
    return torch.stack([confidence(one, pool.labels) for one in logits])


def logits_of(
    made: DistilledSet, real: RealSet, pool: RealSet, recipe: Recipe, seed: int, networks: int = 1
) -> list[Tensor]:
    """Logits of every sample (n, C) under each network; arguments as of `confidences`."""
    runtime = Runtime.of(recipe.device)
    found = trained(
        made, real, protocol=recipe.protocol, networks=networks, network=recipe.network, seed=seed, runtime=runtime
    )
    seen = pool.with_space(made.space)
    return [
        predict(network, lambda index: seen.batch(index).x, len(seen), device=runtime.device).cpu() for network in found
    ]
