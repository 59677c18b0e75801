"""Generators of the form of StyleGAN3 and StyleGAN-XL behind our names, and the one place that opens a pickle."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.core.errors import InputError

_NEEDED = ("mapping", "synthesis", "z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")


class StyleGan(nn.Module):
    """A generator with `mapping(z, c)`, and a `synthesis` with `input`, `layer_names` and a module for each of them.

    Args:
        generator: an object of yours, loaded by code of yours.
        classes: for each class of the data, in order, the class of the generator; None where it knows no classes.

    Raises:
        InputError: it has another form, or `classes` are none of its classes.
    """

    generator: Any
    chosen: Tensor

    def __init__(self, generator: Any, classes: Sequence[int] | None = None) -> None:
        super().__init__()
        _refuse_other_form(generator)
        known = int(generator.c_dim)
        chosen = list(classes or ())
        if bool(chosen) != bool(known) or not all(isinstance(c, int) and 0 <= c < known for c in chosen):
            raise InputError(
                f"This generator knows {known} classes: give for each class of the data one from 0 to {known - 1}."
                if known
                else "This generator knows no classes; leave them out."
            )
        self.generator, self.classes = generator, len(chosen)
        self.register_buffer("chosen", torch.tensor(chosen, dtype=torch.int64))  # a part of what it is known by
        self.z_dim, self.w_dim, self.known = int(generator.z_dim), int(generator.w_dim), known
        side = int(generator.img_resolution)
        self.img_shape = (int(generator.img_channels), side, side)
        self.names = list(generator.synthesis.layer_names)
        self.num_layers, self.num_ws = len(self.names), len(self.names) + 1  # the first goes to the input

    def map(self, z: Tensor, y: Tensor) -> Tensor:
        """Styles of z and the generator's classes."""
        c = F.one_hot(self.chosen.to(y.device)[y], self.known).to(z) if self.known else None
        return self.generator.mapping(z, c)

    def features(self, ws: Tensor, n: int) -> Tensor:
        """What enters layer n."""
        return self._run(self.generator.synthesis.input(ws[:, 0]), ws, 0, n)

    def synthesize(self, ws: Tensor, f: Tensor | None = None, start: int = 0) -> Tensor:
        """Images in about [-1, 1]."""
        x = self.features(ws, start) if f is None else f
        x = self._run(x, ws, start, self.num_layers).to(ws.dtype)
        scale = self.generator.synthesis.__dict__.get("output_scale", 1)
        return x * scale

    def _run(self, x: Tensor, ws: Tensor, first: int, last: int) -> Tensor:
        for n in range(first, last):
            x = getattr(self.generator.synthesis, self.names[n])(x, ws[:, n + 1])
        return x


def _refuse_other_form(generator: object) -> None:
    lacking = [name for name in _NEEDED if not hasattr(generator, name)]
    if lacking or not isinstance(generator, nn.Module):
        raise InputError(
            f"{type(generator).__name__} has not the form of StyleGAN3: it lacks {', '.join(lacking) or 'modules'}."
        )


def open_pickle(
    path: str | Path, classes: Sequence[int] | None = None, *, source: str | Path | None = None, trust: str = ""
) -> StyleGan:
    """A generator from a pickle, which runs whatever code its author put into it.

    Args:
        path: the file; of a dictionary its "G_ema" is taken.
        classes: as of `StyleGan`.
        source: a folder with the code that the pickle needs, which it may import.
        trust: must be "this pickle may run code".

    Raises:
        InputError: it is not trusted, or cannot be opened.
    """
    if trust != "this pickle may run code":
        raise InputError(
            f"Opening {path} runs code that its author put there: where you trust it, give "
            "trust='this pickle may run code'."
        )
    with _importing(source):
        try:
            found = pickle.loads(Path(path).read_bytes())
        except Exception as error:  # a pickle provokes errors of any kind
            reason = str(error).split("\n")[0][:200]
            raise InputError(f"{path} cannot be opened ({reason}); its code may be missing: give source.") from error
    return StyleGan(found["G_ema"] if isinstance(found, dict) and "G_ema" in found else found, classes)


@contextlib.contextmanager
def _importing(source: str | Path | None) -> Iterator[None]:
    """With one folder more where modules are looked for."""
    if source is None:
        yield
        return
    sys.path.insert(0, str(source))
    try:
        yield
    finally:
        sys.path.remove(str(source))
