"""Ten families of small textures, drawn on the spot: the default backgrounds. The recipe is ours.

Families differ in what they draw, its direction, its scale and its palette. Palettes overlap widely, so that
color alone does not tell the family.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

#: Standard deviation of a family's hue; neighbors are a tenth apart. Chosen so that ten random images per class of
#: garments, 5 % of them conflicting, score about the published 44.6 %.
HUE_SPREAD = 0.06
GRAIN = 0.02  #: standard deviation of the gray noise on each pixel

Grid = tuple[np.ndarray, np.ndarray]


class ProceduralBackgrounds:
    """A texture of one of the ten families; each call draws another scale, angle, phase and palette."""

    categories = 10
    names = (
        "horizontal stripes", "vertical stripes", "diagonal stripes", "checker", "dots", "clouds", "rings", "bricks",
        "gradient", "crosshatch",
    )  # fmt: skip

    def __call__(self, category: int, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """A background, (3, height, width) float in [0, 1].

        Args:
            category: 0..9.
            rng: the only source of randomness.
            size: (height, width); scales are in 28ths of the smaller one.
        """
        pattern = FAMILIES[category](_grid(size), rng)
        dark, light = _palette(category, rng)
        image = dark[:, None, None] + (light - dark)[:, None, None] * pattern
        return np.asarray((image + rng.normal(0, GRAIN, pattern.shape)).clip(0, 1))

    def identity(self) -> Any:
        return ["procedural", HUE_SPREAD, GRAIN]


@lru_cache(maxsize=8)
def _grid(size: tuple[int, int]) -> Grid:
    """Rows and columns of pixel centers in 28ths of the smaller side, about the middle."""
    unit = 28 / min(size)
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - (size[0] - 1) / 2) * unit, (x - (size[1] - 1) / 2) * unit


def _palette(category: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a light color of related hues, RGB in [0, 1]."""
    hue = category / 10 + rng.normal(0, HUE_SPREAD)
    dark = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.35))
    light = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.08)) % 1, rng.uniform(0.1, 0.7), rng.uniform(0.55, 0.9))
    return np.array(dark), np.array(light)


def _wave(grid: Grid, degrees: float, period: float, phase: float) -> np.ndarray:
    """A sine of [-1, 1] across a direction: 0 degrees varies down the picture, 90 across it."""
    angle = np.deg2rad(degrees)
    return np.asarray(np.sin(2 * np.pi * ((grid[0] * np.cos(angle) + grid[1] * np.sin(angle)) / period + phase)))


def _edged(values: np.ndarray, sharpness: float = 3.0) -> np.ndarray:
    """[-1, 1] to [0, 1] with edges about a pixel wide."""
    return np.asarray(0.5 + 0.5 * np.tanh(sharpness * values))


def _stripes(degrees: float, spread: float) -> Callable[[Grid, np.random.Generator], np.ndarray]:
    def draw(grid: Grid, rng: np.random.Generator) -> np.ndarray:
        return _edged(_wave(grid, degrees + rng.uniform(-spread, spread), rng.uniform(4, 9), rng.random()))

    return draw


def _checker(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    tilt, period = rng.uniform(-10, 10), rng.uniform(8, 13)
    down, across = (_wave(grid, tilt + turn, period, rng.random()) for turn in (0, 90))
    return _edged(down * across, 8.0)


def _dots(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    tilt, period = rng.uniform(-20, 20), rng.uniform(5, 8)
    down, across = (_wave(grid, tilt + turn, period, rng.random()) for turn in (0, 90))
    return _edged((down + across) / 2 - rng.uniform(0.25, 0.45), 6.0)


def _clouds(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Value noise of two octaves."""
    cell = rng.uniform(6, 10)
    noise = _value_noise(grid, cell, rng) + 0.5 * _value_noise(grid, cell / 2, rng)
    low, high = noise.min(), noise.max()
    return np.asarray((noise - low) / max(high - low, 1e-9))


def _value_noise(grid: Grid, cell: float, rng: np.random.Generator) -> np.ndarray:
    """Random values on a lattice of `cell`, smoothly interpolated."""
    y, x = grid[0] / cell, grid[1] / cell
    y, x = y - y.min() + rng.random(), x - x.min() + rng.random()
    lattice = rng.random((int(y.max()) + 2, int(x.max()) + 2))
    top, left = y.astype(int), x.astype(int)
    v, u = (t * t * (3 - 2 * t) for t in (y - top, x - left))
    upper = lattice[top, left] * (1 - u) + lattice[top, left + 1] * u
    lower = lattice[top + 1, left] * (1 - u) + lattice[top + 1, left + 1] * u
    return np.asarray(upper * (1 - v) + lower * v)


def _rings(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    radius = np.hypot(grid[0] - rng.uniform(-8, 8), grid[1] - rng.uniform(-8, 8))
    return _edged(np.sin(2 * np.pi * (radius / rng.uniform(4.5, 8) + rng.random())))


def _bricks(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    height = rng.uniform(4, 6.5)
    row = grid[0] / height + rng.random()
    column = grid[1] / (height * rng.uniform(1.8, 2.4)) + rng.random() + 0.5 * (np.floor(row) % 2)
    width = 0.9 / height  # of the mortar, in rows
    mortar = np.minimum(row % 1 / width, column % 1 / (width / 2))
    shade = rng.random((64, 64))[np.floor(row).astype(int) % 64, np.floor(column).astype(int) % 64]
    return np.asarray(np.where(mortar < 1, 1.0, 0.35 * shade))


def _gradient(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    along = grid[0] * np.cos(angle) + grid[1] * np.sin(angle)
    return np.asarray((along / (2 * max(np.abs(along).max(), 1e-9)) + 0.5) ** rng.uniform(0.7, 1.4))


def _crosshatch(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    tilt, period = rng.uniform(-10, 10), rng.uniform(5, 8)
    lines = [_wave(grid, turn + tilt, period, rng.random()) for turn in (45, -45)]
    return _edged(np.maximum(*lines) - 0.75, 6.0)


#: By category, in the order of `ProceduralBackgrounds.names`.
FAMILIES: tuple[Callable[[Grid, np.random.Generator], np.ndarray], ...] = (
    _stripes(0, 10),
    _stripes(90, 10),
    _stripes(45, 12),
    _checker,
    _dots,
    _clouds,
    _rings,
    _bricks,
    _gradient,
    _crosshatch,
)
