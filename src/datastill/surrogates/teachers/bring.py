"""A user's trained network as a teacher, from a weights file that runs no code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.space import Space, normalized
from datastill.data.spaces import CONVENTIONAL
from datastill.models import resolve_network
from datastill.store.files import digest, read_tensors
from datastill.store.pt_reader import read_pt
from datastill.surrogates.teachers.teacher import Teacher
from datastill.surrogates.teachers.weights import load_weights

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Constants of pixels by the name of a set.
_KNOWN = {**CONVENTIONAL, "imagenet": CONVENTIONAL["tinyimagenet"]}
#: What a checkpoint calls the weights among other things.
_NAMES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "ema")


def bring_teacher(
    real: RealSet,
    network: Any,
    weights: str | Path,
    *,
    space: Space | str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Teacher:
    """A teacher from an architecture and a weights file; try it with `Teacher.check(real, device)`.

    Args:
        real: says image shape, and classes and Space where they are not given.
        network: its architecture, as `resolve_network` takes it.
        weights: a safetensors file, or a torch checkpoint, which is read by the weights-only reader.
        space: how its training normalized pixels: a `Space`, or see `space_from`; None takes that of `real`.
        class_names: of its logits, in order, when they are more or in another order than those of `real`.

    Raises:
        InputError: the file cannot be read safely, or does not fit the network.
    """
    names = real.class_names if class_names is None else tuple(class_names)
    size = (real.shape[1], real.shape[2])
    factory = resolve_network(network, channels=real.shape[0], classes=len(names), size=size)
    module = factory(0)
    path = Path(weights)
    told = load_weights(module, read_weights(path), path)
    own = space_from(space, real) if isinstance(space, str | None) else space
    origin = {"weights": path.name, "hash": digest(module.state_dict())} | ({"names": told} if told else {})
    return Teacher(module, own, names, real.shape[0], size, str(factory), {"origin": origin})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file or of a torch checkpoint, which may hold them under a usual name.

    Raises:
        InputError: the file is missing or damaged, or needs code to be read.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}; check the path.")
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        found = read_pt(path, widely=True).value
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as weights alone ({type(error).__name__}); save `network.state_dict()`, best as "
            "safetensors, and give that file."
        ) from error
    for name in _NAMES:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    tensors = {str(n): v for n, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise InputError(f"{path} holds no named weights; save `network.state_dict()` and give that file.")
    return tensors


def space_from(text: str | None, real: RealSet) -> Space:
    """A Space from words: "same" (that of the data), "raw", a set's name, or "mean/std", such as ".5,.5,.5/.2,.2,.2".

    Raises:
        InputError: none of these, or not a number per channel.
    """
    if text is None or text == "same":
        return real.space
    if text == "raw":
        return Space()
    if text in _KNOWN:
        mean, std = _KNOWN[text]
    elif re.fullmatch(r"[\d.,\s]+/[\d.,\s]+", text):
        mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))
    else:
        raise InputError(
            f"The teacher's pixels are 'same', 'raw', those of {', '.join(sorted(_KNOWN))}, or 'mean/std' with a "
            f"number per channel (.485,.456,.406/.229,.224,.225), not {text!r}."
        )
    if len(mean) != real.shape[0] or len(std) != real.shape[0]:
        raise InputError(f"The images have {real.shape[0]} channels and {text!r} gives {len(mean)} means.")
    return normalized(mean, std)
