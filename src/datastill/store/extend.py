"""A distilled set that takes new classes or more images, without touching those it has."""

from __future__ import annotations

import copy

import torch

from datastill.core.errors import InputError
from datastill.store.artifact import DistilledSet


def extended(one: DistilledSet, more: DistilledSet) -> DistilledSet:
    """The images of both: of new classes after those that were there, of the same classes after their images.

    Args:
        one: the set that grows; its images stay bit for bit.
        more: distilled from other classes with as many images of each, or from the same classes in the same order.

    Returns:
        A set in memory, with the manifest of `one` and a note.

    Raises:
        InputError: the two do not fit together: other Spaces, stored in another way, labels of a teacher, some classes
            shared and others not, or another number of images of new classes.
    """
    names, others = one.class_names, more.class_names
    same = names == others
    _refuse_unfit(one, more, same)
    offset = 0 if same else len(names)
    labels = torch.cat([one.labels, more.labels + offset])
    order = labels.argsort(stable=True)  # class by class, older images first
    codes = {name: torch.cat([code, more.codes[name]])[order] for name, code in one.codes.items()}
    manifest = copy.deepcopy(one.manifest)
    manifest["ipc"] = one.ipc + (more.ipc if same else 0)
    if not same:
        manifest["classes"] = {"names": [*names, *others], "label_ids": list(range(len(names) + len(others)))}
    what = f"{more.ipc} more images of each class" if same else f"{len(others)} more classes"
    manifest["notes"] = [*manifest.get("notes", []), f"extended by {what}, by {more.record.method}"]
    manifest.pop("files", None)
    return DistilledSet(codes, labels[order], one.space, manifest)


def _refuse_unfit(one: DistilledSet, more: DistilledSet, same: bool) -> None:
    shared = set(one.class_names) & set(more.class_names)
    if one.labels.ndim > 1 or more.labels.ndim > 1:
        raise InputError("Sets of probabilities or learned labels are not extended: they are of their classes alone.")
    if "teacher" in (one.record.student.labels, more.record.student.labels):
        raise InputError("Sets that come with a teacher's labels are not extended: a teacher knows its classes alone.")
    if one.decoder_weights or more.decoder_weights:
        raise InputError("Sets that a network renders are not extended: each has a network of its own.")
    if one.space != more.space:
        raise InputError("The two sets store their pixels in other Spaces; distill both from one real set's Space.")
    if one.record.decoder.plain() != more.record.decoder.plain() or one.codes.keys() != more.codes.keys():
        raise InputError("The two sets store their images in different ways; take one method for both.")
    if shared and not same:
        raise InputError(
            f"The two sets share some classes ({', '.join(sorted(shared)[:3])}) and not others; extend by new classes, "
            "or by the same ones in the same order."
        )
    if not same and one.ipc != more.ipc:
        raise InputError(f"The sets have {one.ipc} and {more.ipc} images of each class; take as many of the new ones.")
