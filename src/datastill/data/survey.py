"""What is understood of a source, told before anything is done with it, also where it cannot be loaded."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data.cache import Listing
from datastill.data.inside import Links
from datastill.data.load import assemble, read_source
from datastill.data.parts import Part, is_image, visible
from datastill.data.pixels import look_at
from datastill.data.places import named, under_data
from datastill.data.raw import Request
from datastill.data.real import RealSet
from datastill.data.splits import kind_of

LOOKED_AT = 2000  #: files of a split that are opened, evenly spread
KINDS = ("sizes", "modes", "formats")  #: what is counted of files
RELAXED = 64  #: pixels a side of the pictures of a set that cannot be loaded as it is


@dataclass
class Files:
    """Encoded images of all splits, as they lie there."""

    images: int = 0
    looked_at: int = 0
    sizes: Counter[str] = field(default_factory=Counter)  #: height x width
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    frames: int = 0  #: files of several frames, of which the first is taken
    unreadable: list[str] = field(default_factory=list)

    def add(self, listing: Listing) -> None:
        """Open some files of a listing, without decoding them."""
        count = len(listing.labels)
        self.images += count
        if listing.encoded is None:
            return
        for i in sorted({*torch.linspace(0, count - 1, min(count, LOOKED_AT)).long().tolist()}):
            self.looked_at += 1
            try:
                self._add(listing.encoded(i))
            except Exception:  # decoders raise whatever they like
                self.unreadable.append(listing.name(i))

    def _add(self, data: bytes) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            self.sizes[f"{height}x{width}"] += 1
            self.modes[image.mode] += 1
            self.formats[image.format or "?"] += 1
            self.frames += getattr(image, "n_frames", 1) > 1


@dataclass
class Survey:
    """What was found."""

    source: str
    error: str | None  #: why it cannot be loaded with these options
    real: RealSet | None = field(repr=False)  #: made alike (64 pixels, RGB, damaged files left out) on an error
    relaxed: bool  #: whether it had to be made alike
    files: Files
    parts: list[dict[str, Any]]  #: sub-folders or parquet files and how their names are read
    warned: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        splits = {} if self.real is None else {"train": self.real, "test": self.real.test}
        return {
            "source": self.source,
            "error": self.error,
            "splits": {name: None if one is None else _split(one, self.relaxed) for name, one in splits.items()},
            "notes": list(dict.fromkeys([*([] if self.real is None else self.real.notes), *self.warned])),
            "relaxed": {"size": RELAXED, "mode": "RGB", "skip_bad": True} if self.relaxed else None,
            "files": {**vars(self.files), **{name: dict(getattr(self.files, name)) for name in KINDS}},
            "parts": self.parts,
        }


def _split(real: RealSet, relaxed: bool) -> dict[str, Any]:
    found = look_at(real.store)
    pixels = {name: round(getattr(found, name), 4) for name in ("mean", "std", "low", "high")}
    return {
        "images": len(real),
        "shape": list(real.shape),
        "classes": dict(zip(real.class_names, real.counts.tolist())),
        "pixels": {**pixels, "looked_at": found.images, "single_color": len(found.flat)},
        "fingerprint": None if relaxed else real.fingerprint,
    }


def survey(source: str | Path, request: Request, space: str | Space = "auto") -> Survey:
    """Load a source if it can be, and say what is there in any case.

    Args:
        source: a path or a name, as `load_real` takes it.
        request: how to read it.
        space: as `load_real` takes it.

    Raises:
        InputError: there is nothing by that name.
    """
    here = named(source)
    folder = None if here.built_in is not None else here.path or under_data(here.name)
    files, error, relaxed = Files(), None, False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        real: RealSet | None = None
        try:
            real = assemble(read_source(source, replace(request, watch=files.add)), space=space)
        except InputError as refused:
            if folder is None:
                raise
            error, files, relaxed = str(refused), Files(), True
            loose = replace(request, size=(RELAXED, RELAXED), mode="RGB", skip_bad=True, storage="decode")
            try:
                real = assemble(read_source(source, replace(loose, watch=files.add)))
            except InputError:
                relaxed = False
    warned = [str(one.message) for one in caught]
    parts = [] if folder is None else _parts(folder, request)
    return Survey(str(source), error, real, relaxed, files, parts, warned)


def _parts(folder: Path, request: Request) -> list[dict[str, Any]]:
    """What lies in a folder: sub-folders with images and parquet files, and what their names say."""
    from datastill.data.parquet import find_parquet

    try:
        parquet = find_parquet(folder) if folder.is_dir() else {}
        if parquet:
            return [_part(name, rows=sum(map(_rows, files)), files=len(files)) for name, files in parquet.items()]
        links = Links(folder, request.follow_links)
        return [_outline(Part(path, links)) for path in visible(folder) if path.is_dir()]
    except InputError:
        return []


def _part(name: str, **numbers: Any) -> dict[str, Any]:
    return {"name": name, "reads_as": kind_of(name), **numbers}


def _outline(part: Part) -> dict[str, Any]:
    below = part.unwrapped().below
    loose = sum(is_image(path) for path in visible(part.path)) if part.loose else 0
    return _part(part.name, images_in_it=loose, folders_with_images=len(below), such_as=[p.name for p in below[:5]])


def _rows(file: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (OSError, pyarrow.ArrowInvalid):
        return 0


def samples(real: RealSet, columns: int) -> torch.Tensor:
    """Positions of evenly spread images of every class, for a contact sheet."""
    picked = []
    for c in range(real.classes):
        members = real.class_index(c)
        if len(members):
            picked.append(members[torch.linspace(0, len(members) - 1, min(columns, len(members))).long()])
    return torch.cat(picked)


def told(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a survey found as rows for people, from `Survey.to_dict()`."""
    rows = [("source", str(record["source"]))]
    for name, split in record["splits"].items():
        if split is None:
            rows.append((name, "none"))
            continue
        pixels = split["pixels"]
        flat = f"; {pixels['single_color']} of a single color" if pixels["single_color"] else ""
        rows.append((name, f"{split['images']:,} images of {'×'.join(map(str, split['shape']))}, {_classes(split)}"))
        rows.append(
            (
                "",
                f"pixels: mean {pixels['mean']:.3g}, std {pixels['std']:.3g}, from {pixels['low']:.3g} to "
                f"{pixels['high']:.3g}{flat}",
            )
        )
    files = record["files"]
    if files["looked_at"]:
        rows.append(("files", f"{files['images']:,}, of which {files['looked_at']:,} were opened"))
        rows += [(kind, _most(files[kind])) for kind in KINDS]
    if files["frames"]:
        rows.append(("", f"{files['frames']} of several frames, of which the first is taken"))
    if files["unreadable"]:
        rows.append(("unreadable", f"{len(files['unreadable'])}, such as {', '.join(files['unreadable'][:3])}"))
    if record["error"] and record["parts"]:
        rows += [("found" if not i else "", _line(part)) for i, part in enumerate(record["parts"][:20])]
    return rows + [("note" if not i else "", note) for i, note in enumerate(record["notes"])]


def _classes(split: Mapping[str, Any]) -> str:
    counts = split["classes"]
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:8])
    return f"{len(counts)} classes: {shown}" + (", ..." if len(counts) > 8 else "")


def _most(counts: Mapping[str, int]) -> str:
    many = sorted(counts.items(), key=lambda one: -one[1])
    more = f" and {len(many) - 6} more" if len(many) > 6 else ""
    return ", ".join(f"{name} ({count:,})" for name, count in many[:6]) + more


def _line(part: Mapping[str, Any]) -> str:
    rest: Sequence[str] = [f"{value} {key.replace('_', ' ')}" for key, value in part.items() if isinstance(value, int)]
    inside = f" ({', '.join(part['such_as'])}, ...)" if part.get("such_as") else ""
    return f"{part['name']}: {', '.join(rest)}{inside}" + (f"; reads as {part['reads_as']}" if part["reads_as"] else "")
