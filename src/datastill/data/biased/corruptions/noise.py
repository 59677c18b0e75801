"""Noise on each value. Images are (h, w, 3) float in [0, 1]; results may leave that range."""

from __future__ import annotations

import numpy as np

Image = np.ndarray


def gaussian_noise(image: Image, rng: np.random.Generator, sigma: float) -> Image:
    """x + N(0, sigma^2)."""
    return np.asarray(image + rng.normal(0, sigma, image.shape))


def shot_noise(image: Image, rng: np.random.Generator, photons: float) -> Image:
    """Poisson counts of x * photons, over photons: fewer photons are noisier."""
    return np.asarray(rng.poisson(image * photons) / photons)


def impulse_noise(image: Image, rng: np.random.Generator, amount: float) -> Image:
    """Each value becomes 0 or 1, as likely, with probability `amount`."""
    drawn = rng.random(image.shape)
    return np.where(drawn < amount / 2, 0.0, np.where(drawn < amount, 1.0, image))


def speckle_noise(image: Image, rng: np.random.Generator, sigma: float) -> Image:
    """x + x N(0, sigma^2)."""
    return np.asarray(image * (1 + rng.normal(0, sigma, image.shape)))
