"""A distilled set as a repository of the Hugging Face Hub holds it: the set itself, a view of it as parquet, a card.

The files of the set are taken as they are. Of their texts, places on the maker's machine are left out, and a text that
names none keeps its bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datastill.core.errors import InputError
from datastill.evaluation.recorded import read_evaluation
from datastill.exchange.parquet import in_bytes, refuse_no_pictures, write_parquet
from datastill.report.card import CARD, PICTURE, card
from datastill.report.pictures import png, preview
from datastill.report.words import without_paths
from datastill.store.artifact import MANIFEST, DistilledSet, load_distilled
from datastill.store.files import CHECKSUM, read_json, write_bytes, write_json, write_sealed
from datastill.store.hub import is_kept, is_of_set
from datastill.store.manifest import checksum_of
from datastill.store.opening import open_regular

EVALUATION = "evaluation.json"
_CHUNK = 1 << 22


def write_repository(folder: Path, distilled: DistilledSet, license: str = "", place: str = "") -> tuple[str, ...]:
    """Write a set for the Hub; its scores are those that lie beside it.

    Args:
        folder: an empty one.
        distilled: the set; where it has a folder, the files there are taken as they are.
        license: of the real images, as their owner names it; "" is unknown.
        place: what the set will be loaded by, "hub:NAME/SET"; "" is where it lies.

    Returns:
        Names of the files that places on this machine were left out of.

    Raises:
        InputError: images that are neither gray nor color; a set that was changed since it was saved.
    """
    images, labels = distilled.images.detach().cpu(), distilled.targets.detach().cpu()
    refuse_no_pictures(images)
    changed = _write_set(folder, distilled)
    found = read_evaluation(folder / EVALUATION) if (folder / EVALUATION).is_file() else None
    manifest = read_json(folder / MANIFEST)
    told = replace(distilled, manifest=manifest, companions={}, folder=folder)
    write_parquet(folder, told, in_bytes(distilled.space.decode(images)), labels)
    write_bytes(folder / PICTURE, png(preview(distilled)))
    text = card(told, found, layout="hub", place=place, license=license)
    (folder / CARD).write_text(text, encoding="utf-8")
    return changed


def _write_set(folder: Path, distilled: DistilledSet) -> tuple[str, ...]:
    """The set, its companions and its scores; names of the texts that were changed."""
    if distilled.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            replace(distilled).save(temporary)  # a copy, since a set remembers its folder
            return _copied(Path(temporary), folder, places_to_hide(distilled))
    _refuse_changed(distilled, distilled.folder)
    return _copied(distilled.folder, folder, places_to_hide(distilled))


def _refuse_changed(distilled: DistilledSet, folder: Path) -> None:
    saved = load_distilled(folder)
    pairs = [(distilled.codes, saved.codes), (distilled.extra, saved.extra)]
    pairs.append(({"labels": distilled.labels}, {"labels": saved.labels}))
    same = distilled.manifest == saved.manifest and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name].cpu(), theirs[name]) for name in mine)
        for mine, theirs in pairs
    )
    if not same:
        raise InputError(f"The set was changed since it was saved in {folder}; save it first, in a folder of its own.")


def places_to_hide(distilled: DistilledSet) -> tuple[str, ...]:
    """Paths of this machine that texts beside a set may name, the longest first."""
    source = distilled.record.data.source
    known = [Path.home(), Path.cwd(), *([distilled.folder.resolve()] if distilled.folder else [])]
    if Path(source).is_absolute():
        known += [Path(source), Path(source).parent]
    found = {str(place) for place in known if len(place.parts) > 1}
    return tuple(sorted(found, key=len, reverse=True))


def set_files(folder: Path) -> Iterator[str]:
    """Names of the files of a set in its folder, as a repository has them."""
    for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        name = path.relative_to(folder).as_posix()
        if is_of_set(name) and path.is_file():
            _refuse_link_out(path, folder)
            yield name


def _refuse_link_out(path: Path, folder: Path) -> None:
    """A link in a set of others could publish a file of this machine; the Hub's cache alone is made of links."""
    inside = folder.parent.parent if is_kept(folder) else folder
    if not path.resolve().is_relative_to(inside.resolve()):
        raise InputError(f"{path} is a link that leads out of the set, and is not copied; put the file itself there.")


def _copied(source: Path, target: Path, hidden: Sequence[str]) -> tuple[str, ...]:
    changed = []
    for name in set_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        if name.endswith(".json") and _without_places(source / name, target / name, hidden):
            changed.append(name)
        elif not (target / name).exists():
            copy_file(source / name, target / name)
    return tuple(changed)


def copy_file(source: Path, target: Path) -> None:
    """The bytes of a regular file, which is not read whole into memory."""
    with open_regular(source) as read, target.open("wb") as write:
        while chunk := read.read(_CHUNK):
            write.write(chunk)


def _without_places(source: Path, target: Path, hidden: Sequence[str]) -> bool:
    """Write a JSON file without places on this machine; False where it names none, and nothing was written."""
    told = read_json(source)
    said: Any = {k: v for k, v in told.items() if k != "command"} if source.name == EVALUATION else told
    said = without_paths(said, hidden)
    if said == told:
        return False
    if source.name == MANIFEST:
        if MANIFEST in said["files"]:
            said["files"][MANIFEST] = checksum_of(said)
        write_json(target, said)
    elif CHECKSUM in said:
        write_sealed(target, said)
    else:
        write_json(target, said)
    return True
