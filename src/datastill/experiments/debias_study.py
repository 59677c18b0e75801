"""The de-biasing study: methods with and without weights against a bias, on one biased set."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.cost import pick_device
from datastill.core.errors import InputError
from datastill.core.plan import Callback, Progress, silent
from datastill.core.ranges import Count, Few, check_fields
from datastill.core.registry import get_method
from datastill.core.runtime import Runtime
from datastill.data.places import places_of
from datastill.debias.reweight import way_of, without_draw
from datastill.distillation.distill import distill
from datastill.distillation.job import prepare_job
from datastill.evaluation.evaluate import evaluate
from datastill.experiments.debias_cell import KEPT, Cell, color_distance, conflicting_share, read_cell
from datastill.experiments.debias_spread import measure_apart
from datastill.experiments.settings import pick_protocol, refuse_unknown_values
from datastill.launch import Workers, check_workers
from datastill.overrides.debias import by_weight
from datastill.overrides.surrogates import Surrogates
from datastill.report.card import CARD
from datastill.store.artifact import MANIFEST, DistilledSet, load_distilled
from datastill.store.files import digest, write_sealed
from datastill.store.folders import held
from datastill.store.outputs import STUDY, refuse_out
from datastill.surrogates.debiased import DebiasedSurrogates
from datastill.training.debiased import DebiasedTraining

if TYPE_CHECKING:
    from datastill.core.plan import Plan
    from datastill.data.real import RealSet


@dataclass(frozen=True)
class DebiasStudy:
    """What is crossed: methods, weights, starts, surrogates, sizes, seeds, and ways to train on what comes of it.

    Attributes:
        methods: names; a method's weights act on its losses, for `random` on the draw.
        debias: ways to weigh, as `distill` takes them.
        inits: starts: "real" (the method's own), "noise", "weighted"; methods without `init` ignore them.
        surrogates: "method", or networks that resist the bias: "dfa", "selecmix", as `distill` takes them. Methods that
            follow experts have experts trained so ("selecmix" alone).
        training: how networks are trained on the sets, as `evaluate` takes it; a set is made once for all of them.
        hyper: values for all methods that know them; and for one, by its name.
    """

    methods: Sequence[str]
    debias: Sequence[str] = ("none", "kde", "oracle")
    inits: Sequence[str] = ("real",)
    surrogates: Sequence[str] = ("method",)
    training: Sequence[str] = ("plain",)
    ipcs: tuple[Count, ...] = (10,)
    seeds: Few = 3
    networks: Few = 3
    network: str | None = None
    protocol: str = "dsa-quick-v1"
    recipe: str = "auto"
    hyper: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)

    def cells(self) -> list[Cell]:
        """Every cell once, seeds last, so that a stopped study has whole rows early."""
        crossed = itertools.product(
            range(self.seeds), self.ipcs, self.inits, self.methods, self.surrogates, self.debias, self.training
        )
        cells = (self._cell(*values) for values in crossed)
        return list(dict.fromkeys(cell for cell in cells if cell is not None))

    def _cell(
        self, seed: int, ipc: int, init: str, method: str, surrogates: str, way: str, training: str
    ) -> Cell | None:
        """The cell of these choices; None where a method has no such choice."""
        known = set(get_method(method).cls.__dataclass_fields__)
        values = {k: v for k, v in self.hyper.items() if not isinstance(v, Mapping) and k in known}
        values |= self.hyper.get(method, {})
        if init == "weighted" and (way == "none" or "init" not in known) and method != "random":
            return None
        if method == "random":  # the draw itself is weighted; there is no start, and no network
            init, surrogates = "real" if way == "none" else "weighted", "method"
        elif "init" not in known:
            init = "real"
        elif init != "real":
            values["init"] = init
        if surrogates != "method" and "expert_policy" in known:
            if way != "none" or not surrogates.startswith("selecmix"):
                return None
            values["expert_policy"] = surrogates
        return Cell(
            method, way, init, surrogates, training, ipc, seed, json.dumps(values, sort_keys=True), self.recipe,
            self.network, self.protocol, self.networks,
        )  # fmt: skip

    def fitting(self, real: RealSet) -> list[Cell]:
        """The cells that can be made: those of other surrogates only where a method takes fresh networks.

        Where a method draws no class batches of real images, `draw=true` is left out of its ways to weigh.

        Raises:
            InputError: an unknown choice, told before anything is made.
        """
        pick_protocol(self.protocol, ())
        refuse_unknown_values(self.hyper, self.methods)
        self._refuse_own()
        for training in self.training:
            DebiasedTraining.parse(training)
        for way in self.debias:
            way_of(way)
        cells, fitting = self.cells(), []
        distinct = {(cell.method, cell.surrogates, cell.init): cell for cell in cells}
        plans = {key: self._plan(cell, real) for key, cell in distinct.items()}
        for cell in cells:
            plan = plans[cell.method, cell.surrogates, cell.init]
            if Surrogates.fits(plan) or cell.own_surrogates == "method":
                undrawn = by_weight(plan) is None
                fitting.append(replace(cell, debias=without_draw(cell.debias)) if undrawn else cell)
        if not fitting:
            raise InputError(
                "None of these choices go together: a weighted start (--init) needs weights (--debias) and a method "
                "that takes a start; dfa and selecmix (--surrogates) stand in for fresh networks that a method matches "
                "on, and experts take selecmix without weights."
            )
        return list(dict.fromkeys(fitting))

    def _refuse_own(self) -> None:
        """Refuse values that name what the study crosses, and empty choices."""
        given = [self.hyper, *(value for value in self.hyper.values() if isinstance(value, Mapping))]
        if any("init" in values for values in given):
            raise InputError("The start is a choice of the study: give it as inits=['noise'], or --init noise.")
        choices = {"methods": self.methods, "debias": self.debias, "init": self.inits, "ipc": self.ipcs}
        choices |= {"surrogates": self.surrogates, "training": self.training}
        for name, values in choices.items():
            if not values:
                raise InputError(f"Nothing was given for --{name}; name at least one, or leave it out.")

    def _plan(self, cell: Cell, real: RealSet) -> Plan:
        """The plan of the cell's method, as it is without weights and other surrogates."""
        DebiasedSurrogates.parse(cell.own_surrogates)
        settings: dict[str, Any] = {"ipc": cell.ipc, "network": self.network, "runtime": Runtime.of(self.device)}
        job = prepare_job(cell.method, real, recipe=self.recipe, **settings, **cell.values)
        return job.own_plan

    def run(
        self,
        real: RealSet,
        out: Path,
        *,
        workers: int | str = 1,
        progress: Progress = silent,
        callbacks: Sequence[Callback] = (),
        on_cell: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Make what is missing; the records of all cells.

        Args:
            real: the biased set.
            out: folder of the study.
            workers: processes for the cells, with the numbers of one process of one torch thread, or "ray" or "ray:4";
                progress and callbacks then see nothing of them.
            progress: told how a cell goes.
            callbacks: hooks into the loops of all sets.
            on_cell: told the record of every cell, once it is there.

        Raises:
            UnitsFailed: with workers, some cells failed; the others are kept.
            InputError: an unknown method or way to weigh, or a set without bias labels.
        """
        if real.bias is None or real.test is None or real.test.bias is None:
            raise InputError(
                f"{real.name} does not know the bias of its images, which the study scores by; take a biased set such "
                "as cmnist:ratio=0.05, or use `datastill distill --debias loss:draw=true` on your own data."
            )
        check_workers(workers)
        refuse_out(out, places_of(real), STUDY)
        with held(out):
            if Workers.of(workers).several:
                self._run_apart(real, out, workers, on_cell)
                on_cell = None
            return self._run(real, out, progress, callbacks, on_cell)

    def _run_apart(
        self, real: RealSet, out: Path, workers: int | str, on_cell: Callable[[dict[str, Any]], None] | None
    ) -> None:
        paths = {self._record(cell, real, out): cell for cell in self.fitting(real)}

        def ended(path: Path) -> None:
            if on_cell is not None:
                on_cell(read_cell(path, paths[path]))

        for path in paths:
            if path.is_file():
                ended(path)
        missing = {path: cell for path, cell in paths.items() if not path.is_file()}
        measure_apart(self, real, out, missing, workers, ended)

    def _record(self, cell: Cell, real: RealSet, out: Path) -> Path:
        """The file of a cell's record."""
        key = digest([cell.record, real.fingerprint, real.known_test.fingerprint, pick_device(self.device).type])
        return out / "cells" / f"{cell.name}-{key}.json"

    def _run(
        self,
        real: RealSet,
        out: Path,
        progress: Progress,
        callbacks: Sequence[Callback],
        on_cell: Callable[[dict[str, Any]], None] | None,
    ) -> list[dict[str, Any]]:
        records = []
        for cell in self.fitting(real):
            path = self._record(cell, real, out)
            if not path.is_file():
                write_sealed(path, self.measure(cell, real, out, progress, callbacks))
            records.append(read_cell(path, cell))
            if on_cell is not None:
                on_cell(records[-1])
        return records

    def measure(
        self, cell: Cell, real: RealSet, out: Path, progress: Progress, callbacks: Sequence[Callback]
    ) -> dict[str, Any]:
        """The record of a cell; its set is made in the study's folder, if it is not there."""
        made = self._made(cell, real, out, progress, callbacks)
        found = evaluate(
            made,
            real,
            protocol=self.protocol,
            networks=self.networks,
            network=self.network,
            random=False,
            training=cell.training,
            device=self.device,
            progress=progress,
        )
        record, groups = made.record, found.distilled.groups
        assert groups is not None
        told = record.change("debias") or {}
        return {
            **cell.record,
            "protocol": found.protocol,
            "set": str(self.set_folder(cell, real)),
            "data": real.describe(),
            "accuracies": found.distilled.accuracies.flatten().tolist(),
            **groups.to_dict(),
            "weights": {name: told[name] for name in KEPT if name in told},
            "conflicting_images": conflicting_share(made, real),
            "colour_distance": color_distance(made, real),
            "seconds": round(record.cost.seconds + record.cost.prepare_seconds, 1),
            "cost": record.cost.plain(),
        }

    def _made(
        self, cell: Cell, real: RealSet, out: Path, progress: Progress, callbacks: Sequence[Callback]
    ) -> DistilledSet:
        """The cell's set: from its folder, or begun or gone on with there."""
        folder = out / self.set_folder(cell, real)
        if (folder / MANIFEST).is_file() and (folder / CARD).is_file():  # the card is written last
            with held(folder):  # a kill's lock goes
                return load_distilled(folder)
        return distill(
            cell.method,
            real,
            ipc=cell.ipc,
            seed=cell.seed,
            network=self.network,
            device=self.device,
            recipe=self.recipe,
            debias=cell.debias,
            surrogates=cell.own_surrogates,
            out=folder,
            resume=True,
            units=out,
            progress=progress,
            callbacks=callbacks,
            **cell.values,
        )

    def set_folder(self, cell: Cell, real: RealSet) -> Path:
        """Where the cell's set lies, inside the study's folder."""
        return Path("sets") / f"{cell.set_name}-{digest([cell.making, real.fingerprint])}"
