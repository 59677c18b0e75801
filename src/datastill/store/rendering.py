"""Decoders by their record, and what codes were rendered to for as long as they have not changed."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from datastill.core.errors import InputError
from datastill.core.plan import Decoder, Synthetic


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
