"""Frost on the glass: pictures of ice laid over an image. The published six photographs are not used.

In their place stand six textures that are made here, or pictures of yours.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.decode import decode_image
from datastill.data.inside import Links
from datastill.data.parts import is_image
from datastill.data.raw import Request

Image = np.ndarray
PICTURES = 6
SIDE = 160  #: of a texture made here
SHRINK = 0.2  #: what the published procedure scales its photographs by


def frost(
    image: Image, rng: np.random.Generator, kept: float, added: float, pictures: tuple[Image, ...] | None = None
) -> Image:
    """`kept` times the image plus `added` times a random cut-out of a random picture of ice.

    Args:
        image: (h, w, 3) float in [0, 1].
        rng: the only source of randomness.
        kept: factor of the image.
        added: factor of the ice.
        pictures: (height, width, 3) float in [0, 1] each; None for the textures made here.
    """
    pictures = pictures or textures()
    ice = pictures[int(rng.integers(len(pictures)))]
    h, w = image.shape[:2]
    times = max(-(-h // ice.shape[0]), -(-w // ice.shape[1]))
    if times > 1:  # a picture smaller than the image
        ice = np.kron(ice, np.ones((times, times, 1)))
    top, left = int(rng.integers(ice.shape[0] - h + 1)), int(rng.integers(ice.shape[1] - w + 1))
    return np.asarray(kept * image + added * ice[top : top + h, left : left + w])


@lru_cache(maxsize=1)
def textures() -> tuple[Image, ...]:
    """Six pictures of ice, (160, 160, 3) float in [0, 1] each, always the same."""
    return tuple(texture(Rng(0).numpy("frost", k)) for k in range(PICTURES))


def texture(rng: np.random.Generator) -> Image:
    """Thresholded ridged noise: bright needles along a few directions, bluish, denser in some places."""
    ridges = np.zeros((SIDE, SIDE))
    for octave, weight in ((12.0, 1.0), (6.0, 0.8), (3.0, 0.6), (1.5, 0.4)):
        noise = ndimage.gaussian_filter(
            rng.normal(size=(SIDE, SIDE)), (octave, octave * rng.uniform(0.3, 1)), mode="wrap"
        )
        ridges += weight * (1 - np.abs(noise) / (2 * noise.std())).clip(0) ** 2
    ridges = ndimage.rotate(np.tile(ridges, (2, 2)), rng.uniform(0, 180), reshape=False, order=1, mode="wrap")
    ridges = ridges[SIDE // 2 : SIDE // 2 + SIDE, SIDE // 2 : SIDE // 2 + SIDE]
    patches = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 20, mode="wrap")
    low, high = np.quantile(ridges, (0.05, 0.93))
    ice = ((ridges - low) / (high - low)).clip(0, 1) * (0.7 + 0.3 * np.tanh(patches / patches.std()))
    tint = np.array([0.80, 0.92, 1.0]) + rng.uniform(-0.04, 0.04, 3)
    return np.asarray((0.15 + 0.85 * ice[:, :, None] * tint).clip(0, 1))


def read_pictures(folder: Path | str) -> tuple[Image, ...]:
    """Pictures of ice from a folder, scaled by 0.2 as published, but to no less than 64 pixels a side.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    from PIL import Image as Pillow

    folder = Path(folder).expanduser()
    links = Links(folder)
    files = sorted(links.inside(f for f in folder.iterdir() if is_image(f))) if folder.is_dir() else []
    links.refuse()
    if not files:
        raise InputError(f"There are no pictures of frost in {folder}; give a folder of image files.")
    found = []
    for file in files:
        pixels = decode_image(file.read_bytes(), str(file), Request(mode="RGB")).transpose(1, 2, 0)
        factor = max(SHRINK, 64 / min(pixels.shape[:2]))
        size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
        small = Pillow.fromarray(np.ascontiguousarray(pixels)).resize(size, Pillow.Resampling.BILINEAR)
        found.append(np.asarray(small) / 255)
    return tuple(found)
