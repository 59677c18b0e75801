"""Blurs. Images are (h, w, 3) float in [0, 1]; lengths are in pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

Image = np.ndarray


def gaussian_blur(image: Image, rng: np.random.Generator, sigma: float) -> Image:
    """A Gaussian of standard deviation `sigma`."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest"))


def defocus_blur(image: Image, rng: np.random.Generator, radius: float, alias: float) -> Image:
    """The mean over a disc, whose edge is softened by a 3 x 3 Gaussian of standard deviation `alias`."""
    return np.asarray(ndimage.correlate(image, _disc(radius, alias)[:, :, None], mode="mirror"))


@lru_cache(maxsize=32)
def _disc(radius: float, alias: float) -> np.ndarray:
    reach = int(radius) + 1  # room for the Gaussian
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (y**2 + x**2 <= radius**2).astype(float)
    side = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    kernel = ndimage.convolve(disc / disc.sum(), np.outer(side, side) / side.sum() ** 2, mode="constant")
    return np.asarray(kernel)


def glass_blur(image: Image, rng: np.random.Generator, sigma: float, reach: int, rounds: int) -> Image:
    """Pixels change places with near ones, between two Gaussian blurs.

    Each pixel takes the value of one up to `reach` above and to the left, or its own: that is what the published
    loop of swaps does at reach 1, since the second half of each swap reads what the first has written.
    """
    mixed = gaussian_blur(image, rng, sigma)
    h, w = image.shape[:2]
    rows, columns = np.mgrid[:h, :w]
    for _ in range(rounds):
        up, left = rng.integers(0, reach + 1, (2, h, w))
        mixed = mixed[(rows - up).clip(0), (columns - left).clip(0)]
    return gaussian_blur(mixed, rng, sigma)


def motion_blur(image: Image, rng: np.random.Generator, radius: int, sigma: float) -> Image:
    """A trail to one side, at an angle of -45 to 45 degrees to the row."""
    return trail(image, radius, sigma, rng.uniform(-45, 45))


def trail(image: Image, radius: int, sigma: float, degrees: float) -> Image:
    """Mean of 2 `radius` + 1 copies, each a pixel further along a direction, with half a Gaussian for weights.

    Args:
        image: (h, w) or (h, w, c).
        radius: of the trail, in pixels.
        sigma: standard deviation of the weights, in pixels.
        degrees: direction, from the row downwards.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = np.deg2rad(degrees)
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    h, w = image.shape[:2]
    rows, columns = np.arange(h), np.arange(w)
    total = np.zeros(image.shape)
    for dy, dx, weight in zip(down, right, weights):
        if weight > 1e-6:
            total += weight * image[(rows + dy).clip(0, h - 1)[:, None], (columns + dx).clip(0, w - 1)]
    return total


def zoom_blur(image: Image, rng: np.random.Generator, largest: float) -> Image:
    """The mean of the image and its enlargements about the center by 1, 1.01, ... to `largest`."""
    h, w, c = image.shape
    down, across = _enlargements(h, largest), _enlargements(w, largest)
    count = len(down)
    tall = (down @ image.reshape(h, w * c)).reshape(count, h, w, c)
    # the sum over factors and columns is one product of matrices
    wide = tall.transpose(1, 3, 0, 2).reshape(h * c, count * w) @ across.transpose(0, 2, 1).reshape(count * w, w)
    return np.asarray((image + wide.reshape(h, c, w).transpose(0, 2, 1)) / (count + 1))


@lru_cache(maxsize=64)
def _enlargements(side: int, largest: float) -> np.ndarray:
    """Linear interpolation about the center for each factor, (k, side, side)."""
    factors = 1 + 0.01 * np.arange(round((largest - 1) * 100) + 1)
    center = (side - 1) / 2
    where = center + (np.arange(side) - center) / factors[:, None]
    return np.maximum(0, 1 - np.abs(where[:, :, None] - np.arange(side)))


def enlarge(image: Image, factor: float) -> Image:
    """A (h, w) image enlarged about its center, of the same size."""
    h, w = image.shape
    rows, columns = ((side - 1) / 2 + (np.arange(side) - (side - 1) / 2) / factor for side in (h, w))
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.asarray(ndimage.map_coordinates(image, grid, order=1, mode="nearest"))
