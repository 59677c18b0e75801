"""`evaluate`: a distilled set against Random under one protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core import compilation
from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import Stopwatch, environment, peak_memory_bytes, pick_device
from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.core.precision import casting
from datastill.core.rng import Rng
from datastill.core.threads import threads_for
from datastill.data import load_real
from datastill.data.recorded import load_recorded
from datastill.evaluation.arms import TestSplit, arm_macs, run_arm
from datastill.evaluation.ceiling import whole_set
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.evaluation.rates import RATES, TRAININGS, best_rate, learned_rate, rates_of, validation_of
from datastill.evaluation.scores import Arm, Evaluation
from datastill.evaluation.soft import Labelling, labelling, schedule_of
from datastill.models import NetworkFactory, is_built_in, resolve_network, resolve_recorded
from datastill.sampling.inits import random_indices
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.files import digest
from datastill.training.debiased import DebiasedTraining
from datastill.training.soft import SoftSchedule

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.training.hard import Schedule

Distilled = DistilledSet | str | Path


def evaluate(
    distilled: Distilled | Sequence[Distilled],
    real: Any = None,
    *,
    protocol: str | Protocol = "auto",
    networks: int = 5,
    network: Any = None,
    seed: int = 0,
    random: bool = True,
    ceiling: bool = False,
    device: str = "auto",
    precision: str = "float32",
    compile: str = "auto",
    stacked: bool | None = None,
    labels: str = "auto",
    teacher: Any = None,
    teacher_network: Any = None,
    training: str = "plain",
    progress: Progress = silent,
) -> Evaluation:
    """Train fresh networks on distilled sets and on random selections, and score both on the test split.

    Args:
        distilled: one or more artifacts of one method, or their folders; several (three or more) give an
            interval over sets.
        real: the real set, anything that `load_real` takes, or None for the source in the manifest, if it is at hand
            and holds the same images.
        protocol: a protocol or its name; "auto" takes the one that the artifact asks for.
        networks: fresh networks per set.
        network: an architecture; None takes the one that the set was distilled with, if that is built in.
        seed: of the networks' weights, orders and augmentations; both arms share them.
        random: whether Random stands beside it, from the same initial subsets. Where sets are trained on at learning
            rates that they learned, Random takes the best of these and of 0.001, 0.003, 0.01 and 0.03, chosen on
            real training images held back.
        ceiling: whether to train on the whole real set too (30 passes; cached).
        precision: "float32", or "bf16" for convolutions and matrix products of training and test.
        compile: "on", "off" or "auto": compiled code for training and test, for long evaluations on a CPU.
        stacked: train the networks of a set at once; None decides by device.
        labels: where the protocol trains on a teacher's labels: "auto" or "soft" take them, for Random as well; "hard"
            trains both arms in the same way on hard labels.
        teacher: who labels, a `Teacher` or its folder, instead of the one that comes with each set.
        teacher_network: what builds the teacher, where its network is not built in; None takes `network`, if that is
            not built in either.
        training: "plain", or a way that resists a bias of the set, which Random is then trained in too: "dfa" or
            "selecmix", with options as in "dfa:steps=4000"; see `datastill.training.debiased`. Of the protocol it keeps
            the augmentation.

    Returns:
        Accuracies as fractions with their spread, the paired difference to Random, and the cost.

    Raises:
        InputError: classes or image shapes do not agree; no test split; bad arguments.
    """
    watch = Stopwatch()
    keep_freed_memory()
    if networks < 1:
        raise InputError(f"networks must be at least 1, not {networks}.")
    sets = _load(distilled)
    first = sets[0]
    data = real_for(first, real).with_space(first.space)
    _check_alike(sets)
    for one in sets:
        _check_fit(one, data)
    recipe = get_protocol(_auto_protocol(first)) if protocol == "auto" else protocol
    recipe = get_protocol(recipe) if isinstance(recipe, str) else recipe
    where = pick_device(device)
    factory = network_for(first, data, network)
    rates = rates_of(sets, recipe)
    resisting = DebiasedTraining.parse(training)
    if resisting is not None:
        _check_resisting(recipe)
    if labels not in ("auto", "soft", "hard"):
        raise InputError(f"labels are auto, soft or hard, not {labels!r}.")
    if not recipe.soft and (labels != "auto" or teacher is not None):
        raise InputError(
            f"{recipe.name} trains on the labels of the set; a teacher labels under protocols such as soft-quick-v1."
        )
    schedules = [_schedule(one, recipe, data, rate) for one, rate in zip(sets, rates, strict=True)]
    who = None
    if isinstance(schedules[0], SoftSchedule):
        builder = teacher_network
        if builder is None and network is not None and not is_built_in(str(factory)):
            builder = factory
        who = labelling(sets, recipe, schedules[0], labels, teacher, data, where, builder)
    own = [rate for one, rate in zip(sets, rates, strict=True) if recipe.learned_lr and learned_rate(one) is not None]
    test = TestSplit.of(data)
    pairs = [(one.images, one.targets) for one in sets]
    sizes = [len(y) for _, y in pairs] + [len(one.labels) for one in sets if random]
    macs = arm_macs(sizes, len(test.y), recipe.passes, networks, factory.macs)
    compiled = compilation.decide(compile, macs, where)

    arms = _Arms(data, recipe, factory, networks, seed, where, precision, progress, stacked, compiled, who, resisting)
    scored = arms.run(first.manifest["method"], pairs, schedules, test)
    baseline = arms.random(sets, own if resisting is None else [], test) if random else None
    top = whole_set(data, factory, seed, where, precision, progress, compile) if ceiling else None
    return Evaluation(
        distilled=scored,
        random=baseline,
        ceiling=top,
        protocol=recipe.name,
        network={**factory.describe(), "spec": network if isinstance(network, str) else None},
        data=data.describe(),
        cost={
            **watch.read(),
            "precision": precision,
            "compile": scored.compiled,
            "peak_memory_bytes": peak_memory_bytes(where),
            **environment(where),
        },
        seed=seed,
        training=None if resisting is None else resisting.describe(),
        names=[one.name + f", seed {one.manifest['seed']}" for one in sets],
        made=[_made(one) for one in sets],
        notes=[
            *_notes(sets, data),
            *(who.notes if who is not None else []),
            *(_rate_notes(recipe, scored, baseline, len(own)) if resisting is None else ()),
            *(_resisting_notes(resisting, recipe, ceiling) if resisting is not None else ()),
        ],
    )


@dataclass(frozen=True)
class _Arms:
    """What the arms of an evaluation share."""

    data: RealSet
    protocol: Protocol
    factory: NetworkFactory
    networks: int
    seed: int
    device: torch.device
    precision: str
    progress: Progress
    stacked: bool | None
    compiled: bool
    labelling: Labelling | None = None
    training: DebiasedTraining | None = None

    def run(
        self,
        name: str,
        pairs: Sequence[tuple[Tensor, Tensor]],
        schedules: Sequence[Schedule | SoftSchedule],
        test: TestSplit,
    ) -> Arm:
        """Train on images and labels by the schedule of each set, and score on a test split."""
        with threads_for(self.factory.macs), casting(self.device, self.precision):
            return run_arm(
                name,
                pairs,
                test,
                schedules,
                self.factory,
                networks=self.networks,
                seed=self.seed,
                device=self.device,
                progress=self.progress,
                stacked=self.stacked,
                compiled=self.compiled,
                labelling=self.labelling,
                training=self.training,
            )

    def at(self, rates: Sequence[float]) -> list[Schedule | SoftSchedule]:
        """The protocol's schedule at each rate, for whole images."""
        return [_whole(self.protocol, self.data, rate) for rate in rates]

    def random(self, sets: Sequence[DistilledSet], learned: Sequence[float], test: TestSplit) -> Arm:
        """Random beside the sets, at a rate that is chosen on training images where they learned theirs."""
        chosen = [random_indices(self.data, one.ipc, int(one.manifest["seed"])) for one in sets]
        batches = [self.data.batch(index) for index in chosen]
        pairs = [(batch.x, batch.y) for batch in batches]
        if not learned:
            on_line = self.labelling.on_line() if self.labelling is not None else None
            arms = replace(self, labelling=on_line)
            return arms.run("random", pairs, self.at([self.protocol.lr] * len(sets)), test)
        held = TestSplit.of(validation_of(self.data, without=torch.cat(chosen)))
        tuning = replace(self, networks=math.ceil(TRAININGS / len(sets)), seed=Rng(self.seed).derive("tuning"))
        rate, tried = best_rate(
            (*RATES, sum(learned) / len(learned)),
            lambda rate: tuning.run(f"random, lr {rate:.3g}", pairs, self.at([rate] * len(sets)), held).mean,
        )
        return replace(self.run("random", pairs, self.at([rate] * len(sets)), test), tried=tried)


def _schedule(one: DistilledSet, protocol: Protocol, data: RealSet, rate: float) -> Schedule | SoftSchedule:
    """How networks are trained on a set."""
    if protocol.soft:
        return schedule_of(one, protocol, data, rate)
    return protocol.schedule(data.name, data.shape, rate)


def _check_resisting(protocol: Protocol) -> None:
    """Refuse a protocol of whose training de-biased training would leave out more than the schedule."""
    if protocol.soft:
        raise InputError(f"{protocol.name} trains on a teacher's labels; de-biased training takes a protocol without.")
    if protocol.cutmix or protocol.augment_mode != "single":
        raise InputError(
            f"{protocol.name} mixes images (CutMix) or takes several operations at once, which de-biased training does "
            "not; take dc-v1, dc-v1-dsa or dsa-quick-v1."
        )


def _whole(protocol: Protocol, data: RealSet, rate: float) -> Schedule | SoftSchedule:
    take = protocol.soft_schedule if protocol.soft else protocol.schedule
    return take(data.name, data.shape, rate)


def _load(distilled: Distilled | Sequence[Distilled]) -> list[DistilledSet]:
    many = [distilled] if isinstance(distilled, DistilledSet | str | Path) else list(distilled)
    if not many:
        raise InputError("There is no distilled set to evaluate.")
    return [one if isinstance(one, DistilledSet) else load_distilled(one) for one in many]


def real_for(distilled: DistilledSet, real: Any) -> RealSet:
    """The real set that a caller gives, or else the one that the set names, where that may be taken."""
    from datastill.data.real import RealSet

    if isinstance(real, RealSet):
        found = real
    elif real is not None:
        found = load_real(real)
    else:
        found = load_recorded(distilled.manifest["data"], distilled.space, distilled.folder)
    if found.test is None:
        raise InputError(f"{found.name} has no test split to evaluate on.")
    return found


def _check_alike(sets: list[DistilledSet]) -> None:
    """Several sets stand for one method at one size: anything else would be a mean over different things."""
    first = sets[0]
    for one in sets[1:]:
        for what, mine, theirs in (
            ("method", first.manifest["method"], one.manifest["method"]),
            ("images per class", first.ipc, one.ipc),
            ("space", first.space.id, one.space.id),
            ("weights against a bias", _weighed(first), _weighed(one)),
            ("surrogates", first.manifest.get("surrogates"), one.manifest.get("surrogates")),
        ):
            if mine != theirs:
                raise InputError(
                    f"The sets differ in their {what} ({mine} and {theirs}); evaluate them one by one, or use compare."
                )
    if len({digest([one.codes, one.labels]) for one in sets}) < len(sets):
        raise InputError("The same set is given more than once; each counts as evidence of its own, so give it once.")


def _weighed(one: DistilledSet) -> str:
    """How its real images were weighted, as it was asked for."""
    told = one.manifest.get("debias")
    return "none" if told is None else str(told.get("asked", told["how"]))


def _check_fit(distilled: DistilledSet, real: RealSet) -> None:
    if tuple(distilled.class_names) != tuple(real.class_names):
        raise InputError(
            f"The classes of the distilled set ({', '.join(distilled.class_names[:5])}, ...) are not those of "
            f"{real.name} ({', '.join(real.class_names[:5])}, ...), in the same order; give the data it was made from."
        )
    shape = tuple(distilled.images.shape[1:])
    if shape != tuple(real.shape):
        raise InputError(
            f"The distilled images are {shape} (channels, height, width) and those of {real.name} are "
            f"{tuple(real.shape)}; load the data at that size (--size)."
        )


def _auto_protocol(distilled: DistilledSet) -> str:
    return str(distilled.manifest.get("student", {}).get("protocol", "dc-v1"))


def network_for(distilled: DistilledSet, real: RealSet, network: Any) -> NetworkFactory:
    shapes: dict[str, Any] = {"channels": real.shape[0], "classes": real.classes, "size": real.shape[1:]}
    if network is not None:
        return resolve_network(network, **shapes)
    spec = distilled.manifest.get("network", {}).get("spec")
    if spec is None and "network" in distilled.manifest:
        name = distilled.manifest["network"].get("name", "a network of yours")
        raise InputError(f"The set was distilled with {name}; give the network to evaluate with (network=...).")
    if spec is None:
        return resolve_network(None, **shapes)
    return resolve_recorded(spec, "The set", "--network (network=)", **shapes)


def _made(one: DistilledSet) -> dict[str, Any]:
    kept = ("method", "hyper", "recipe", "ipc", "seed", "network", "debias", "surrogates", "cost", "notes")
    return {name: one.manifest[name] for name in kept if name in one.manifest}


def _rate_notes(protocol: Protocol, scored: Arm, baseline: Arm | None, learned: int) -> list[str]:
    """Which learning rates a protocol that takes learned ones was run at."""
    if not protocol.learned_lr:
        return []
    told = ", ".join(f"{rate:.4g}" for rate in scored.rates)
    if not learned:
        return [f"{protocol.name} takes a learned learning rate, and the set comes without one: it was run at {told}."]
    some = "" if learned == len(scored.rates) else f" ({len(scored.rates) - learned} of them had none)"
    notes = [f"Learning rates: {told}, learned with the sets{some}."]
    if baseline is not None:
        notes.append(
            f"Random: {baseline.rates[0]:.4g}, the best of {', '.join(f'{r:.4g}' for r in baseline.tried)} on real "
            "training images held back."
        )
    return notes


def _resisting_notes(training: DebiasedTraining, protocol: Protocol, ceiling: bool) -> list[str]:
    """That networks were not trained as the protocol says, and which of them were."""
    but = "; those on the whole real set were trained plainly" if ceiling else ""
    return [f"Networks were trained by {training}, not as {protocol.name} says{but}."]


def _notes(sets: list[DistilledSet], real: RealSet) -> list[str]:
    notes = list(real.notes)
    if len({digest(one.manifest["hyper"]) for one in sets}) > 1:
        notes.append("The sets were made with different hyper-parameters.")
    if real.test is not None and len(real.test) < 500:
        notes.append(f"{len(real.test)} test images: one of them is {100 / len(real.test):.1f} points.")
    made_from = {one.manifest["data"].get("fingerprint") for one in sets}
    if made_from != {real.fingerprint}:
        notes.append("The set was made from other data than it is evaluated on; Random comes from the latter.")
    return notes
