"""Text encoders of the Hugging Face Hub, by folder or name, through the package `transformers`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datastill.core.errors import InputError, MissingExtra
from datastill.core.rng import undisturbed
from datastill.core.torchvision import import_torchvision
from datastill.data.cache import cache_folder
from datastill.store.files import digest, read_tensors, write_tensors
from datastill.store.schema import Kind

_AT_ONCE = 64
_POOLINGS = ("mean", "cls", "pooled")


def transformers_encoder(*, path: str = "", name: str = "", pooling: str = "mean", download: bool = False) -> Any:
    """An encoder from a folder, or by name from what is in the local cache of the Hub.

    Args:
        path: a folder with config, tokenizer and weights as safetensors.
        name: of the Hub; nothing is downloaded unless `download`.
        pooling: "mean" over the words, the state of the first token ("cls"), or the model's own ("pooled", CLIP).
        download: whether the Hub may be asked.
    """
    if bool(path) == bool(name):
        raise InputError("transformers: takes a folder (path=) or a name of the Hub (name=), one of them.")
    if path and not (Path(path) / "config.json").is_file():
        raise InputError(f"{path} holds no text encoder (no config.json); give the folder of one.")
    return TransformersText(path or name, pooling, local=bool(path) or not download)


class TransformersText:
    """A text encoder of `transformers`, frozen, in evaluation mode; only safetensors are read, and no code is.

    Args:
        where: a folder or a name.
        pooling: see `transformers_encoder`.
        local: whether nothing may be downloaded.

    Raises:
        MissingExtra: `transformers` is not installed.
        InputError: the encoder is not at hand, or cannot be read.
    """

    def __init__(self, where: str, pooling: str = "mean", local: bool = True) -> None:
        if pooling not in _POOLINGS:
            raise InputError(f"Unknown pooling {pooling!r}; take mean, cls or pooled.")
        try:
            with undisturbed():
                import transformers

                if find_spec("torchvision") is not None:
                    import_torchvision()  # which it imports where it is there
        except ImportError as error:
            raise MissingExtra(
                "Text encoders need the package transformers, which is not installed: pip install 'datastill[text]'; "
                "text=hashed needs nothing."
            ) from error
        options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            model = transformers.AutoModel.from_pretrained(where, use_safetensors=True, **options)
        except (OSError, ValueError) as error:
            asked = " (nothing is downloaded unless download=true)" if local else ""
            reason = str(error).split("\n")[0][:200]
            raise InputError(f"The text encoder {where!r} cannot be loaded{asked}: {reason}") from error
        model = getattr(model, "text_model", model)
        self._model: Any = model.eval().requires_grad_(False)
        self.pooling: Literal["mean", "cls", "pooled"] = pooling  # type: ignore[assignment]
        self.dim = int(model.config.hidden_size)
        self.fingerprint = digest(["transformers 2", pooling, _weights(self._model), _splits(self._tokenizer)])

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder`; what was encoded once is read from the cache folder."""
        file = cache_folder() / "text" / f"{digest([self.fingerprint, list(texts)])}.safetensors"
        with contextlib.suppress(InputError):
            return read_tensors(file, {"vectors": Kind(("F32",), (2,))})[0]["vectors"]
        found = torch.cat([self._encode(texts[i : i + _AT_ONCE]) for i in range(0, len(texts), _AT_ONCE)])
        with contextlib.suppress(InputError):  # where nothing can be written, the next run encodes them again
            write_tensors(file, {"vectors": found}, {})
        return found

    def _encode(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            out = self._model(**tokens)
            if self.pooling == "pooled":
                found = out.pooler_output
            elif self.pooling == "cls":
                found = out.last_hidden_state[:, 0]
            else:
                mask = tokens["attention_mask"][..., None].float()
                found = (out.last_hidden_state * mask).sum(1) / mask.sum(1).clamp_min(1)
        return found.float().clone()


def _splits(tokenizer: Any) -> list[Any]:
    """What decides how texts become tokens: its words and settings; two of one vocabulary may still differ in case."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = fast.to_str() if fast is not None else sorted(tokenizer.get_vocab().items())
    return [type(tokenizer).__name__, rules, tokenizer.model_max_length]


def _weights(model: torch.nn.Module) -> str:
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
