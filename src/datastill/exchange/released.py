"""`import_released`: from a released file to a distilled set like any other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from datastill.core.cost import environment
from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data import load_real
from datastill.data.places import places_of
from datastill.decoders.pixels import Pixels
from datastill.evaluation.protocols import get_protocol
from datastill.exchange.formats import FORMATS, Released, read_released
from datastill.exchange.spaces import outside, stated_space
from datastill.models import resolve_network, spec_of
from datastill.report.card import PICTURE
from datastill.report.pictures import png, preview
from datastill.store.artifact import MANIFEST, DistilledSet, load_distilled
from datastill.store.checkpoint import plain
from datastill.store.files import write_bytes
from datastill.store.folders import whole_folder
from datastill.store.outputs import IMPORTED, NEW, refuse_out
from datastill.store.unfinished import remove_rests

if TYPE_CHECKING:
    from datastill.data.real import RealSet

Which = int | Literal["all"] | Sequence[int]


@overload
def import_released(
    path: str | Path | Released, *, data: Any, space: str | Space | None = None, labels: Any = None,
    syn_lr: float | str | Path | None = None, select: int = -1, name: str | None = None, network: Any = None,
    protocol: str = "dc-v1-dsa", into: str | Space | None = None, zca_eps: float = 0.1, seed: int = 0,
    out: str | Path | None = None,
) -> DistilledSet: ...  # fmt: skip


@overload
def import_released(
    path: str | Path | Released, *, data: Any, space: str | Space | None = None, labels: Any = None,
    syn_lr: float | str | Path | None = None, select: Literal["all"] | Sequence[int], name: str | None = None,
    network: Any = None, protocol: str = "dc-v1-dsa", into: str | Space | None = None, zca_eps: float = 0.1,
    seed: int = 0, out: str | Path | None = None,
) -> list[DistilledSet]: ...  # fmt: skip


def import_released(
    path: str | Path | Released,
    *,
    data: Any,
    space: str | Space | None = None,
    labels: Any = None,
    syn_lr: float | str | Path | None = None,
    select: Which = -1,
    name: str | None = None,
    network: Any = None,
    protocol: str = "dc-v1-dsa",
    into: str | Space | None = None,
    zca_eps: float = 0.1,
    seed: int = 0,
    out: str | Path | None = None,
) -> DistilledSet | list[DistilledSet]:
    """A set that others released as `.pt`, as a distilled set that `evaluate` scores and `save` keeps.

    Read are the list of experiments of DC, DSA and DM, the image and label tensors of MTT and its followers,
    and one pair of images and labels. Nothing in the file is run; one that asks for more than tensors and
    numbers is refused. The pixels are kept as they are, to the bit where they are float32.

    Args:
        path: a `.pt` file, or a folder with `images_best.pt` and `labels_best.pt`.
        data: the real set that it was made from: anything that `load_real` takes, or what it returned.
        space: how the stored numbers relate to pixels; it must be stated, as "conventional" (the published mean
            and std of the data set), "conventional:cifar10" (those of another), "raw" ([0, 1]), "zca" (whitened
            with an absolute epsilon, fitted on the real set), "measured", or a Space.
        labels: of a file of images alone: a file, a tensor or a list; None takes the file beside it.
        syn_lr: the learned learning rate, or its file; kept in the manifest as student.lr.
        select: which experiment: its number (-1 is the last), several, or "all" for a list of sets.
        name: of the set, in tables; None takes the name of the file.
        network: the architecture it was distilled on; None takes the ConvNet that fits the images.
        protocol: what `evaluate` trains with unless told otherwise.
        into: a space, as above, to turn the images into; networks are trained in it. None keeps the images.
        zca_eps: the epsilon of "zca".
        seed: of the random selection that stands beside the set; experiment k of several takes seed + k.
        out: a folder to save in; several sets go into numbered folders below it.

    Raises:
        InputError: the file cannot be used, the space is not stated, or images and labels do not fit the data.
    """
    found = path if isinstance(path, Released) else read_released(path, labels=labels, syn_lr=syn_lr)
    wanted = _selected(select, len(found.experiments))
    many = not isinstance(select, int)
    folders = _folders(out, wanted, many)
    if out is not None:
        refuse_out(out, places_of(data), IMPORTED if many else NEW)
    get_protocol(protocol)
    real = _real(data)
    for k in wanted:
        _check_images(found.experiments[k][0], real, found.path)
    stored = stated_space(space, real, found.experiments[wanted[0]][0], zca_eps)
    target = stored if into is None else stated_space(into, real, None, zca_eps)
    about = {
        "method": f"released:{_clean(name or _name_of(found.path))}",
        "student": {"protocol": protocol, "lr": found.lr},
        "network": _network(network, real),
    }
    notes = _notes(found, network is None)
    sets = []
    for k in wanted:
        kind = {**about, "seed": seed + (k if many else 0), "notes": notes}
        sets.append(_distilled(found, k, real, stored, target, kind))
    for one, folder in zip(sets, folders):
        _save(one, folder)
    return sets if many else sets[0]


def _selected(select: Which, count: int) -> list[int]:
    asked: list[Any] = list(range(count)) if select == "all" else [select] if isinstance(select, int) else list(select)
    for k in asked:
        if isinstance(k, bool) or not isinstance(k, int) or not -count <= k < count:
            raise InputError(f"There is no experiment {k!r}; the file holds {count}, numbered from 0. 'all' takes all.")
    if not asked:
        raise InputError("Select at least one experiment, or 'all'.")
    return [k % count for k in asked]


def _folders(out: str | Path | None, wanted: list[int], many: bool) -> list[Path]:
    if out is None:
        return []
    folders = [Path(out) / str(k) for k in wanted] if many else [Path(out)]
    for folder in folders if not many else ():
        remove_rests(folder)
        if (folder / MANIFEST).exists():
            raise InputError(f"{folder} already holds a distilled set; choose another --out or remove it.")
    return folders


def _save(one: DistilledSet, folder: Path) -> None:
    """Write the set and its picture, whole or not at all; one of several that is there from before a kill stays.

    Raises:
        InputError: the folder holds another set.
    """
    if (folder / MANIFEST).is_file():
        remove_rests(folder)
        there = load_distilled(folder)
        kept, new = there.record, one.record
        if (kept.imported, kept.space, kept.seed) != (new.imported, new.space, new.seed):
            raise InputError(f"{folder} already holds a distilled set; choose another --out or remove it.")
    else:
        with whole_folder(folder) as work:
            one.save(work)
            write_bytes(work / PICTURE, png(preview(one)))
    one.folder = folder


def _real(data: Any) -> RealSet:
    from datastill.data.real import RealSet

    return data if isinstance(data, RealSet) else load_real(data)


def _network(network: Any, real: RealSet) -> dict[str, Any]:
    """The record of a network, with the text that finds it again where there is one."""
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return {**factory.describe(), "spec": spec_of(factory)}


def _check_images(x: Tensor, real: RealSet, path: Path) -> None:
    shape = tuple(x.shape[1:])
    if shape != tuple(real.shape):
        raise InputError(
            f"The images in {path} are {shape} (channels, height, width) and those of {real.name} are "
            f"{tuple(real.shape)}; name the data that the set was made from, loaded at that size (size=, mode=)."
        )


def _distilled(
    found: Released, k: int, real: RealSet, stored: Space, target: Space, about: dict[str, Any]
) -> DistilledSet:
    x, y = found.experiments[k]
    y = _positions(y, real, found.path)
    ipc = _per_class(y, real, found.path)
    fraction = outside(stored, x)
    kept = x if target == stored else target.encode(stored.decode(x))
    in_space = real.with_space(target)
    files = ", ".join(f"{name} (sha256 {sha})" for name, sha in found.files.items())
    where = f", experiment {k} of {len(found.experiments)}" if found.format == "dc" else ""
    stated = f"the space was stated by who imported it: {_say(stored)}; {100 * fraction:.1f} % of the values lie "
    notes = [f"imported from {files}{where}", f"{stated}outside the range of pixels", *about["notes"]]
    if target != stored:
        notes.append(f"the images were turned from {_say(stored)} into {_say(target)}")
    manifest = {
        **about,
        "family": "released",
        "hyper": {},
        "recipe": {"asked": "imported", "published": None},
        "ipc": ipc,
        "classes": {"names": list(real.class_names), "label_ids": list(real.label_ids)},
        "labels": "hard" if y.ndim == 1 else "soft",
        "shape": list(real.shape),
        "space": target.to_dict(),
        "decoder": Pixels().describe(),
        "data": in_space.describe(),
        "cost": {"known": False, "steps": 0, "seconds": 0.0, **environment(torch.device("cpu"))},
        "imported": {
            "format": found.format,
            "files": dict(found.files),
            "experiment": k,
            "experiments": len(found.experiments),
            "stored_space": {**stored.to_dict(), "id": stored.id},
            "outside_pixel_range": round(fraction, 6),
            "claimed": {name: dict(numbers) for name, numbers in found.claimed.items()},
        },
        "notes": notes,
    }
    return DistilledSet({"images": kept.clone()}, y.clone(), target, plain(manifest))


def _positions(y: Tensor, real: RealSet, path: Path) -> Tensor:
    """Labels as class positions of the real set; soft labels as they are."""
    if y.ndim == 2:
        if y.shape[1] != real.classes:
            raise InputError(
                f"The soft labels in {path} are of {y.shape[1]} classes and {real.name} has {real.classes}."
            )
        return y
    integers = all(isinstance(label, int) for label in real.label_ids)
    ids = torch.tensor(real.label_ids) if integers else torch.arange(real.classes)
    known = y.unique()
    strange = known[~torch.isin(known, ids)].tolist()
    if strange:
        raise InputError(
            f"The labels in {path} run from {int(known[0])} to {int(known[-1])} in {len(known)} classes, and "
            f"{real.name} has {real.classes} classes (no label {strange[0]}); name the data that the set was made from."
        )
    return torch.searchsorted(ids, y)


def _per_class(y: Tensor, real: RealSet, path: Path) -> int:
    """Images per class; Random beside the set draws as many."""
    hard = y if y.ndim == 1 else y.argmax(1)
    counts = torch.bincount(hard, minlength=real.classes)
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[low] == counts[high]:
        return int(counts[low])
    if y.ndim == 2 and len(y) % real.classes == 0:  # learned labels may have left the class that they began in
        return len(y) // real.classes
    names = real.class_names
    raise InputError(
        f"The set in {path} has {int(counts[low])} images of class {names[low]!r} and {int(counts[high])} of "
        f"{names[high]!r}; only sets of equally many per class can be compared with a random selection."
    )


def _notes(found: Released, assumed_network: bool) -> list[str]:
    notes = [
        f"read as {FORMATS[found.format]}",
        "the seed is that of the random selection beside it, not of the original run; what its distillation cost is "
        "not known, and it holds no real images that it began as",
    ]
    if assumed_network:
        notes.append("the network it was distilled on is not in the file; the usual ConvNet for this size is assumed")
    if found.lr is not None:
        notes.append(f"its learned learning rate {found.lr:g} is recorded; named protocols train with their own")
    if found.format == "pair":
        notes.append("images are taken whole: a multi-formation factor, as IDC has it, is not in the file")
    for name, numbers in list(found.claimed.items())[:8]:
        times = f"{int(numbers['count'])} evaluation" + "s" * (numbers["count"] > 1)
        notes.append(f"the file itself records {100 * numbers['mean']:.2f} % ({name}, {times}, all experiments)")
    return notes


def _say(space: Space) -> str:
    return space.kind + (f" ({space.source})" if space.source else "")


def _name_of(path: Path) -> str:
    path = path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.name.startswith("images") else path.stem


def _clean(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")[:80] or "set"
