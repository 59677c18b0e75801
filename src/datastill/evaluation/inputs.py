"""What an evaluation is given: sets that stand for one method, the real set that fits them, the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.errors import InputError
from datastill.core.overrides import Override, overrides
from datastill.data import load_real
from datastill.data.recorded import load_recorded
from datastill.models import NetworkFactory, resolve_network, resolve_recorded
from datastill.models.factory import MOST_RECORDED, at_most
from datastill.store.artifact import DistilledSet, load_distilled
from datastill.store.files import digest

if TYPE_CHECKING:
    from datastill.data.real import RealSet

Distilled = DistilledSet | str | Path


def load_sets(distilled: Distilled | Sequence[Distilled]) -> list[DistilledSet]:
    """The sets themselves, at least one.

    Raises:
        InputError: there is none, or a folder holds none.
    """
    many = [distilled] if isinstance(distilled, DistilledSet | str | Path) else list(distilled)
    if not many:
        raise InputError("There is no distilled set to evaluate.")
    return [one if isinstance(one, DistilledSet) else load_distilled(one) for one in many]


def real_for(distilled: DistilledSet, real: Any) -> RealSet:
    """The real set that a caller gives, or else the one that the set names, where that may be taken.

    Raises:
        InputError: there is none.
    """
    from datastill.data.real import RealSet

    if isinstance(real, RealSet):
        found = real
    elif real is not None:
        found = load_real(real)
    else:
        found = load_recorded(distilled.record.data, distilled.space, distilled.folder)
    return found


def check_alike(sets: list[DistilledSet]) -> None:
    """Several sets stand for one method at one size: anything else would be a mean over different things."""
    first = sets[0]
    for one in sets[1:]:
        for what, mine, theirs in (
            ("method", first.record.method, one.record.method),
            ("images per class", first.ipc, one.ipc),
            ("space", first.space.id, one.space.id),
            *((kind.label, _changed(first, kind), _changed(one, kind)) for kind in overrides().values()),
        ):
            if mine != theirs:
                raise InputError(
                    f"The sets differ in their {what} ({mine} and {theirs}); evaluate them one by one, or give "
                    "those of one size to `datastill compare --sets`."
                )
    if len({digest([one.codes, one.labels]) for one in sets}) < len(sets):
        raise InputError("The same set is given more than once; each counts as evidence of its own, so give it once.")


def _changed(one: DistilledSet, kind: type[Override]) -> str:
    """What its run changed by an override, in words."""
    record = one.record.change(kind.option)
    return "none" if record is None else kind.told(record)[1]


def check_fit(distilled: DistilledSet, real: RealSet) -> None:
    """Classes and shape of the images are those of the data."""
    if tuple(distilled.class_names) != tuple(real.class_names):
        raise InputError(
            f"The classes of the distilled set ({', '.join(distilled.class_names[:5])}, ...) are not those of "
            f"{real.name} ({', '.join(real.class_names[:5])}, ...), in the same order; give the data it was made from."
        )
    _check_sentences(distilled, real)
    shape = tuple(distilled.images.shape[1:])
    if shape != tuple(real.shape):
        raise InputError(
            f"The distilled images are {shape} (channels, height, width) and those of {real.name} are "
            f"{tuple(real.shape)}; load the data at that size ({_loaded_at(*shape)})."
        )


def _loaded_at(channels: int, height: int, width: int) -> str:
    """How images of a shape are asked for."""
    size = f"--size {height}" if height == width else f"size=({height}, {width}) in Python"
    return size + (" --mode L" if channels == 1 else " --mode RGB" if channels == 3 else "")


def _check_sentences(distilled: DistilledSet, real: RealSet) -> None:
    """Vectors of sentences are those of one text encoder."""
    if real.captions is None:
        return
    mine, theirs = int(distilled.labels.shape[-1]), real.captions.dim
    if mine != theirs:
        raise InputError(
            f"The sentences of the distilled set have {mine} numbers and those of {real.name} {theirs}; load it with "
            "the text encoder of the set (text=)."
        )
    known = distilled.record.data.captions.get("fingerprint", "")
    if known not in ("", real.captions.fingerprint):
        raise InputError(
            f"The sentences of {real.name} were encoded by {real.captions.encoder}, and those of the distilled set by "
            f"{distilled.record.data.captions.get('encoder', 'another encoder')}; load it with that one (text=)."
        )


def network_for(distilled: DistilledSet, real: RealSet, network: Any) -> NetworkFactory:
    """The network that a caller gives, or else the one that the set was distilled with.

    Raises:
        InputError: it cannot be built for this data, or the caller alone has it.
    """
    shapes = real.network_shape
    if network is not None:
        return resolve_network(network, **shapes)
    made_on = distilled.record.network
    if made_on is None:
        return resolve_network(None, **shapes)
    if made_on.spec is None:
        raise InputError(f"The set was distilled with {made_on.name}; give the network to evaluate with (network=...).")
    with at_most(MOST_RECORDED, f"The manifest of {distilled.name}"):
        return resolve_recorded(made_on.spec, "The set", "--network (network=)", **shapes)
