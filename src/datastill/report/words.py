"""Numbers and names as people read them, shared by the card and the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datastill.core.cost import plural as plural
from datastill.core.registry import field_docs, registered
from datastill.store.sizes import bytes_in_words, bytes_of_parts

if TYPE_CHECKING:
    from datastill.store.artifact import DistilledSet
    from datastill.store.manifest import Manifest, SpaceRecord


#: An absolute path, or one in somebody's home; and one inside a sentence, which ends at a space.
_SLASH, _ENDS = r"[/\\]", "/\\"
_PATH = re.compile(r"(?:/|~|[A-Za-z]:[/\\])[^\n]*")
_PATH_IN_TEXT = re.compile(r"(?<![\w./\\:])(?:~?/|[A-Za-z]:[/\\])[^\s/\\'\"`(){},;]+(?:[/\\][^\s/\\'\"`(){},;]+)+")
#: The folders of a path from above the working folder, of a file's address, and of a path on another machine.
_FOLDERS = re.compile(
    r"(?<![\w./\\])(?:\.\.[/\\])+(?:[^\s/\\:'\"]+[/\\])*"
    r"|\bfile:[/\\]+(?:[^\s/\\'\"]+[/\\])*"
    r"|(?<![\w\\])\\\\(?:[^\s/\\'\"]+[/\\])+"
)


def markdown(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> str:
    """Text for inside single backticks of Markdown, in tables too."""
    return " ".join(str(text).split()).replace("`", "'").replace("|", "/")


def without_paths(item: Any, known: Sequence[str] = ()) -> Any:
    """What a manifest says, without where things lie on the machine that made it: "path/to/photos".

    Args:
        item: JSON.
        known: paths to look for whatever they look like, such as those with spaces.
    """
    if isinstance(item, Mapping):
        return {without_paths(name, known): without_paths(part, known) for name, part in item.items()}
    if isinstance(item, list | tuple):
        return [without_paths(part, known) for part in item]
    if not isinstance(item, str):
        return item
    for place in known:
        name = re.split(_SLASH, place.rstrip(_ENDS))[-1]
        item = re.sub(rf"(?<![\w./\\]){re.escape(place)}(?!\w)", f"/path/to/{name}", item)
    item = _FOLDERS.sub("path/to/", item)
    if _PATH.fullmatch(item):
        return f"path/to/{re.split(_SLASH, item.rstrip(_ENDS))[-1]}"
    return _PATH_IN_TEXT.sub(lambda found: f"path/to/{re.split(_SLASH, found[0])[-1]}", item)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as percent; a dash where there is no number."""
    if fraction is None or math.isnan(fraction):
        return "–"
    return f"{100 * fraction:.{digits}f}"


def with_interval(mean: float, interval: float) -> str:
    """ "86.4 ± 1.2", or the mean alone where there is no interval."""
    return percent(mean) if math.isnan(interval) else f"{percent(mean)} ± {percent(interval)}"


def signed(fraction: float) -> str:
    """A difference in percentage points."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:+.1f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def weighs(distilled: DistilledSet) -> str:
    """What is stored, part by part, and in all."""
    parts = bytes_of_parts(distilled)
    named = ", ".join(f"{name} {bytes_in_words(count)}" for name, count in parts.items())
    return f"{named}; {bytes_in_words(sum(parts.values()))} in all"


def value(item: Any) -> str:
    """A hyper-parameter's value: thousands apart, switches as yes and no."""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if item is None:
        return "–"
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, float):
        return f"{item:g}"
    return str(item)


def count(number: int | None) -> str:
    """A number, or that it is not known."""
    return f"{number:,}" if number is not None else "an unknown number of"


def images(distilled: DistilledSet) -> str:
    """ "10 images", or "10 images (rendered as 40)" where the decoder cuts them."""
    count = len(distilled.targets)
    said = plural(distilled.stored, "image")
    return said if count == distilled.stored else f"{said} (rendered as {count:,})"


def hyper_rows(method: str, hyper: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of every hyper-parameter; meanings where the method is known here."""
    known = registered(method)
    docs = field_docs(known.cls) if known else {}
    return [(name, value(item), docs.get(name, "")) for name, item in hyper.items()]


def describe_space(space: SpaceRecord) -> str:
    """How stored numbers relate to pixels, in one sentence."""
    means = ", ".join(f"{v:.4g}" for v in space.mean)
    stds = ", ".join(f"{v:.4g}" for v in space.std)
    if space.kind == "raw":
        return "Images are stored as pixels in [0, 1]."
    if space.kind == "normalised":
        source = f" ({space.source} constants)" if space.source else ""
        return f"Images are stored as (pixel − mean) / std with mean {means} and std {stds}{source}."
    return "Images are stored ZCA-whitened; the whitening matrix lies beside them."


def describe_network(record: Mapping[str, Any]) -> str:
    """A network's name and options."""
    options = ", ".join(f"{k} {value(v)}" for k, v in record.get("options", {}).items())
    return f"{record.get('name', 'network')}" + (f" ({options})" if options else "")


def training(record: Mapping[str, Any]) -> str:
    """Training that resists a bias, as an option says it: "dfa", "dfa:steps=600,count=3"."""
    options = ",".join(f"{name}={item}" for name, item in record.items() if name != "how")
    return f"{record['how']}:{options}" if options else str(record["how"])


def kind_of_images(record: Manifest) -> str:
    """ "synthetic", or "selected real" for a coreset."""
    return "selected real" if record.family == "coreset" else "synthetic"


def changed(record: Manifest) -> list[tuple[str, str]]:
    """(what, how) of what a run changed in its method; nothing where it changed nothing."""
    return [kind.told(one) for kind, one in record.changes]
