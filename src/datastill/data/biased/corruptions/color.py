"""Changes of brightness, contrast and saturation. Images are (h, w, 3) float in [0, 1]."""

from __future__ import annotations

import numpy as np

Image = np.ndarray


def brightness(image: Image, rng: np.random.Generator, added: float) -> Image:
    """The V of hue, saturation and value, plus `added`, at most 1."""
    value = image.max(2, keepdims=True)
    brighter = (value + added).clip(0, 1)
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)


def contrast(image: Image, rng: np.random.Generator, factor: float) -> Image:
    """The distance from each channel's mean, times `factor`."""
    mean = image.mean((0, 1))
    return np.asarray((image - mean) * factor + mean)


def saturate(image: Image, rng: np.random.Generator, factor: float, added: float) -> Image:
    """The S of hue, saturation and value, times `factor` plus `added`, within [0, 1].

    Gray has the hue 0, red, so that gray pixels turn reddish where something is added.
    """
    value = image.max(2, keepdims=True)
    span = value - image.min(2, keepdims=True)
    old = span / np.where(value > 0, value, 1)
    new = (old * factor + added).clip(0, 1)
    colored = value - (value - image) * (new / np.where(span > 0, old, 1))
    red = value * np.concatenate([np.ones_like(new), 1 - new, 1 - new], 2)
    return np.where(span > 0, colored, red)
