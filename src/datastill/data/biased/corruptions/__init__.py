"""The twenty corruptions of CIFAR-10-C on numpy, scipy and Pillow, each with a generator of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datastill.core.errors import InputError, nearest
from datastill.data.biased.corruptions import blur, color, digital, frost, noise, weather
from datastill.data.biased.corruptions.levels import LEVELS, PRESETS, corruption_list, level_of_severity

__all__ = ["CORRUPTIONS", "LEVELS", "PRESETS", "corrupt", "corruption_list", "level_of_severity"]


def original(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image as it is."""
    return image


#: `(image, rng, *arguments of a level) -> image` over (h, w, 3) float in [0, 1].
CORRUPTIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "fog": weather.fog,
    "frost": frost.frost,
    "snow": weather.snow,
    "contrast": color.contrast,
    "brightness": color.brightness,
    "saturate": color.saturate,
    "jpeg": digital.jpeg,
    "pixelate": digital.pixelate,
    "elastic": digital.elastic,
    "spatter": weather.spatter,
    "original": original,
}


def corrupt(
    image: np.ndarray,
    name: str,
    level: int,
    rng: np.random.Generator,
    frost_pictures: tuple[np.ndarray, ...] | None = None,
) -> np.ndarray:
    """One corrupted image.

    Args:
        image: (h, w, 3) uint8.
        name: of `CORRUPTIONS`.
        level: 1..5.
        rng: the only source of randomness.
        frost_pictures: for "frost", see there.

    Returns:
        (h, w, 3) uint8: clipped, and rounded to the nearest level.

    Raises:
        InputError: an unknown name or level, or an image of another kind.
    """
    if name not in CORRUPTIONS:
        raise InputError(f"There is no corruption {name!r}. {nearest(name, CORRUPTIONS)}")
    if level not in (1, 2, 3, 4, 5):
        raise InputError(f"Corruptions have the levels 1 to 5, not {level}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"A corruption takes (h, w, 3) uint8, not {image.shape} of {image.dtype}.")
    more = {"pictures": frost_pictures} if name == "frost" else {}
    made = CORRUPTIONS[name](image / 255, rng, *LEVELS[name][level - 1], **more)
    return np.rint(made.clip(0, 1) * 255).astype(np.uint8)
