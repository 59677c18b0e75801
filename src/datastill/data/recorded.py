"""The real set that a manifest names, where it may be taken without the caller's word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datastill.core.errors import InputError
from datastill.core.space import Space
from datastill.data.load import assemble, read_source
from datastill.data.places import named
from datastill.data.raw import make_choice, make_request
from datastill.data.real import RealSet
from datastill.data.sources import sources
from datastill.store.manifest import Data

#: Options of `load_real` that a manifest may hold, those that read first. Where links lead is the caller's to say.
_READING = ("size", "mode", "skip_bad", "seed")
_CHOICE = ("train", "test", "val")
_ASSEMBLING = ("space", "holdout", "seed", "limit", "class_names")


def load_recorded(record: Data, space: Space, folder: Path | None) -> RealSet:
    """The real set that a manifest describes, if it is at hand and holds the images that the set was made from.

    A file may name any folder and any set of the Hub, so nothing is fetched, and what is not the same is refused.

    Args:
        record: `data` of the manifest.
        space: of the distilled set, in which the images were when they were hashed.
        folder: of the distilled set.

    Raises:
        InputError: no source, one that is not at hand, or other images there.
    """
    source, options = record.source, record.options
    if not source:
        raise InputError("The set does not know where its real data are; give them (--data PATH).")
    if source.startswith("path/to/"):
        raise InputError(
            f"The set was published without the place of its real data ({source}); give them (--data PATH)."
        )
    found = named(source)
    for text in (found.name, *found.options.values()):
        _refuse_everything(text, folder)
    # a folder is recorded by its path, so a bare name is that of the built-in set, whatever lies here
    asked = f"{source}:" if source in sources() else source
    reading = {name: options.get(name) for name in _READING}
    choice = make_choice(*(options.get(name) for name in _CHOICE))
    request = make_request(
        reading["size"], reading["mode"], bool(reading["skip_bad"]), "auto", reading["seed"] or 0, choice=choice
    )
    raw = replace(read_source(asked, replace(request, fetch=False)), source=source)
    assembling = {name: options[name] for name in _ASSEMBLING if name in options}
    real = assemble(raw, **assembling, options=options)
    if real.with_space(space).fingerprint != record.fingerprint:
        raise InputError(
            f"{source}, which the set names as its real data, does not hold the images that the set was made from; if "
            f"it is what you want, give it yourself (--data {source})."
        )
    return real


def _refuse_everything(name: str, folder: Path | None) -> None:
    """A run is never inside its own data, so a folder that holds the set, or the home folder, is not its data."""
    try:
        path = Path(name).expanduser().resolve()
        within = [Path.home().resolve(), *([folder.resolve()] if folder is not None else [])]
        everything = path.is_dir() and any(one.is_relative_to(path) for one in within)
    except (OSError, RuntimeError, ValueError):
        everything = False
    if everything:
        raise InputError(
            f"The set names {name} as its real data, which holds more than data; give the data (--data PATH)."
        )
