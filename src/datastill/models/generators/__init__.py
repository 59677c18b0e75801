"""Networks that render images from latents: what a decoder asks of them, and small ones that are trained here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from datastill.core.errors import InputError

#: Longest side of an image of the small generators: their layers are many times as large as the image.
LONGEST = 512


def refuse_large(shape: Sequence[int]) -> None:
    """Refuse images (channels, height, width) that the small generators are not for.

    Raises:
        InputError: a side is longer than 512 pixels.
    """
    if max(shape[1:]) > LONGEST:
        raise InputError(
            f"The small generators are for images of at most {LONGEST} pixels a side, not {shape[1]} x {shape[2]}; "
            "bring a generator of your own, or make images smaller (--size)."
        )


@runtime_checkable
class StyleGenerator(Protocol):
    """A generator whose layers are steered by styles, as StyleGAN's are. Bring your own with these names.

    `synthesize(ws, features(ws, n), start=n)` equals `synthesize(ws)` for every layer n: features are what enters it.
    """

    num_layers: int  #: of the synthesis, counted from 0
    num_ws: int  #: styles of an image, one for each layer and what comes after the last
    z_dim: int
    w_dim: int
    img_shape: tuple[int, int, int]  #: channels, height, width
    classes: int  #: that it knows; 0 takes no notice of them

    def map(self, z: Tensor, y: Tensor) -> Tensor:
        """Styles (n, num_ws, w_dim) of z (n, z_dim) and classes (n,)."""
        ...

    def features(self, ws: Tensor, n: int) -> Tensor:
        """What enters layer n, (n, c, h, w)."""
        ...

    def synthesize(self, ws: Tensor, f: Tensor | None = None, start: int = 0) -> Tensor:
        """Images in [-1, 1], from the features that enter layer `start`, or from the beginning."""
        ...


@runtime_checkable
class LatentDiffusion(Protocol):
    """An auto-encoder and a diffusion model in its latents. Bring your own with these names."""

    img_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    condition_dim: int  #: numbers of a condition; 0 where there is none
    classes: int  #: that `embed` knows; 0 where there is no condition
    alphas_cumprod: Tensor  #: of the noise, (T,)

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images in [-1, 1], scaled to about unit variance."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        ...

    def eps(self, z: Tensor, t: int, c: Tensor | None) -> Tensor:
        """The noise in latents z at time t, given conditions (n, condition_dim)."""
        ...

    def embed(self, y: Tensor) -> Tensor:
        """The conditions of classes (n,)."""
        ...

    def null_embed(self, n: int) -> Tensor:
        """The condition that says nothing, (n, condition_dim)."""
        ...

    def quantize(self, z: Tensor) -> Tensor:
        """What the decoder's codebook makes of latents, straight-through; z itself without one."""
        ...
