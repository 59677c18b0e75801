"""Who labels in an evaluation whose protocol takes soft labels: the teacher of each set, for both arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from datastill.core.cost import pick_device
from datastill.core.errors import InputError
from datastill.core.plan import Progress, silent
from datastill.core.ranges import Count, Seed, checked
from datastill.evaluation.protocols import Protocol, get_protocol
from datastill.labels.bank import LabelBank
from datastill.labels.labeler import Labeler
from datastill.models import is_built_in
from datastill.store.artifact import DistilledSet
from datastill.store.hub import refuse_hub
from datastill.store.sizes import bytes_in_words
from datastill.store.unfinished import remove_rests
from datastill.surrogates.teachers import Teacher, as_teacher, load_teacher

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.training.soft import SoftSchedule

#: Folders beside a set.
TEACHER, BANK = "teacher", "labels"
#: How a caller names a teacher's network, in errors.
OPTION = "--teacher-network (teacher_network=)"


@dataclass(frozen=True)
class Labeling:
    """The labeler and the bank of each set; neither where labels are hard.

    Attributes:
        fixed: whether each image is labeled once and not each view of it.
    """

    labelers: Sequence[Labeler | None]
    banks: Sequence[LabelBank | None]
    notes: list[str] = field(default_factory=list)
    fixed: bool = False


def labeling(
    sets: Sequence[DistilledSet],
    protocol: Protocol,
    schedule: SoftSchedule,
    labels: str,
    teacher: Any,
    real: RealSet,
    device: torch.device,
    network: Any = None,
) -> Labeling:
    """Who labels each set under a soft protocol.

    Args:
        labels: "auto" or "teacher": the teacher that comes with a set, or `teacher`, labels every view; "soft": it
            labels each image once; "hard": nobody does.
        teacher: one for all sets: a `Teacher` or its folder; None takes that of each set.
        network: what builds a teacher whose network is not built in.

    Raises:
        InputError: a set comes without a teacher and without a bank that fits, and none is given; or its bank is of
            another teacher than the one that comes with it.
    """
    if labels == "hard":
        return Labeling([None] * len(sets), [None] * len(sets), ["Labels: hard, for both arms."])
    given = None if teacher is None else as_teacher(teacher, network, OPTION)
    teachers = [[given] if given is not None else teachers_of(one, network) for one in sets]
    fixed = labels == "soft"
    banks = [None if given is not None or fixed else bank_of(one, schedule) for one in sets]
    missing = [one.name for one, who, bank in zip(sets, teachers, banks, strict=True) if not who and bank is None]
    if missing:
        raise InputError(
            f"{protocol.name} trains on a teacher's labels, and {missing[0]} comes without a teacher; give one "
            "(--teacher FOLDER), or train on hard labels (--labels hard)."
        )
    labelers = [
        None
        if not own
        else Labeler(
            [t.seen_from(real.space, real.class_names).to(device) for t in own],
            mode="eval" if fixed else schedule.teacher_mode,
            combine=one.record.student.combine if len(own) > 1 else "single",
        )
        for one, own in zip(sets, teachers, strict=True)
    ]
    for one, labeler, bank in zip(sets, labelers, banks, strict=True):
        if labeler is not None and bank is not None and not bank.is_of(labeler):
            raise InputError(
                f"The labels stored with {one.name} are not of the teacher that comes with it, which would label "
                f"Random; name one teacher for both (--teacher FOLDER), or remove {one.folder}/{BANK}."
            )
    if fixed:
        return Labeling(labelers, banks, _notes_of_fixed(sets[0], teachers[0], len(real.class_names)), True)
    return Labeling(labelers, banks, _notes(sets, teachers, banks) + _left_aside(sets[0], banks[0], given is not None))


def teachers_of(one: DistilledSet, network: Any = None) -> list[Teacher]:
    """The teachers that a set was made with, where they are at hand; `network` builds those not built in.

    The folder of the first is `teacher`, those of others are `teacher-1`, `teacher-2`, ...
    """
    found: list[Teacher] = []
    while True:
        name = f"{TEACHER}-{len(found)}" if found else TEACHER
        companion = one.companions.get(name)
        if isinstance(companion, Teacher):
            found.append(companion)
        elif one.folder is not None and (one.folder / name).is_dir():
            known = is_built_in(one.manifest.get("companions", {}).get(name, {}).get("network"))
            found.append(load_teacher(one.folder / name, None if known else network, OPTION))
        else:
            return found


def bank_of(one: DistilledSet, schedule: SoftSchedule) -> LabelBank | None:
    """The label bank beside a set, if it was made for this way of training; a damaged one is refused."""
    if one.folder is None or not (one.folder / BANK).is_dir():
        return None
    bank = LabelBank.open(one.folder / BANK)
    fits = bank.spec == schedule.trace and bank.batch == schedule.batch and bank.mode == schedule.teacher_mode
    if not fits:
        return None
    bank.check(one.images)
    return bank


def set_bytes(one: DistilledSet) -> int:
    """Bytes of the stored images as 8-bit pixels."""
    return sum(t.numel() for t in one.codes.values())


def _notes(sets: Sequence[DistilledSet], teachers: list[list[Teacher]], banks: Sequence[LabelBank | None]) -> list[str]:
    size, weight, bank = set_bytes(sets[0]), sum(t.nbytes for t in teachers[0]), banks[0]
    if not teachers[0]:
        notes = ["Labels: stored ones; the teacher is not at hand."]
    else:
        notes = [f"Labels: by the teacher ({_called(teachers[0])}), for Random as well."]
    if bank is not None:
        notes.append(f"Bytes: images {bytes_in_words(size)} at 8 bits, stored labels {bytes_in_words(bank.nbytes)}.")
    else:
        notes.append(
            f"Bytes: images {bytes_in_words(size)} at 8 bits, teacher {bytes_in_words(weight)}, which training needs."
        )
    return notes


def _left_aside(one: DistilledSet, bank: LabelBank | None, given: bool) -> list[str]:
    """On labels that are stored beside a set and not trained on."""
    if bank is not None or one.folder is None or not (one.folder / BANK).is_dir():
        return []
    why = "a teacher was named" if given else "they were made for another protocol"
    return [f"The stored labels beside the set are left aside: {why}."]


def _called(teachers: list[Teacher]) -> str:
    first = teachers[0]
    accuracy = first.record.get("accuracy")
    told = f", {100 * accuracy:.1f} % on the test split" if accuracy is not None else ""
    if not told and "trial_accuracy" in first.record:
        told = f", {100 * first.record['trial_accuracy']:.1f} % on training images"
    more = f", and {len(teachers) - 1} more" if len(teachers) > 1 else ""
    return f"{first.spec or type(first.network).__name__}{told}{more}"


def _notes_of_fixed(one: DistilledSet, teachers: list[Teacher], classes: int) -> list[str]:
    """Labels that could be stored with the images: a probability of two bytes for each class."""
    size, stored = set_bytes(one), 2 * classes * len(one.images)
    return [
        f"Labels: soft, one for each image, by the teacher ({_called(teachers)}), for Random as well.",
        f"Bytes: images {bytes_in_words(size)} at 8 bits, labels {bytes_in_words(stored)}.",
    ]


@checked
def relabel(
    distilled: DistilledSet,
    real: RealSet,
    protocol: str | Protocol = "auto",
    *,
    passes: Count | None = None,
    teacher: Any = None,
    teacher_network: Any = None,
    dtype: str = "float16",
    top_k: Count | None = None,
    seed: Seed = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> LabelBank:
    """Store a teacher's labels of every view of a protocol beside a saved set, in its folder `labels`.

    Whoever trains on the set then needs no teacher: `evaluate` under the protocol takes the bank.

    Args:
        real: the data that the set was made from; says Space, classes, and whether images may be mirrored.
        protocol: a soft protocol; "auto" takes the one that the set asks for.
        passes: how many to store; training comes back to the first when they are used up. None stores all.
        teacher: who labels; None takes the teacher that comes with the set.
        teacher_network: what builds the teacher, where its network is not built in.
        dtype: "float16" or "int8"; top_k: largest logits that are kept for each view, None for all.

    Raises:
        InputError: the set is not saved, has labels already or no teacher; or the protocol takes no soft labels.
    """
    if distilled.folder is None:
        raise InputError("Labels are stored beside a set; save it first, or distill with out=.")
    refuse_hub(distilled.folder, "Labels are stored")
    name = distilled.record.student.protocol if protocol == "auto" else protocol
    recipe = get_protocol(name) if isinstance(name, str) else name
    if not recipe.soft:
        raise InputError(f"{recipe.name} trains on the set's own labels; name a soft protocol, such as soft-quick-v1.")
    remove_rests(distilled.folder / BANK)
    if (distilled.folder / BANK).exists():
        raise InputError(f"{distilled.folder / BANK} is there already; remove it to label anew.")
    where = pick_device(device)
    data = real.with_space(distilled.space)
    schedule = schedule_of(distilled, recipe, data)
    known = as_teacher(teacher, teacher_network, OPTION) if teacher is not None else None
    own = [known] if known is not None else teachers_of(distilled, teacher_network)
    who = labeling([distilled], recipe, schedule, "teacher", known, data, where, teacher_network)
    labeler = who.labelers[0]
    assert labeler is not None
    return LabelBank.make(
        distilled.folder / BANK,
        distilled.images,
        labeler,
        schedule.trace,
        epochs=schedule.epochs if passes is None else passes,
        batch=schedule.batch,
        seed=seed,
        dtype=dtype,
        top_k=top_k,
        temperature=schedule.temperature if top_k is not None else None,
        teacher=own[0].describe(),
        space=distilled.space,
        progress=progress,
        device=where,
    )


def schedule_of(one: DistilledSet, protocol: Protocol, data: RealSet, rate: float | None = None) -> SoftSchedule:
    """How networks are trained on a set under a soft protocol; one made of patches has them shuffled."""
    return protocol.soft_schedule(data.name, data.shape, rate, patches_of(one))


def patches_of(one: DistilledSet) -> int:
    """Patches along each axis that a stored image consists of; 1 where it is whole."""
    return one.record.student.patches
