"""A distilled set for other tools: folders of PNGs, parquet as the Hub takes it, or plain tensors."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.core.ranges import Amount, Bits, checked
from datastill.data.places import places_of
from datastill.decoders.pixels import Pixels
from datastill.exchange.captioned import as_captioned, refuse_no_captions, write_captioned
from datastill.exchange.encode import encode
from datastill.exchange.parquet import in_bytes, png_of, refuse_no_pictures, write_parquet
from datastill.exchange.repository import write_repository
from datastill.report.card import CARD, card, write_card_and_preview
from datastill.report.words import without_paths
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.files import write_tensors
from datastill.store.folders import refuse_taken, whole_folder
from datastill.store.outputs import refuse_out

#: Pixels that come back this close are the same: what a Space's arithmetic loses in float32.
SAME = 1e-6
TENSORS, FOLDER, ENCODED, HUB = "images.safetensors", "imagefolder", "encoded", "hub"


@dataclass(frozen=True)
class Exported:
    """What an export made and what it lost.

    Attributes:
        path: the folder.
        format: "imagefolder", "parquet", "tensors", "encoded" or "hub".
        lossless: images and labels come back as they were, up to rounding of float32 arithmetic.
        max_pixel_error: largest change of a pixel, in units of the range [0, 1].
        clipped_fraction: fraction of pixel values that lay outside [0, 1] and were clipped.
        distilled: the set as somebody who reads the export has it; `evaluate` it to see what was lost.
    """

    path: Path
    format: str
    lossless: bool
    max_pixel_error: float
    clipped_fraction: float
    distilled: DistilledSet


@checked
def export(
    distilled: DistilledSet,
    folder: str | Path,
    format: str,
    *,
    bits: Bits = 8,
    most: Amount = 0,
    refine: Amount = 0,
    license: str = "",
) -> Exported:
    """Write a distilled set in a form that other tools read; the folder appears whole or not at all.

    "imagefolder" is `train/<class name>/0000.png`, "parquet" is `data/train-00000-of-00001.parquet` with
    the features of Hugging Face `datasets`; both round pixels to 8 bits after clamping them to [0, 1].
    Pairs have their captions in the place of classes: "imagefolder" is `images/00000.png` and `metadata.csv`, and
    "parquet" has the vectors of sentences too.
    "tensors" is `images.safetensors` with float32 `images` in the Space and `labels`. "encoded" is a distilled set
    again, in fewer bits (see `exchange.encode`). "hub" is what `push_to_hub` publishes: the set as it is, with a view
    as parquet beside it. Each has a README.md.

    Args:
        distilled: what to write.
        folder: where to; it is to be new or empty.
        format: one of these.
        bits: of a value, for "encoded".
        most: bytes that encoded images may take, with as many bits as fit, up to `bits`; 0 sets no limit.
        refine: steps to round encoded values up or down so that networks see less of it; 0 rounds to the nearest.
        license: of the real images, as their owner names it, for "hub"; "" is unknown.

    Raises:
        InputError: unknown format; a folder that is not empty or cannot be written; soft labels as image
            folders; pairs without captions as one; images that are neither gray nor color as image files.
    """
    known = (*_WRITERS, ENCODED, HUB)
    if format not in known:
        raise InputError(f"There is no export format {format!r}. {nearest(format, known)}")
    captioned = format == FOLDER and distilled.label_kind == "pairs"
    if captioned:
        refuse_no_captions(distilled)
    target = Path(folder).resolve()
    refuse_taken(target)
    refuse_out(target, places_of(distilled.record.data.source))
    if format == ENCODED:
        return _write_encoded(target, distilled, encode(distilled, bits, most, refine))
    if format == HUB:
        with whole_folder(target) as temporary:
            write_repository(temporary, distilled, license)
        return Exported(target, HUB, True, 0.0, 0.0, load_distilled(target))
    images, labels = distilled.images.detach().cpu(), distilled.targets.detach().cpu()
    if format != "tensors":
        _refuse_unfit(images, labels, format, distilled.label_kind)
    read_back, stored, error, clipped = _as_read(distilled, images, format)
    again = _rewrap(distilled, read_back, labels, format, error)
    again, told = as_captioned(again) if captioned else (again, True)
    with whole_folder(target) as temporary:
        write = write_captioned if captioned else _WRITERS[format]
        write(temporary, again, stored, labels)
        _write_card(temporary, again, "captioned" if captioned else format)
    return Exported(target, format, told and error <= SAME, error, clipped, again)


def safe_names(names: Sequence[str]) -> list[str]:
    """Folder names that every file system takes and every reader sees, distinct without regard to case."""
    made: list[str] = []
    taken: set[str] = set()
    for k, name in enumerate(names):
        safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name).strip(" .")
        while len(safe.encode("utf-8", "replace")) > 120:
            safe = safe[:-1].rstrip(" .")
        safe = safe.encode("utf-8", "replace").decode() or f"class_{k}"
        if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d|__macosx.*)(\..*)?", safe):
            safe = f"class_{safe}"
        candidate, number = safe, 2
        while candidate.casefold() in taken:
            candidate, number = f"{safe}_{number}", number + 1
        taken.add(candidate.casefold())
        made.append(candidate)
    return made


def _refuse_unfit(images: Tensor, labels: Tensor, format: str, kind: str) -> None:
    refuse_no_pictures(images)
    if format == FOLDER and labels.ndim != 1 and kind != "pairs":
        raise InputError("A folder per class cannot hold soft labels; export the set as 'parquet' or 'tensors'.")


def _as_read(distilled: DistilledSet, images: Tensor, format: str) -> tuple[Tensor, Tensor, float, float]:
    """Images as a reader of the export has them, what is stored of them, largest error, fraction clipped."""
    if format == "tensors":
        kept = images.to(torch.float32)
        return kept, kept, float((kept.double() - images.double()).abs().max()), 0.0
    pixels = distilled.space.decode(images)
    stored = in_bytes(pixels)
    back = stored.float().div(255)
    error = float((back - pixels).abs().max())
    clipped = float(((pixels < -SAME) | (pixels > 1 + SAME)).double().mean())
    return distilled.space.encode(back), stored, error, clipped


def _rewrap(distilled: DistilledSet, images: Tensor, labels: Tensor, format: str, error: float) -> DistilledSet:
    manifest = copy.deepcopy(distilled.manifest)
    notes = [*distilled.record.notes]
    lost = "without loss" if error <= SAME else f"pixels changed by up to {error:.2g} of their range"
    if len(images) > distilled.stored:
        notes.append(f"{distilled.stored} stored images, written as {len(images)}")
    notes.append(f"read back from an export as {format}: {lost}")
    manifest.update(decoder=Pixels().describe(), notes=notes)
    return DistilledSet({"images": images}, labels.clone(), distilled.space, manifest)


def _write_folders(folder: Path, distilled: DistilledSet, stored: Tensor, labels: Tensor) -> None:
    names = safe_names(distilled.class_names)
    digits = max(4, len(str(len(stored))))
    seen = [0] * len(names)
    for image, c in zip(stored, labels.tolist(), strict=True):
        place = folder / "train" / names[c]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seen[c]:0{digits}d}.png").write_bytes(png_of(image))
        seen[c] += 1


def _write_tensors(folder: Path, distilled: DistilledSet, stored: Tensor, labels: Tensor) -> None:
    tensors = {"images": stored, "labels": labels}
    tensors.update({f"space/{name}": tensor for name, tensor in distilled.space.tensors.items()})
    meta = {
        "format": "datastill-tensors",
        "space": json.dumps(distilled.space.to_dict()),
        "class_names": json.dumps(list(distilled.class_names)),
    }
    write_tensors(folder / TENSORS, tensors, meta)


def _write_encoded(target: Path, distilled: DistilledSet, again: DistilledSet) -> Exported:
    """A distilled set in fewer bits."""
    before, after = (one.space.decode(one.images.detach().cpu()) for one in (distilled, again))
    error = float((before - after).abs().max())
    clipped = float(((before < -SAME) | (before > 1 + SAME)).double().mean())
    again.manifest = without_paths(again.manifest)
    with whole_folder(target) as temporary:
        again.save(temporary)
        write_card_and_preview(again, temporary)
    again.folder = target
    return Exported(target, ENCODED, error <= SAME and not clipped, error, clipped, again)


_WRITERS: dict[str, Callable[[Path, DistilledSet, Tensor, Tensor], None]] = {
    FOLDER: _write_folders,
    "parquet": write_parquet,
    "tensors": _write_tensors,
}


def _write_card(folder: Path, distilled: DistilledSet, format: str) -> None:
    notes = []
    if format == FOLDER:
        renamed = zip(distilled.class_names, safe_names(distilled.class_names))
        notes = [f"The folder {safe!r} holds the class {name!r}." for name, safe in renamed if name != safe]
    told = replace(distilled, manifest=without_paths(distilled.manifest))
    (folder / CARD).write_text(card(told, layout=format, notes=notes), encoding="utf-8")
