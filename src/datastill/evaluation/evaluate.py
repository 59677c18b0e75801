"""`evaluate`: a distilled set against Random under one protocol. `trained`: the networks that it scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from datastill.core.allocator import keep_freed_memory
from datastill.core.cost import Stopwatch, environment, peak_memory_bytes
from datastill.core.errors import InputError
from datastill.core.overrides import overrides
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Few, Seed, checked
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.evaluation import notes
from datastill.evaluation.ceiling import whole_set
from datastill.evaluation.conditions import Setup, macs_of
from datastill.evaluation.inputs import Distilled
from datastill.evaluation.metrics import TestSplit
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.rates import RATES, TRAININGS, best_rate, validation_of
from datastill.evaluation.retrieval import chances
from datastill.evaluation.scores import Arm, Evaluation
from datastill.evaluation.settled import Settled, Variation, settle
from datastill.models import Network
from datastill.sampling.inits import random_indices
from datastill.store.artifact import DistilledSet
from datastill.store.sizes import bytes_of_parts
from datastill.training.trainers import Labeled


@checked
def evaluate(
    distilled: Distilled | Sequence[Distilled],
    real: Any = None,
    *,
    protocol: str | Protocol = "auto",
    networks: Few = 5,
    network: Any = None,
    seed: Seed = 0,
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
    optimizer: str = "auto",
    augmented: bool = True,
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
        ceiling: whether to train on the whole real set too (30 passes, of pairs 50; cached).
        precision: "float32", or "bf16" for convolutions and matrix products of training and test.
        compile: "on", "off" or "auto": compiled code for training and test, for long evaluations on a CPU.
        stacked: train the networks of a set at once; None decides by device.
        labels: where the protocol trains on a teacher's labels: "auto" or "teacher" take them at training time, for
            Random as well; "soft" takes one for each image of both arms, and "hard" trains both in the same way on
            hard labels.
        teacher: who labels, a `Teacher` or its folder, instead of the one that comes with each set.
        teacher_network: what builds the teacher, where its network is not built in; None takes `network`, if that is
            not built in either.
        training: "plain", or a way that resists a bias of the set, which Random is then trained in too: "dfa" or
            "selecmix", with options as in "dfa:steps=4000"; see `datastill.training.debiased`. Of the protocol it keeps
            the augmentation.
        optimizer: "sgd", "adam" or "adamw", at its usual rate and decay, in the place of the protocol's, for Random as
            well; "auto" is the protocol's.
        augmented: False trains both arms on images as they are, without the protocol's augmentation.
        progress: told how far it is.

    Returns:
        Accuracies as fractions with their spread, the paired difference to Random, and the cost.

    Raises:
        InputError: classes or image shapes do not agree; no test split; bad arguments.
    """
    watch = Stopwatch()
    keep_freed_memory()
    runtime = Runtime.of(device, precision, compile, progress)
    variation = Variation(labels, teacher, teacher_network, training, stacked, optimizer, augmented)
    asked = settle(distilled, real, protocol, network, variation, runtime)
    if random:
        _refuse_no_teacher(asked)
    test = TestSplit.of(asked.data)
    setup = Setup(asked.factory, test, networks if asked.protocol.drawn else 1, seed, runtime, asked.protocol.metric)
    macs = _macs(asked, setup, len(test.y), random)
    setup = replace(setup, runtime=runtime.for_work(macs, not asked.factory.couples_samples))
    scored = setup.run(asked.sets[0].record.method_in_full, asked.labeled, asked.trainers)
    baseline = _random(asked, setup) if random else None
    top = whole_set(asked.data, asked.factory, seed, runtime) if ceiling else None
    return Evaluation(
        distilled=scored,
        random=baseline,
        ceiling=top,
        protocol=asked.protocol.name,
        network={**asked.factory.describe(), "spec": network if isinstance(network, str) else None},
        data=asked.data.describe(),
        cost={
            **watch.read(),
            "precision": precision,
            "compile": scored.compiled,
            "peak_memory_bytes": peak_memory_bytes(runtime.device),
            **environment(runtime.device),
        },
        seed=seed,
        training=None if asked.training is None else asked.training.describe(),
        labels=asked.labels,
        optimizer="" if asked.training is not None else asked.optimizer or asked.protocol.optimizer,
        augmented=augmented,
        names=[one.name + f", seed {one.record.seed}" for one in asked.sets],
        made=[_made(one) for one in asked.sets],
        notes=_notes(asked, scored, baseline, ceiling),
        chance=chances(test),
    )


@checked
def trained(
    distilled: Distilled,
    real: Any = None,
    *,
    protocol: str | Protocol = "auto",
    networks: Few = 1,
    network: Any = None,
    seed: Seed = 0,
    variation: Variation | None = None,
    runtime: Runtime | None = None,
) -> list[Network]:
    """Fresh networks trained on a distilled set: those that `evaluate` scores, one by one.

    Args:
        distilled, real, protocol, networks, network, seed: as for `evaluate`.
        variation: what is changed in the protocol's training; None leaves it.
        runtime: where and how; None takes the best device there is, as it is.

    Returns:
        The networks as they are after the last step, in train mode.

    Raises:
        InputError: see `evaluate`.
        Diverged: a loss is not finite.
    """
    runtime = Runtime.of() if runtime is None else runtime
    asked = settle(distilled, real, protocol, network, variation or Variation(), runtime)
    setup = Setup(asked.factory, None, networks, seed, runtime)
    return setup.train(asked.trainers[0], asked.labeled[0], 0, asked.sets[0].name, 1).networks


def _refuse_no_teacher(asked: Settled) -> None:
    """Random beside a set whose labels are stored takes the teacher's.

    Raises:
        InputError: it is not at hand.
    """
    for one, extras in zip(asked.sets, asked.extras, strict=True):
        if extras.bank is not None and extras.labeler is None:
            raise InputError(
                f"{one.name} has stored labels, and its teacher, who would label Random, is not at hand; give it "
                "(--teacher FOLDER), or leave Random out (--no-random)."
            )


def _macs(asked: Settled, setup: Setup, test: int, random: bool) -> float:
    """Multiply-accumulates of an evaluation."""
    sizes = [len(data.y) for data in asked.labeled] + [len(one.labels) for one in asked.sets if random]
    return macs_of(sizes, test, asked.protocol.passes, setup.networks, asked.factory.macs)


def _random(asked: Settled, setup: Setup) -> Arm:
    """Random beside the sets, at a rate that is chosen on training images where they learned theirs."""
    data = asked.data
    chosen = [random_indices(data, one.ipc, one.record.seed) for one in asked.sets]
    batches = [data.batch(index) for index in chosen]
    sets = [Labeled(batch.x, batch.y) for batch in batches]
    if not asked.learned or asked.training is not None:
        return setup.run("random", sets, asked.for_random(asked.protocol.lr))
    held = TestSplit.of(validation_of(data, without=torch.cat(chosen)))
    count, seed = math.ceil(TRAININGS / len(sets)), Rng(setup.seed).derive("tuning")
    tuning = replace(setup, test=held, networks=count, seed=seed)
    rate, tried = best_rate(
        (*(asked.protocol.tries or RATES), sum(asked.learned) / len(asked.learned)),
        lambda rate: tuning.run(f"random, lr {rate:.3g}", sets, asked.for_random(rate)).mean,
    )
    return replace(setup.run("random", sets, asked.for_random(rate)), tried=tried)


def _notes(asked: Settled, scored: Arm, baseline: Arm | None, ceiling: bool) -> list[str]:
    """What there is to say beside the numbers."""
    said = [*notes.of_sets(asked.sets, asked.data), *notes.of_network(asked.factory, asked.sets), *asked.notes]
    if not asked.protocol.drawn:
        name = asked.protocol.name
        said.append(f"{name} trains no network: there is one number for each set, whatever is asked for.")
    if asked.training is not None:
        return said + notes.of_training(asked.training, asked.protocol, ceiling)
    if asked.optimizer:
        return [*said, notes.of_optimizer(asked.optimizer, asked.protocol, scored)]
    return said + notes.of_rates(asked.protocol, scored, baseline, len(asked.learned))


def _made(one: DistilledSet) -> dict[str, Any]:
    kept = ("method", "hyper", "recipe", "ipc", "seed", "network", *overrides(), "cost", "notes")
    return {name: one.manifest[name] for name in kept if name in one.manifest} | {"bytes": bytes_of_parts(one)}
