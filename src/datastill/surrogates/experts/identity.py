"""What experts depend on, and the sentence for the first of these things in which a buffer and a run differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastill.core.errors import InputError
from datastill.data.real import RAW
from datastill.store.checkpoint import plain
from datastill.store.files import digest
from datastill.surrogates.experts.layout import Layout

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.models.factory import NetworkFactory
    from datastill.surrogates.experts.store import ExpertBuffer

#: What a distillation must share with its experts, in the order in which it is compared, and what helps.
_SHARED = {
    "text": "load the pairs with the text encoder of the experts (text=), or train experts with this one",
    "network": "name the network of the experts (--network), or train experts of this one",
    "parameters": "name the network of the experts (--network), or train experts of this one",
    "space": "load the real set in the space of the experts, or train experts in this one",
    "data": "name the real set of the experts (--data), or train experts on this one",
    "weights": "give the real set the weights of the experts, or train experts with these",
}


def shared_identity(network: NetworkFactory, real: RealSet, layout: Layout) -> dict[str, Any]:
    """What a distillation must share with its experts, JSON-able.

    `data` hashes the images in order and the labels alone: Space and weights are fields of their own.
    """
    bare = real.with_space(RAW).with_weights(None)
    captions = real.captions
    return dict(
        plain(
            {
                **({} if captions is None else {"text": f"{captions.encoder} ({captions.dim} numbers)"}),
                "network": network.describe(),
                "parameters": layout.size,
                "space": real.space.id,
                "data": bare.fingerprint,
                "weights": None if real.weights is None else digest(real.weights),
            }
        )
    )


def about(network: NetworkFactory, real: RealSet) -> dict[str, Any]:
    """The same things for people."""
    return dict(
        plain(
            {
                "network": str(network),
                "data": {
                    "name": real.name,
                    "images": len(real),
                    "shape": list(real.shape),
                    "classes": real.classes,
                    "counts": real.counts.tolist(),
                    "weighted": real.weights is not None,
                },
                "space": real.space.to_dict(),
            }
        )
    )


def refuse_difference(path: Path, meta: Mapping[str, Any], network: NetworkFactory, real: RealSet) -> None:
    """Compare a buffer's `meta.json` with a run.

    Raises:
        InputError: they differ; the first field that does is named.
    """
    mine = shared_identity(network, real, Layout.of(network(0)))
    theirs = meta["config"]
    for name, remedy in _SHARED.items():
        here, there = mine.get(name), theirs.get(name)
        if here == there:
            continue
        field = name
        if isinstance(here, dict):
            field, here, there = _inner(name, here, there)
        elif name in ("data", "space"):
            told = about(network, real)
            key = "name" if name == "data" else "kind"
            here, there = f"{told[name][key]} ({here})", f"{meta['about'][name][key]} ({there})"
        raise InputError(f"The experts in {path} do not fit: their {field} is {there}, this run's is {here}; {remedy}.")


def refuse_policy(buffer: ExpertBuffer, policy: str) -> None:
    """Make sure that experts were trained by a policy, whatever its numbers; of imported ones nobody knows.

    Raises:
        InputError: they were trained by another.
    """
    theirs, mine = str(buffer.meta["config"]["policy"]["name"]), policy.partition(":")[0].strip()
    if theirs not in (mine, "imported"):
        raise InputError(
            f"The experts in {buffer.path} do not fit: their policy is {theirs}, this run's is {mine}; train experts "
            f"by {mine}, or name theirs (expert_policy={theirs}, --expert-policy {theirs}) to match them all the same."
        )


def _inner(name: str, mine: Mapping[str, Any], theirs: Any) -> tuple[str, Any, Any]:
    """The first field in which two records differ, with its full name and both values."""
    theirs = theirs if isinstance(theirs, dict) else {}
    for key in sorted({*mine, *theirs}):
        here, there = mine.get(key), theirs.get(key)
        if here == there:
            continue
        full = f"{name}.{key}"
        return _inner(full, here, there) if isinstance(here, dict) else (full, here, there)
    return name, mine, theirs
