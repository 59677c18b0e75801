"""The de-biasing study: methods with and without weights against a bias, on one biased set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.artifact import DistilledSet
from datastill.core.errors import InputError
from datastill.core.files import digest, read_json, write_json
from datastill.core.plan import Progress, silent
from datastill.core.registry import get_method
from datastill.data.biased.coloured import colours
from datastill.evaluation.evaluate import evaluate
from datastill.evaluation.scores import t_interval
from datastill.run import distill

if TYPE_CHECKING:
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class DebiasStudy:
    """What is crossed: methods, weights, starts, sizes, seeds.

    Attributes:
        methods: names; a method's weights act on its losses, for `random` on the draw.
        debias: ways to weigh, as `distill` takes them.
        inits: starts: "real", "noise", "weighted"; methods without `init` ignore them.
        hyper: values for all methods that know them; and for one, by its name.
    """

    methods: Sequence[str]
    debias: Sequence[str] = ("none", "kde", "oracle")
    inits: Sequence[str] = ("real",)
    ipcs: Sequence[int] = (10,)
    seeds: int = 3
    networks: int = 3
    network: str | None = None
    protocol: str = "dsa-quick-v1"
    recipe: str = "auto"
    hyper: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    def cells(self) -> list[dict[str, Any]]:
        """Every cell once, seeds last, so that a stopped study has whole rows early."""
        found: dict[str, dict[str, Any]] = {}
        for seed in range(self.seeds):
            for ipc in self.ipcs:
                for init in self.inits:
                    for method in self.methods:
                        for way in self.debias:
                            cell = self._cell(method, way, init, ipc, seed)
                            if cell is not None:
                                found[digest(cell)] = cell
        return list(found.values())

    def _cell(self, method: str, way: str, init: str, ipc: int, seed: int) -> dict[str, Any] | None:
        known = set(get_method(method).cls.__dataclass_fields__)
        if method == "random":  # the draw itself is weighted; there is no start
            init = "real" if way == "none" else "weighted"
        elif "init" not in known or (init == "weighted" and way == "none"):
            init = "real" if "init" not in known else init
            if way == "none" and init == "weighted":
                return None
        values = {k: v for k, v in self.hyper.items() if not isinstance(v, Mapping) and k in known}
        values |= self.hyper.get(method, {})
        return {
            "method": method,
            "debias": way,
            "init": init,
            "ipc": ipc,
            "seed": seed,
            "hyper": values,
            "recipe": self.recipe,
            "network": self.network,
            "protocol": self.protocol,
            "networks": self.networks,
        }

    def run(
        self,
        real: RealSet,
        out: Path,
        *,
        progress: Progress = silent,
        on_cell: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Make what is missing; the records of all cells.

        Raises:
            InputError: an unknown method or way to weigh, or a set without bias labels.
        """
        if real.bias is None or real.test is None or real.test.bias is None:
            raise InputError(
                f"{real.name} does not know the bias of its images, which the study scores by; take a biased set such "
                "as cmnist:ratio=0.05, or use `datastill distill --debias kde` on your own data."
            )
        records = []
        for cell in self.cells():
            path = out / "cells" / f"{_name(cell)}-{digest([cell, real.fingerprint])}.json"
            if not path.is_file():
                write_json(path, self._measure(cell, real, out, progress))
            records.append(read_json(path))
            if on_cell is not None:
                on_cell(records[-1])
        return records

    def _measure(self, cell: dict[str, Any], real: RealSet, out: Path, progress: Progress) -> dict[str, Any]:
        started = time.process_time()
        made = self._made(cell, real, progress)
        seconds = time.process_time() - started
        made.save(out / "sets" / f"{_name(cell)}")
        found = evaluate(
            made,
            real,
            protocol=self.protocol,
            networks=self.networks,
            network=self.network,
            random=False,
            device=self.device,
            progress=progress,
        ).distilled
        groups = found.groups
        assert groups is not None
        told = made.manifest.get("debias", {})
        kept = ("conflict_mass", "effective_samples", "kernel", "rules", "warnings")
        return {
            **cell,
            "data": real.describe(),
            "accuracies": found.accuracies.flatten().tolist(),
            **groups.to_dict(),
            "weights": {name: told[name] for name in kept if name in told},
            "conflicting_images": conflicting_share(made, real),
            "cpu_seconds": round(seconds, 1),
            "cost": made.manifest["cost"],
        }

    def _made(self, cell: dict[str, Any], real: RealSet, progress: Progress) -> DistilledSet:
        common: dict[str, Any] = {
            "ipc": cell["ipc"],
            "seed": cell["seed"],
            "network": self.network,
            "device": self.device,
            "debias": cell["debias"],
            "progress": progress,
        }
        if cell["method"] == "random" and cell["init"] == "weighted":  # a weighted draw: DM's start without a step
            return distill("dm", real, recipe="paper", init="weighted", **{**common, **_NO_STEP})
        values = dict(cell["hyper"])
        if cell["method"] != "random" and "init" in get_method(cell["method"]).cls.__dataclass_fields__:
            values["init"] = cell["init"]
        return distill(cell["method"], real, recipe=self.recipe, **common, **values)


#: One step too small to be seen.
_NO_STEP = {"steps": 1, "image_lr": 1e-30, "real_batch": 1}


def conflicting_share(made: DistilledSet, real: RealSet) -> float | None:
    """Share of coloured digits whose colour is nearer to that of another class; None for other sets."""
    if not real.name.startswith("cmnist"):
        return None
    nearest = nearest_colour(made.pixels, real.classes)
    return float((nearest != made.hard_labels).double().mean())


def nearest_colour(pixels: Tensor, count: int) -> Tensor:
    """The mean colour, by position, in whose direction the bright pixels of each image (n, 3, h, w) lie."""
    bright = pixels.amax(1, keepdim=True)
    weight = bright * (bright > 0.5 * bright.amax((2, 3), keepdim=True))
    mean = (pixels * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-12)
    known = torch.from_numpy(colours(count)).to(mean)
    unit = torch.nn.functional.normalize
    return (unit(mean, dim=1) @ unit(known, dim=1).T).argmax(1)


def rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each cell but for its seed: means over sets, percent."""
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in records:
        grouped.setdefault((one["ipc"], one["method"], one["init"], one["debias"]), []).append(one)
    found = []
    for (ipc, method, init, way), cells in grouped.items():
        sets = torch.tensor([sum(c["accuracies"]) / len(c["accuracies"]) for c in cells], dtype=torch.double)
        over = sets if len(sets) > 1 else torch.tensor(cells[0]["accuracies"], dtype=torch.double)
        found.append(
            {
                "ipc": ipc,
                "method": method,
                "init": init,
                "debias": way,
                "sets": len(cells),
                "accuracy": 100 * float(sets.mean()),
                "interval": 100 * t_interval(over),
                "std": 100 * float(over.std()) if len(over) > 1 else None,
                "aligned": 100 * _mean(c["aligned"] for c in cells),
                "conflicting": 100 * _mean(c["conflicting"] for c in cells),
                "conflict_mass": _mean(c["weights"].get("conflict_mass") for c in cells),
                "conflicting_images": _mean(c["conflicting_images"] for c in cells),
                "cpu_seconds": _mean(c["cpu_seconds"] for c in cells),
            }
        )
    return found


def _mean(values: Any) -> float:
    known = [float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else float("nan")


def _name(cell: Mapping[str, Any]) -> str:
    way = str(cell["debias"]).replace(":", "-").replace(",", "-").replace("=", "")
    return f"{cell['method']}-{way}-{cell['init']}-ipc{cell['ipc']}-seed{cell['seed']}"
