"""Whether the tensors of a distilled set and its manifest say the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Decoder
from datastill.store.manifest import Manifest, refuse_unfit_space
from datastill.store.opening import refuse_claim, stored_bytes
from datastill.store.schema import Shape

if TYPE_CHECKING:
    from datastill.store.artifact import DistilledSet


def refuse_claims(path: Path, shapes: Mapping[str, Shape], manifest: Manifest, decoder: Decoder) -> None:
    """Compare what the tensors are said to be with each other and with the manifest, before any is read.

    Args:
        path: their file.
        shapes: what its header says.
        manifest: of the set.
        decoder: of the set.

    Raises:
        InputError: they do not agree, or the decoder would render far more than the file holds.
    """
    where = path.with_name("manifest.json")
    labels = shapes.get("labels", Shape("", ()))
    codes = {name.removeprefix("codes/"): shape.sizes for name, shape in shapes.items() if name.startswith("codes/")}
    n, classes = next(iter(labels.sizes), 0), len(manifest.classes.names)
    ipc, rest = divmod(n, classes)
    if rest or ipc != manifest.ipc:
        raise InputError(
            f"{where} says {manifest.ipc} images of each of {classes} classes, and {path} holds {n} labels; the "
            "two do not fit, so the set was changed or damaged."
        )
    if (labels.dtype, len(labels.sizes)) not in (("I64", 1), ("F32", 2)):
        raise InputError(
            f"The labels in {path} are {labels.dtype} of {len(labels.sizes)} dimensions: it is damaged, since labels "
            "are positions (I64 of one dimension) or probabilities (F32 of two)."
        )
    if len(labels.sizes) == 2 and manifest.label_kind != "pairs" and labels.sizes[1] != classes:
        raise InputError(f"The labels in {path} are of {labels.sizes[1]} classes and do not fit {where}: {classes}.")
    if {next(iter(sizes), 0) for sizes in codes.values()} != {n}:
        raise InputError(f"The codes and labels in {path} do not fit together: there is not one label for each image.")
    count, *image = decoder.rendered(codes, ipc, classes)
    if image != manifest.shape:
        raise InputError(f"The images in {path} are {image} and do not fit {where}: {manifest.shape}.")
    refuse_claim(path, 4 * count * math.prod(image), stored_bytes(path), "would be rendered to at most")
    space = {name.removeprefix("space/"): shape.sizes for name, shape in shapes.items() if name.startswith("space/")}
    refuse_unfit_space(where, manifest.space, space, image)


def refuse_disagreement(distilled: DistilledSet, folder: Path) -> None:
    """Compare labels and images, once their shapes are known to agree, with what the manifest says of them.

    Raises:
        InputError: they do not agree, or are not finite.
    """
    y = distilled.labels
    made_for = distilled.extra.get("classes") if y.ndim > 1 else y
    if made_for is not None:
        _refuse_uneven(made_for, len(y), distilled, folder)
    if distilled.label_kind == "probabilities" and (bool((y < 0).any()) or bool(((y.sum(1) - 1).abs() > 1e-2).any())):
        raise InputError(f"The soft labels in {folder} are not probabilities that sum to 1; the set is damaged.")
    try:
        rendered = distilled.rendered()
    except (KeyError, RuntimeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"The tensors in {folder} do not fit its manifest ({error}); it is damaged.") from error
    if len(rendered.x) != len(rendered.y) or not bool(torch.isfinite(rendered.x).all()):
        raise InputError(f"The images and labels in {folder} do not fit its manifest; it is damaged.")


def _refuse_uneven(made_for: Tensor, stored: int, distilled: DistilledSet, folder: Path) -> None:
    """Every class has as many stored images as the manifest says, since so many are drawn for the Random beside it."""
    names, ipc = distilled.class_names, distilled.ipc
    if made_for.shape != (stored,) or int(made_for.min()) < 0 or int(made_for.max()) >= len(names):
        raise InputError(f"The labels in {folder} do not fit its manifest: it has classes 0 to {len(names) - 1} only.")
    counts = torch.bincount(made_for, minlength=len(names))
    other = int((counts != ipc).to(torch.int8).argmax())
    if int(counts[other]) != ipc:
        raise InputError(
            f"The labels in {folder} do not fit its manifest: it says {ipc} images of each class, and {names[other]!r} "
            f"has {int(counts[other])}; it was changed or damaged."
        )
