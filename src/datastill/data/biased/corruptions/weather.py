"""Fog, snow, and water or mud on the lens. Images are (h, w, 3) float in [0, 1]; lengths are in pixels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from datastill.data.biased.corruptions.blur import enlarge, trail

Image = np.ndarray

LUMA = np.array([0.299, 0.587, 0.114])
WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255
EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def fog(image: Image, rng: np.random.Generator, amount: float, decay: float) -> Image:
    """A plasma cloud on top, then darkened so that the brightest value can have been what it was."""
    h, w = image.shape[:2]
    side = 1 << (max(h, w) - 1).bit_length()
    brightest = image.max()
    clouded = image + amount * plasma(side, decay, rng)[:h, :w, None]
    return np.asarray(clouded * brightest / (brightest + amount))


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Midpoint displacement on a torus, (side, side) of 0 to 1; `side` is a power of two.

    Halving the mesh divides the displacement by `decay` squared: the published procedure uses its range twice,
    as the bound of the draw and as a factor.
    """
    cloud = np.zeros((side, side))
    mesh, strength = side, 1.0
    while mesh > 1:
        half = mesh // 2
        corner = cloud[::mesh, ::mesh]
        right, below = np.roll(corner, -1, 1), np.roll(corner, -1, 0)
        draws = rng.uniform(-strength, strength, (3, *corner.shape))
        middle = (corner + right + below + np.roll(right, -1, 0)) / 4 + draws[0]
        cloud[half::mesh, half::mesh] = middle
        cloud[::mesh, half::mesh] = (corner + right + middle + np.roll(middle, 1, 0)) / 4 + draws[1]
        cloud[half::mesh, ::mesh] = (corner + below + middle + np.roll(middle, 1, 1)) / 4 + draws[2]
        mesh, strength = half, strength / decay**2
    cloud -= cloud.min()
    return np.asarray(cloud / max(cloud.max(), 1e-12))


def snow(
    image: Image, rng: np.random.Generator, mean: float, std: float, zoom: float, threshold: float, radius: int,
    sigma: float, kept: float,
) -> Image:  # fmt: skip
    """Flakes with trails that fall steeply, on a paler picture.

    Args:
        image: the picture.
        rng: the only source of randomness.
        mean: of the noise that flakes are made of.
        std: of that noise.
        zoom: enlargement of the flakes.
        threshold: of the noise, below which there is none.
        radius: of the trails.
        sigma: of the trails.
        kept: how much of the picture is not paled.
    """
    flakes = enlarge(rng.normal(mean, std, image.shape[:2]), zoom)
    flakes = trail(np.where(flakes < threshold, 0, flakes).clip(0, 1), radius, sigma, rng.uniform(-135, -45))
    gray = (image @ LUMA)[:, :, None]
    paled = kept * image + (1 - kept) * np.maximum(image, gray * 1.5 + 0.5)
    return np.asarray(paled + (flakes + np.rot90(flakes, 2))[:, :, None])


def spatter(
    image: Image, rng: np.random.Generator, mean: float, std: float, blur: float, threshold: float,
    strength: float, kind: str,
) -> Image:  # fmt: skip
    """Drops of water, or specks of mud, where smooth noise is above a threshold.

    Args:
        image: the picture.
        rng: the only source of randomness.
        mean: of the noise.
        std: of the noise before it is smoothed.
        blur: standard deviation of the smoothing.
        threshold: above which there is liquid.
        strength: for "water" its opacity where it is brightest, for "mud" the softness of its edge in pixels.
        kind: "water" or "mud".
    """
    liquid = ndimage.gaussian_filter(rng.normal(mean, std, image.shape[:2]), blur)
    liquid = np.where(liquid < threshold, 0, liquid)
    if kind == "mud":
        cover = ndimage.gaussian_filter((liquid > 0).astype(float), strength)[:, :, None]
        cover = np.where(cover < 0.8, 0, cover)
        return np.asarray(image * (1 - cover) + cover * MUD)
    sheen = liquid * _relief(liquid)
    sheen = strength * sheen / max(sheen.max(), 1e-12)
    return np.asarray(image + sheen[:, :, None] * WATER)


def _relief(liquid: np.ndarray) -> np.ndarray:
    """Light from one side on drops: the embossed, equalized distance to their outlines, (h, w) of 0 to 255."""
    slope = np.hypot(ndimage.sobel(liquid, 0), ndimage.sobel(liquid, 1))
    outline = slope > 0.5
    if not outline.any():
        return np.ones_like(liquid)
    distance = ndimage.uniform_filter(np.minimum(ndimage.distance_transform_edt(~outline), 20), 3)
    order = np.sort(distance.ravel())
    equal = 255 * np.searchsorted(order, distance, side="right") / order.size
    lit = ndimage.correlate(equal, EMBOSS, mode="mirror").clip(0, 255)
    return np.asarray(ndimage.uniform_filter(lit, 3))
