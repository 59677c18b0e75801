"""What departures from released code change, measured on 8x8 digits in a few minutes.

    python benchmarks/departures.py                        # writes results/departures-digits.json, a table last
    python benchmarks/departures.py --only dc-epsilon idc-momentum
    python benchmarks/departures.py --show                 # the table of the file

Each departure is two forms of one run, ours and the other, from the same starts (seeds 0, 1, 2); their sets are scored
from the same weights and in the same orders. Where it is the training on a set that departs, it is trained in both
ways. The difference is theirs minus ours in points of test accuracy, with the half-width of a 95 % t-interval over the
three sets. ConvNet of width 32 and depth 2; settings are small, and the same for both. It says how large an effect is
here, not on other data.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from datastill import distill, evaluate, load_real
from datastill.augment import crops
from datastill.augment.dsa import Dsa, DsaRecord
from datastill.core.context import Context
from datastill.core.plan import Block, Plan, Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.decoders.multi_formation import MultiFormation
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.methods.dc import DC
from datastill.methods.dsa import DSA
from datastill.methods.idc import IDC
from datastill.methods.random import Random
from datastill.methods.rded import RDED
from datastill.methods.sre2l import SRe2L
from datastill.models import resolve_network
from datastill.sampling import inits
from datastill.store.files import write_json
from datastill.surrogates import trained as surrogates
from datastill.surrogates.on_real import TrainedOnReal
from datastill.training import soft
from datastill.training.hard import predict, train
from datastill.training.selecmix import Auxiliary, contradicting_pairs, mixed

NETWORK = "convnet:width=32,depth=2"
STRATEGY = "color_crop_cutout_scale_rotate"
SEEDS, NETWORKS = (0, 1, 2), 2
T_95 = 4.303  # of three sets

PLAIN = get_protocol("dc-v1")
AUGMENTED = dataclasses.replace(PLAIN, name="dc-v1 with DSA", augment=STRATEGY)
TILES = get_protocol("idc-quick-v1")


class SharedDraw(Dsa):
    """One draw for all classes, as two classes within one millisecond have it."""

    def draw(self, rows: int, *rest: Any, **options: Any) -> DsaRecord:
        return super().draw(1, *rest, **options).select(torch.zeros(rows, dtype=torch.int64))


class SharedDSA(DSA):
    """DSA whose classes share their augmentation."""

    def build(self, task: Task) -> Plan:
        plan = super().build(task)
        return dataclasses.replace(plan, augment=SharedDraw(STRATEGY))


class FirstMembers(IDC):
    """IDC that starts from the first images of each class, whatever the seed."""

    def build(self, task: Task) -> Plan:
        real = task.real
        plan = super().build(task)

        class First(inits.MixReal):
            def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
                with mock.patch.object(inits, "shuffled_members", lambda r, c, seed: real.class_index(c)):
                    return super().images(task, block, context)

        return dataclasses.replace(plan, init=First(self.factor))


class EveryStep(IDC):
    """IDC whose pixels are clamped after every step."""

    def build(self, task: Task) -> Plan:
        plan = super().build(task)
        assert isinstance(plan.decoder, MultiFormation)
        return dataclasses.replace(plan, decoder=dataclasses.replace(plan.decoder, clamp="step"))


class Walk(TrainedOnReal):
    """Full batches alone, from passes over the real set that go on from stretch to stretch."""

    rest = torch.zeros(0, dtype=torch.int64)

    def chosen(self, context: Context, count: int, name: str) -> Tensor:
        wanted, n = -(-count // self.schedule.batch) * self.schedule.batch, len(context.task.real)
        while len(self.rest) < wanted:
            order = torch.randperm(n, generator=context.generator("net-data", name, len(self.rest)))
            self.rest = torch.cat([self.rest, order[: n // self.schedule.batch * self.schedule.batch]])
        now, self.rest = self.rest[:wanted], self.rest[wanted:]
        return now


class WalkingIDC(IDC):
    """IDC whose network walks through passes over the real set."""

    def build(self, task: Task) -> Plan:
        plan = super().build(task)
        ours = plan.surrogates
        assert isinstance(ours, TrainedOnReal)
        walk = Walk(task.network, outer=ours.outer, images=ours.images, schedule=ours.schedule)
        return dataclasses.replace(plan, surrogates=walk)


def in_training_mode() -> AbstractContextManager[object]:
    """Batch norm takes the statistics of each batch in the match."""
    return mock.patch.object(surrogates, "freeze_batch_norm", lambda network, _: network.train())


@contextmanager
def unmixed_too() -> Iterator[None]:
    """The student passes each batch without its mix first, which moves its running statistics."""
    drawn, optimizer, students = soft._Batches._drawn, soft.optimizer_of, []

    def kept(network: torch.nn.Module, schedule: Any) -> Any:
        students.append(network)
        return optimizer(network, schedule)

    def twice(batches: Any, epoch: int) -> Iterator[Any]:
        for batch in drawn(batches, epoch):
            plain = dataclasses.replace(batch.trace, partner=None, box=None, lam=None)
            with torch.no_grad():
                students[-1](plain.apply(batches.images[batch.positions]))
            yield batch

    with mock.patch.object(soft._Batches, "_drawn", twice), mock.patch.object(soft, "optimizer_of", kept):
        yield


@contextmanager
def black_around() -> Iterator[None]:
    """What a padded crop brings in is black, where ours is 0 in the Space, a gray."""
    pad, black = crops.F.pad, float(load_real("digits").space.encode(torch.zeros(1, 1, 8, 8)).amin())
    with mock.patch.object(crops.F, "pad", lambda x, sides: pad(x, sides, value=black)):
        yield


def contradict(self: Auxiliary, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """SelecMix with a share per image, and similarities of an encoder in training mode."""
    coin, lam = torch.rand(1, generator=generator), torch.rand(len(y), 1, 1, 1, generator=generator) / 2
    with torch.no_grad():
        u = self.encoder.train()(x)
    return mixed(x, y, contradicting_pairs(u @ u.T, y, same_class=bool(coin < 0.5)), lam)


def shares_of_images() -> AbstractContextManager[object]:
    """SelecMix as released."""
    return mock.patch.object(Auxiliary, "contradict", contradict)


def tenth_kept() -> AbstractContextManager[object]:
    """Statistics of batch norm with the momentum that keeps a tenth of what was measured."""
    exact = surrogates.freeze_batch_norm

    def damped(network: Any, context: Context) -> None:
        exact(network, context)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.mul_(0.1)
            if name.endswith("running_var"):
                buffer.mul_(0.1).add_(0.9)

    return mock.patch.object(surrogates, "freeze_batch_norm", damped)


@dataclass(frozen=True)
class Departure:
    """Two forms of one run."""

    page: str
    says: str
    method: type
    hyper: dict[str, Any]
    other: dict[str, Any] = field(default_factory=dict)  #: values of the other form over `hyper`
    other_method: type | None = None
    ipc: int = 1
    protocol: Protocol = PLAIN
    network: str = NETWORK
    around: Callable[[], AbstractContextManager[object]] = nullcontext  #: in which the other form runs and is scored
    data: str = "digits"
    training: str = "plain"


DC_1 = {"steps": 150, "real_batch": 64, "init": "real"}
DC_10 = {"steps": 30, "outer": 10, "inner": 50, "real_batch": 64, "init": "real"}
DSA_1 = {**DC_1, "augment": STRATEGY}
BATCH_NORM = f"{NETWORK},norm=batch"
RDED_1 = {"candidates": 50, "crops": 3}
IDC_1 = {"steps": 200, "outer": 10, "real_batch": 32, "net_images": 200, "image_lr": 5e-3}

DEPARTURES = {
    "dc-epsilon-ipc1": Departure("dc", "additive epsilon, 1 per class", DC, DC_1, {"parity": True}),
    "dc-epsilon-ipc10": Departure("dc", "additive epsilon, 10 per class", DC, DC_10, {"parity": True}, ipc=10),
    "dc-classes": Departure("dc", "a pass for each class (--engine loop)", DC, DC_1, {"engine": "loop"}),
    "dc-batch-norm": Departure("dc", "a tenth of the statistics", DC, DC_1, network=BATCH_NORM, around=tenth_kept),
    "dsa-draws": Departure(
        "dsa", "one augmentation for all classes", DSA, DSA_1, other_method=SharedDSA, protocol=AUGMENTED
    ),
    "dsa-flips": Departure(
        "dsa", "digits flipped too", DSA, DSA_1, {"augment": f"{STRATEGY}_flip"}, protocol=AUGMENTED
    ),
    "idc-momentum": Departure("idc", "plain momentum", IDC, IDC_1, {"sequential": False}, protocol=TILES),
    "idc-starts": Departure("idc", "the first of each class", IDC, IDC_1, other_method=FirstMembers, protocol=TILES),
    "idc-range": Departure("idc", "clamped at every step", IDC, IDC_1, other_method=EveryStep, protocol=TILES),
    "idc-factor": Departure("idc", "factor 1", IDC, IDC_1, {"factor": 1}, protocol=TILES),
    "idc-epochs": Departure(
        "idc", "full batches, walking through passes", IDC, IDC_1, other_method=WalkingIDC, protocol=TILES
    ),
    "idc-batch-norm": Departure(
        "idc",
        "batch norm in training mode",
        IDC,
        {**IDC_1, "engine": "loop"},
        protocol=TILES,
        network=BATCH_NORM,
        around=in_training_mode,
    ),
    "rded-unmixed": Departure(
        "rded",
        "the student passes unmixed images too",
        RDED,
        RDED_1,
        protocol=get_protocol("rded-v1"),
        network=BATCH_NORM,
        around=unmixed_too,
    ),
    "sre2l-padding": Departure(
        "sre2l",
        "crops padded with black",
        SRe2L,
        {"steps": 100},
        protocol=get_protocol("sre2l-cifar-v1"),
        network=BATCH_NORM,
        around=black_around,
    ),
    "selecmix-shares": Departure(
        "debias",
        "a share per image, similarities in training mode",
        Random,
        {},
        ipc=10,
        around=shares_of_images,
        data="cmnist:base=digits,ratio=0.05",
        training="selecmix:steps=300",
    ),
}


def compare(one: Departure) -> dict[str, Any]:
    """Both forms from every seed."""
    started, real = time.process_time(), load_real(one.data)
    ours, theirs, moved = [], [], []
    for seed in SEEDS:
        shared = {"ipc": one.ipc, "network": one.network, "seed": seed, "device": "cpu"}
        settings = {"protocol": one.protocol, "networks": NETWORKS, "network": one.network, "training": one.training}
        first = distill(one.method, real, **shared, **one.hyper)
        ours.append(100 * evaluate(first, real, **settings, seed=seed, random=False).mean)
        with one.around():
            second = distill(one.other_method or one.method, real, **shared, **{**one.hyper, **one.other})
            theirs.append(100 * evaluate(second, real, **settings, seed=seed, random=False).mean)
        if first.codes["images"].shape == second.codes["images"].shape:
            moved.append(float((first.codes["images"] - second.codes["images"]).square().mean().sqrt()))
    return {
        "page": one.page,
        "other": one.says,
        "ipc": one.ipc,
        "settings": {
            **one.hyper,
            "network": one.network,
            "protocol": one.protocol.name,
            "data": one.data,
            "training": one.training,
        },
        "changes": {**one.other},
        "ours": [round(a, 3) for a in ours],
        "theirs": [round(a, 3) for a in theirs],
        **interval([b - a for a, b in zip(ours, theirs, strict=True)]),
        "rms_of_images": round(sum(moved) / len(moved), 9) if moved else None,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def best_of_four(real: RealSet) -> dict[str, Any]:
    """What the best of four scores on test data tells above the last, over the same trainings."""
    started = time.process_time()
    assert real.test is not None
    test = real.test.batch(torch.arange(len(real.test)))
    factory = resolve_network(NETWORK, channels=1, classes=10, size=real.shape[1:])
    schedule = TILES.schedule(real.name, real.shape)
    quarters = [round(schedule.passes * k / 4) - 1 for k in (1, 2, 3, 4)]
    last, best = [], []
    for seed in SEEDS:
        made = distill(IDC, real, ipc=1, network=NETWORK, seed=seed, device="cpu", **IDC_1)
        for k in range(NETWORKS):
            rng, scores = Rng(seed).child("best-of-four", k), list[float]()
            network = factory(rng.derive("network"))

            def score(p: int, loss: Tensor, network: Any = network, scores: list[float] = scores) -> None:
                if p in quarters:
                    right = predict(network, test.x).argmax(1) == test.y
                    scores.append(100 * float(right.double().mean()))

            train(network, made.images, made.targets, schedule, rng, on_pass=score)
            last.append(scores[-1])
            best.append(max(scores))
    sets = [
        sum(best[k] - last[k] for k in range(s * NETWORKS, (s + 1) * NETWORKS)) / NETWORKS for s in range(len(SEEDS))
    ]
    return {
        "page": "idc",
        "other": "best of four scores on test data",
        "ipc": 1,
        "settings": {**IDC_1, "network": NETWORK, "protocol": TILES.name},
        "changes": {},
        "ours": [round(a, 3) for a in last],
        "theirs": [round(a, 3) for a in best],
        **interval(sets),
        "rms_of_images": 0.0,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def short_gradients(real: RealSet) -> dict[str, Any]:
    """What the additive epsilon makes of a gradient's distance to itself, before and after training on the images.

    Ten images per class; the mean over the rows of all classes, which is 0 with an exact cosine.
    """
    from datastill.engines.class_gradients import class_gradients
    from datastill.objectives.gradient_distances import make_distance, parameter_names
    from datastill.training.hard import Schedule

    factory = resolve_network(NETWORK, channels=1, classes=10, size=real.shape[1:])
    batch, found = real.batch(inits.random_indices(real, 10, 0)), {}
    for passes in (0, 50, 450, 2000):
        network = factory(0)
        schedule = Schedule(passes, lr=0.01, momentum=0.0, weight_decay=0.0)
        train(network, batch.x, batch.y, schedule, Rng(0))
        names = parameter_names(network, "matrices")
        gradients = class_gradients(network, batch.x, batch.y, torch.arange(10), names=names)
        rows = sum(len(dict(network.named_parameters())[name]) for name in names)
        published, exact = (
            make_distance("row-cosine", parity)(gradients, gradients) / rows for parity in (True, False)
        )
        found[passes] = {"published": float(published.mean()), "exact": float(exact.mean())}
    return {"passes": found}


def interval(differences: list[float]) -> dict[str, float]:
    """The mean of three differences, and the half-width of its 95 % t-interval."""
    width = T_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"difference": round(sum(differences) / len(differences), 3), "interval_95": round(width, 3)}


def show(record: dict[str, Any]) -> str:
    """The table, as Markdown."""
    lines = [
        "| page | the other form | ours, % | theirs, % | difference, points | RMS of pixels | CPU s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in record["departures"].values():
        mean = [f"{sum(one[side]) / len(one[side]):.1f}" for side in ("ours", "theirs")]
        moved = "–" if one["rms_of_images"] is None else f"{one['rms_of_images']:.2g}"
        lines.append(
            f"| {one['page']} | {one['other']} | {mean[0]} | {mean[1]} | {one['difference']:+.1f} ± "
            f"{one['interval_95']:.1f} | {moved} | {one['cpu_seconds']:.0f} |"
        )
    if "short_gradients" in record:
        told = [f"{passes}: {v['published']:.3f}" for passes, v in record["short_gradients"]["passes"].items()]
        lines += ["", "Distance per row of a gradient to itself with the additive epsilon, by passes of training: "]
        lines[-1] += ", ".join(told) + " (exact: 0)."
    return "\n".join(lines)


def main() -> None:
    """All that is asked for, a line each while it goes on."""
    kinds = [*DEPARTURES, "idc-last-word", "dc-short-gradients"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=kinds, choices=kinds)
    parser.add_argument("--out", type=Path, default=Path("results/departures-digits.json"))
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    record: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {"departures": {}}
    torch.set_num_threads(1)
    real = load_real("digits")
    for name in () if given.show else given.only:
        if name == "dc-short-gradients":
            record["short_gradients"] = short_gradients(real)
        else:
            found = best_of_four(real) if name == "idc-last-word" else compare(DEPARTURES[name])
            record["departures"][name] = found
            print(name, found["difference"], "±", found["interval_95"], f"({found['cpu_seconds']} s)", flush=True)
        write_json(given.out, record)
    print(show(record))


if __name__ == "__main__":
    main()
