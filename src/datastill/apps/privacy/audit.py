"""`audit`: what a distilled set tells of the images that it was made from, as far as a few attacks and searches see."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.apps.privacy.lira import confidence, lira_offline, lira_online
from datastill.apps.privacy.membership import Membership, attack, membership
from datastill.apps.privacy.shadows import Recipe, Shadows, logits_of
from datastill.apps.privacy.visual import Visual, lpips_look, visual
from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Amount, Count, Few, Processes, Seed, checked
from datastill.core.rng import Rng
from datastill.data.stratify import hold_out
from datastill.evaluation.inputs import load_sets, real_for
from datastill.evaluation.protocols import get_protocol
from datastill.launch import check_workers
from datastill.store.artifact import DistilledSet

if TYPE_CHECKING:
    from datastill.data.real import RealSet

FORMAT = "datastill-privacy"


@dataclass(frozen=True)
class Audit:
    """What was found. No number here is a guarantee: an attack that finds nothing may be too weak.

    Attributes:
        membership: by the loss of networks that were trained on the set.
        networks: the same for each network alone.
        visual: by way to look.
        lira: by variant, where shadows were made.
        labels: the same attack on networks trained on hard labels, where the set's labels are soft.
        accuracy: of the networks on the images that are no members, a fraction.
        config: what was audited, and how.
    """

    membership: Membership
    networks: Sequence[Membership]
    visual: Sequence[Visual]
    lira: Mapping[str, Membership]
    labels: Membership | None
    accuracy: float
    config: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def leaks(self) -> list[str]:
        """What was found to leak, a sentence each."""
        found = []
        for name, one in {"its loss": self.membership, **{_called(n): m for n, m in self.lira.items()}}.items():
            if one.found and one.auc > 0.5:
                found.append(f"Members are told from others by {name} (AUC {one.auc:.3f}).")
        for look in self.visual:
            if look.copies:
                found.append(f"{look.copies} synthetic images are copies of training images, or nearly ({look.by}).")
        if self.labels is not None and self.labels_gain > 3 * self.membership.auc_error:
            found.append(f"Soft labels tell more of members than hard ones (AUC {self.labels_gain:+.3f}).")
        return found

    @property
    def labels_gain(self) -> float:
        """How much larger the area is with soft labels than with hard ones."""
        return 0.0 if self.labels is None else self.membership.auc - self.labels.auc

    @property
    def verdict(self) -> str:
        """In words that promise nothing."""
        if self.leaks:
            return "This set leaks. " + " ".join(self.leaks)
        count = len(self.membership.members)
        return (
            f"These attacks found no leak on {count:,} members and as many others. That bounds nothing: other attacks "
            "may find one, and only a mechanism with an epsilon limits what any attack can."
        )

    def rows(self) -> list[list[str]]:
        """The attacks, for a table: name, advantages, AUC, and true-positive rates at low false-positive rates."""
        found = [_row("loss", self.membership)]
        found += [_row(_called(name), one) for name, one in self.lira.items()]
        found += [_row("loss, hard labels", self.labels)] if self.labels is not None else []
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; scores of samples are left out, distances of images are in it."""
        return {
            "format": FORMAT,
            "version": 1,
            **self.config,
            "verdict": self.verdict,
            "leaks": self.leaks,
            "accuracy": self.accuracy,
            "membership": self.membership.to_dict(),
            "networks": [one.to_dict() for one in self.networks],
            "lira": {name: one.to_dict() for name, one in self.lira.items()},
            "hard_labels": None if self.labels is None else self.labels.to_dict(),
            "visual": [one.to_dict() for one in self.visual],
            "notes": list(self.notes),
        }


#: Shadows below which neither side of a sample has a mean and a spread.
LEAST_SHADOWS = 4
#: Heads of `Audit.rows`.
HEADS = ("attack", "advantage %", "oracle %", "AUC", "± by chance", "TPR at FPR .1 %", "at 1 %", "at 5 %")


def _called(name: str) -> str:
    return f"LiRA, {name}-line"


def _row(name: str, one: Membership) -> list[str]:
    told = [f"{one.advantages[kind]:+.2f}" if kind in one.advantages else "–" for kind in ("calibration", "oracle")]
    rates = [f"{100 * value:.1f} %" for value in one.tpr.values()]
    return [name, *told, f"{one.auc:.3f}", f"{one.auc_error:.3f}", *rates]


@checked
def audit(
    distilled: DistilledSet | str | Path,
    real: Any = None,
    *,
    members: RealSet | None = None,
    others: RealSet | None = None,
    images: Count = 1000,
    networks: Few = 3,
    protocol: str = "auto",
    network: str | None = None,
    shadows: Amount = 0,
    lpips: str | Path | None = None,
    seed: Seed = 0,
    out: str | Path | None = None,
    workers: Processes = 1,
    device: str = "auto",
    progress: Progress = silent,
) -> Audit:
    """Attack a distilled set: membership by losses, copies by nearest images, LiRA where shadows are asked for.

    Members are training images of the set and others are test images, equally many. For the setting of the literature,
    distill from one half of a set and give both halves as `members` and `others`.

    Args:
        distilled: the set, or its folder.
        real: the real set that it was made from; None takes the source that it names.
        members, others: images that it was made from, and images that it was not.
        images: members, and others, at most.
        networks: fresh networks that are trained on the set, whose losses are averaged.
        protocol: how; "auto" takes the one that the set asks for.
        network: an architecture to train; None takes the set's own, which shadows are always distilled with.
        shadows: shadow sets for LiRA, an even number; each is distilled anew from half of all samples. 0 does without.
        lpips: file of AlexNet's weights, for the perceptual search.
        seed: of samples, networks and shadows.
        out: folder where shadows are kept and found again; None keeps none.
        workers: processes for shadows; "ray" or "ray:4": those of a Ray cluster.
        device: "auto", "cpu", "cuda", "mps".
        progress: told on the way.

    Raises:
        InputError: members without others, unequal sets, or what `evaluate` refuses.
    """
    check_workers(workers)
    if shadows and (shadows % 2 or shadows < LEAST_SHADOWS):
        raise InputError(f"Shadows come in pairs: take an even number from 4 on, or none, not {shadows}.")
    (made,) = load_sets(distilled)
    data, inside, outside = (side.with_space(made.space) for side in _sides(made, real, members, others))
    name = made.record.student.protocol if protocol == "auto" else get_protocol(protocol).name
    own = None if made.record.network is None else made.record.network.spec
    spec = own if network is None else network
    recipe = Recipe(made.record.method, made.ipc, dict(made.record.hyper), spec, name, device, own)
    pairs = _samples(inside, outside, images, seed)
    pool = [inside.subset(pairs[0]), outside.subset(pairs[1])]
    progress("networks", 0, networks, {})
    logits = [logits_of(made, data, side, recipe, seed, networks) for side in pool]
    looks = [visual(made.pixels, inside, outside)]
    if lpips is not None:
        looks.append(visual(made.pixels, inside, outside, lpips_look(lpips), "LPIPS"))
    losses = [_losses(found, side) for found, side in zip(logits, pool, strict=True)]
    right = torch.stack([(one.argmax(1) == pool[1].labels).double().mean() for one in logits[1]])
    config = {
        "set": made.name, "seed": made.record.seed, "method": made.record.method, "ipc": made.ipc,
        "data": data.name, "protocol": name, "audit_seed": seed, "shadows": shadows, "members_of_set": len(inside),
    }  # fmt: skip
    return Audit(
        membership=membership(losses[0].mean(0), losses[1].mean(0), seed=seed),
        networks=[membership(losses[0][k], losses[1][k], seed=seed) for k in range(networks)],
        visual=looks,
        lira=_lira(logits, pool, recipe, shadows, seed, out, workers, progress) if shadows else {},
        labels=_hard_labels(made, data, pool, recipe, seed, networks),
        accuracy=float(right.mean()),
        config=config,
        notes=_notes(made, shadows, lpips is not None),
    )


def _notes(made: DistilledSet, shadows: int, perceptual: bool) -> list[str]:
    said = [] if perceptual else ["The perceptual search (LPIPS) was left out: no weights were given."]
    changed = [kind.label for kind, _ in made.record.changes]
    if shadows and changed:
        said.append(f"Shadows were made without what the run changed in its method: {', '.join(changed)}.")
    return said


def _losses(logits: Sequence[Tensor], side: RealSet) -> Tensor:
    """Cross-entropy of every sample under each network, (networks, n)."""
    return torch.stack([F.cross_entropy(one, side.labels, reduction="none") for one in logits])


def _sides(
    made: DistilledSet, real: Any, members: RealSet | None, others: RealSet | None
) -> tuple[RealSet, RealSet, RealSet]:
    """The real set, and its images that are members and that are not."""
    if (members is None) != (others is None):
        raise InputError("Give both members and others, or neither.")
    if members is not None and others is not None:
        return members, members, others
    data = real_for(made, real)
    told = made.record.data.fingerprint
    if told and told != data.with_space(made.space).fingerprint:
        raise InputError(
            f"{data.name} does not hold the images that the set was made from (another fingerprint), so nobody knows "
            "who the members are; give the data as it was (--data, --train)."
        )
    return data, data, data.known_test


def _samples(members: RealSet, others: RealSet, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of equally many of both sides, each class with its share of its side."""
    count = min(images, len(members), len(others))
    found = []
    for name, side in (("members", members), ("others", others)):
        if count == len(side):
            found.append(torch.arange(count))
            continue
        drawn = hold_out(side.labels, side.classes, count, seed, name)[1]
        order = torch.randperm(len(side), generator=Rng(seed).generator(name))
        spare = order[~torch.isin(order, drawn)][: max(0, count - len(drawn))]
        found.append(torch.cat([drawn[:count], spare]).sort().values)
    return found[0], found[1]


def _hard_labels(
    made: DistilledSet, data: RealSet, pool: Sequence[RealSet], recipe: Recipe, seed: int, networks: int
) -> Membership | None:
    """The attack on networks that saw the class of each image in the place of its soft label."""
    if made.label_kind not in ("probabilities", "logits"):
        return None
    hard = replace(made, labels=F.one_hot(made.hard_labels, len(made.class_names)).float())
    hard.manifest = {**made.manifest, "label_kind": "probabilities"}
    losses = [_losses(logits_of(hard, data, side, recipe, seed, networks), side).mean(0) for side in pool]
    return membership(losses[0], losses[1], seed=seed)


def _lira(
    logits: Sequence[Sequence[Tensor]], pool: Sequence[RealSet], recipe: Recipe, count: int, seed: int,
    out: str | Path | None, workers: int | str, progress: Progress,
) -> dict[str, Membership]:  # fmt: skip
    """Both variants, the target's confidence averaged over its networks."""
    made = Shadows.of(pool, recipe, count, seed)
    target = torch.cat([torch.stack([confidence(one, side.labels) for one in logits[k]]).mean(0)
                        for k, side in enumerate(pool)])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        phi = made.confidences(Path(out or folder), workers=workers, progress=progress)
    cut, found = len(pool[0]), {}
    for name, scores in (
        ("off", lira_offline(target, phi, made.inside)),
        ("on", lira_online(target, phi, made.inside)),
    ):
        found[name] = attack(scores[:cut], scores[cut:])
    return found
