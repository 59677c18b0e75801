"""What an evaluation has to say beside its numbers, a sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datastill.engines.statistics import batch_normed
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.retrieval import KS
from datastill.evaluation.scores import Arm
from datastill.store.artifact import DistilledSet
from datastill.store.files import digest
from datastill.training.debiased import DebiasedTraining

if TYPE_CHECKING:
    from datastill.data.captions import Captions
    from datastill.data.real import RealSet
    from datastill.models import NetworkFactory

#: Of a weighted set and a hold-out.
HELD_OUT = (
    "The test images were held out of the data that was weighed, so they have its bias: a set that is weighted against "
    "it may score lower on them and be better. Put test images without that bias into a sub-folder `test` beside one "
    "`train` (or name them by --test)."
)
#: Images of a class up to which batch norm is told of.
SMALL = 10


def of_sets(sets: list[DistilledSet], real: RealSet) -> list[str]:
    """On the sets and the data that they are scored on."""
    notes = [*dict.fromkeys(one.told for one in sets if one.told), *real.notes]
    if len({digest(one.record.hyper) for one in sets}) > 1:
        notes.append("The sets were made with different hyper-parameters.")
    if real.test is not None and real.test.captions is not None:
        notes += _of_pairs(real.test.captions)
    elif real.test is not None and len(real.test) < 500:
        notes.append(f"{len(real.test)} test images: one of them is {100 / len(real.test):.1f} points.")
    if real.held_out and any(kind.weighs for one in sets for kind, _ in one.record.changes):
        notes.append(HELD_OUT)
    made_from = {one.record.data.fingerprint for one in sets}
    if made_from != {real.fingerprint}:
        notes.append("The set was made from other data than it is evaluated on; Random comes from the latter.")
    return notes


def _of_pairs(captions: Captions) -> list[str]:
    """On few test images and captions."""
    counts = {"IR": ("images", len(captions.image.unique())), "TR": ("captions", len(captions.texts))}
    notes = []
    for kind, (what, count) in counts.items():
        left_out = [f"{kind}@{k}" for k in KS if k >= count]
        if left_out:
            told = " and ".join(left_out) + (" are" if len(left_out) > 1 else " is")
            notes.append(f"{count} test {what}: {told} left out, which would be 100 % for any network.")
    if not notes and (images := counts["IR"][1]) < 500:
        notes.append(f"{images} test images: one of them is {100 / images:.1f} points of TR@k.")
    return notes


def of_network(factory: NetworkFactory, sets: list[DistilledSet]) -> list[str]:
    """On batch norm, whose running statistics are those of the images that a network is trained on."""
    images = max(len(one.targets) for one in sets)
    few = images <= SMALL * len(sets[0].class_names)
    if not few or not batch_normed(factory):
        return []
    return [
        f"{factory} keeps running statistics (batch norm), here of {images} images that "
        "need not be like real ones: it can score below what it has learned. Group or instance norm has none."
    ]


def of_rates(protocol: Protocol, scored: Arm, baseline: Arm | None, learned: int) -> list[str]:
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


def of_optimizer(name: str, protocol: Protocol, scored: Arm) -> str:
    """That another optimizer than the protocol's trained the networks."""
    rate, own = f"{scored.rates[0]:.4g}", protocol.optimizer
    return f"Networks were trained by {name} at its usual learning rate, {rate}, where {protocol.name} has {own}."


def of_training(training: DebiasedTraining, protocol: Protocol, ceiling: bool) -> list[str]:
    """That networks were not trained as the protocol says, and which of them were."""
    but = "; those on the whole real set were trained plainly" if ceiling else ""
    return [f"Networks were trained by {training}, not as {protocol.name} says{but}."]
