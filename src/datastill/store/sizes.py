"""What a distilled set weighs: images, labels, decoder, and what lies beside it, apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datastill.store.artifact import DistilledSet


def bytes_of_parts(one: DistilledSet) -> dict[str, int]:
    """Bytes by part, as they are stored.

    Returns:
        `images` (the codes) and `labels`; `decoder`, where a network renders them; and one number for each companion of
        the set that lies in its folder: `teacher`, or `label bank`.
    """
    from datastill.store.hub import is_kept  # here, since help of commands needs the words of bytes alone

    found = {"images": sum(t.nbytes for t in one.codes.values()), "labels": one.labels.nbytes}
    if one.decoder_weights:
        found["decoder"] = sum(t.nbytes for t in one.decoder_weights.values())
    if one.folder is not None and one.folder.is_dir():
        linked = is_kept(one.folder)  # where the Hub's client keeps a set, every file is a link
        for folder in sorted(one.folder.iterdir()):
            if folder.is_dir() and not folder.is_symlink() and _belongs(folder):
                name = "label bank" if folder.name == "labels" else folder.name
                files = [f for f in folder.rglob("*") if f.is_file() and (linked or not f.is_symlink())]
                found[name] = sum(f.stat().st_size for f in files)
    return found


def bytes_in_words(count: float) -> str:
    """Bytes in decimal units, to three digits."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} GB" if count >= 1000 else f"{count:.3g} GB"


def _belongs(folder: Path) -> bool:
    return folder.name == "labels" or folder.name.split("-")[0] == "teacher"
