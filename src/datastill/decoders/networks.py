"""What decoders that render with a network share: weights that fit, and networks that are named and not carried."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError, nearest
from datastill.store.files import digest
from datastill.store.schema import Record, Text


class CodesRecord(Record):
    """What was asked for instead of pixels, as manifests have it; 0 was settled by the size of the images."""

    how: Literal["dct", "glad", "ld3m"]
    kept: int = 0
    instances: int = 0
    layer: Text = ""
    generator: Text = ""


#: Latents begin within these; infinite ones count as `_INFINITE` (GLaD).
_CLIP, _INFINITE = 10.0, 5.0
#: Bytes of all generators that a process may name; only a bound on what a manifest says.
_MOST = 2**50


@runtime_checkable
class HasState(Protocol):
    """What tells its weights, by which it is known again."""

    def state_dict(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Brought:
    """A generator of the user's that is registered in this process."""

    network: Any
    sha256: str
    nbytes: int


_BROUGHT: dict[str, Brought] = {}


@dataclass(frozen=True)
class Named:
    """A network that is not in the artifact: it is known by the hash of its weights."""

    name: str
    sha256: str
    nbytes: int
    kind: type

    @classmethod
    def of(cls, record: Mapping[str, Any], kind: type) -> Named:
        """What a manifest says of it.

        Raises:
            InputError: it says no name, hash and size.
        """
        told = record if isinstance(record, Mapping) else {}
        name, sha, nbytes = (told.get(key) for key in ("name", "sha256", "bytes"))
        whole = isinstance(nbytes, int) and not isinstance(nbytes, bool) and 0 <= nbytes < _MOST
        if not isinstance(name, str) or not isinstance(sha, str) or len(sha) != 64 or not whole:
            raise InputError("A generator that is not in the artifact is named by name, sha256 and bytes.")
        return cls(name, sha, int(nbytes or 0), kind)

    def found(self) -> Any:
        """The network, where one with these weights was registered.

        Raises:
            InputError: none was, or one of another kind.
        """
        alike = {name: one for name, one in _BROUGHT.items() if one.sha256 == self.sha256}
        known = alike.get(self.name) or next(iter(alike.values()), None)
        if known is None:
            raise InputError(
                f"The generator {self.name!r} ({self.nbytes / 1e6:,.1f} MB, sha256 {self.sha256[:12]}...) is not in "
                "the artifact: register it first (datastill.decoders.networks.register_generator)."
            )
        if not isinstance(known.network, self.kind):
            raise InputError(f"The generator {self.name!r} is no {self.kind.__name__}.")
        return known.network


def as_shape(shape: Sequence[int], classes: int) -> tuple[int, int, int]:
    """Channels, height and width of an image, from a manifest.

    Raises:
        InputError: they are none, or `classes` is no number of them.
    """
    sizes = [*shape, classes]
    if len(shape) != 3 or not all(isinstance(s, int) and not isinstance(s, bool) and 1 <= s <= 65_536 for s in sizes):
        raise InputError(f"Latents need channels, height, width and a number of classes, not {sizes}.")
    channels, height, width = shape
    return channels, height, width


def expected_weights(network: Any) -> dict[str, Sequence[int]]:
    """The shapes of a network's state by name."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def with_weights(network: Any, weights: Mapping[str, Tensor]) -> Any:
    """The network, built on no device, with these weights, frozen and in eval mode.

    Raises:
        InputError: they are of another network.
    """
    wanted, found = expected_weights(network), {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        name = next(iter(sorted(set(wanted.items()) ^ set(found.items()))))[0]
        raise InputError(f"The decoder's weights do not fit it: {name!r} is missing, is not of it, or of another size.")
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def bounded(latents: Tensor) -> tuple[Tensor, int]:
    """Finite latents within bounds, and how many were not: layers in half precision overflow."""
    found = torch.nan_to_num(latents, nan=0.0, posinf=_INFINITE, neginf=-_INFINITE).clamp(-_CLIP, _CLIP)
    return found, int((found != latents).sum())


def register_generator(name: str, generator: Any) -> None:
    """Make a generator of yours known by a name in this process: `codes="glad:generator=NAME"` takes it.

    Sets that it renders name it by the hash of its weights and do not carry it, so that it must be registered again,
    under any name, before they are loaded.

    Args:
        name: letters, digits, "-" and "_".
        generator: with the attributes and methods of `StyleGenerator` or `LatentDiffusion`, and `state_dict`.

    Raises:
        InputError: the name is none, or the generator lacks something.
    """
    from datastill.models.generators import LatentDiffusion, StyleGenerator

    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"A generator's name has letters, digits, '-' and '_', not {name!r}.")
    kinds = (StyleGenerator, LatentDiffusion)
    if not isinstance(generator, kinds) or not isinstance(generator, HasState):
        raise InputError(
            f"{type(generator).__name__} is no generator: it needs the attributes and methods of StyleGenerator or "
            "LatentDiffusion in datastill.models.generators, and state_dict."
        )
    if isinstance(generator, nn.Module):  # a copy: runs move it to their device and precision
        generator = copy.deepcopy(generator).requires_grad_(False).eval()
    state = {key: value.detach().cpu() for key, value in generator.state_dict().items()}
    nbytes = sum(value.numel() * value.element_size() for value in state.values())
    _BROUGHT[name] = Brought(generator, digest(state, 64), nbytes)


def named(name: str) -> dict[str, Any]:
    """What a decoder says of a registered generator.

    Raises:
        InputError: none of that name is registered.
    """
    if name not in _BROUGHT:
        known = ("tiny", *_BROUGHT)
        raise InputError(f"There is no generator {name!r}. {nearest(name, known)}")
    one = _BROUGHT[name]
    return {"name": name, "sha256": one.sha256, "bytes": one.nbytes}
