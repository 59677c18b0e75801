"""Decoders by their record, and what codes were rendered to for as long as they have not changed."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import ByNetwork, Decoder, Synthetic
from datastill.core.space import Space
from datastill.store.files import read_shapes, read_tensors
from datastill.store.schema import WEIGHTS

#: Weights of a decoder that is a network, beside the codes.
DECODER_FILE = "decoder.safetensors"


class Rendering:
    """What a decoder made of tensors, and whether any of them has been written to since."""

    def __init__(self, decoder: dict[str, Any], of: list[Tensor], result: Synthetic) -> None:
        self.decoder, self.of, self.result = decoder, of, result
        self._versions = self._written()

    def holds(self) -> bool:
        return self._versions is not None and self._versions == self._written()

    def _written(self) -> list[int] | None:
        tensors = [*self.of, self.result.x, self.result.y]
        return None if any(t.is_inference() for t in tensors) else [t._version for t in tensors]


def bound_decoder(record: Mapping[str, Any], weights: Mapping[str, Tensor], space: Space) -> Decoder:
    """The decoder that a manifest describes, with its weights where it renders with a network."""
    decoder = decoder_of(record)
    if isinstance(decoder, ByNetwork):
        decoder.bind(weights, space)
    return decoder


def weights_of(decoder: Decoder, folder: Path, files: Mapping[str, str]) -> dict[str, Tensor]:
    """What a decoder that is a network renders with: of the names and shapes of one that is built in, and finite.

    Args:
        decoder: of the set.
        folder: of the set.
        files: hashes of the files in it, by name.

    Raises:
        InputError: they are missing, or not what the manifest says.
    """
    wanted = decoder.expected() if isinstance(decoder, ByNetwork) else {}
    if not wanted:
        return {}
    path = folder / DECODER_FILE
    if DECODER_FILE not in files:
        raise InputError(f"{folder} lacks the weights that its images are rendered with ({DECODER_FILE}).")
    found = {name: shape.sizes for name, shape in read_shapes(path).items()}
    wrong = sorted(name for name in {*found, *wanted} if found.get(name) != tuple(wanted.get(name, (-1,))))
    if wrong:
        raise InputError(
            f"{path} is not of the decoder that the manifest names: {wrong[0]!r} is missing or does not fit."
        )
    return read_tensors(path, {"*": WEIGHTS}, whole=files[DECODER_FILE])[0]


def decoder_of(record: Mapping[str, Any]) -> Decoder:
    """The decoder that a manifest describes: the class that `datastill.decoders.<name>` exports as DECODER."""
    name = str(record.get("decoder", ""))
    package = importlib.import_module("datastill.decoders")
    if name not in {module.name for module in pkgutil.iter_modules(package.__path__)}:
        raise InputError(f"This datastill has no decoder {name!r}: update datastill.")
    module = importlib.import_module(f"{package.__name__}.{name}")
    if not hasattr(module, "DECODER"):
        raise InputError(f"The manifest's decoder {name!r} is none.")
    options = {key: value for key, value in record.items() if key != "decoder"}
    try:
        return cast("Decoder", module.DECODER(**options))
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"The manifest's decoder {name!r} has options that this datastill does not know.") from error
