"""What storage and resampling do: JPEG, large pixels, a warped picture. Images are (h, w, 3) float in [0, 1]."""

from __future__ import annotations

import io

import numpy as np
from scipy import ndimage

Image = np.ndarray


def jpeg(image: Image, rng: np.random.Generator, quality: int) -> Image:
    """Encoded as JPEG and decoded."""
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(_bytes(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Pillow.open(file)) / 255


def pixelate(image: Image, rng: np.random.Generator, scale: float) -> Image:
    """Made smaller by `scale`, and as large as before again, by averaging over boxes."""
    from PIL import Image as Pillow

    h, w = image.shape[:2]
    small = (max(1, int(w * scale)), max(1, int(h * scale)))
    box = Pillow.Resampling.BOX
    return np.asarray(Pillow.fromarray(_bytes(image)).resize(small, box).resize((w, h), box)) / 255


def elastic(image: Image, rng: np.random.Generator, alpha: float, sigma: float, shift: float) -> Image:
    """A random affine map, and on top of it a smooth random displacement.

    Args:
        image: the picture.
        rng: the only source of randomness.
        alpha: strength of the displacement, in sides of the picture.
        sigma: its smoothness, in sides.
        shift: how far each of the three points that fix the affine map moves along either axis, in sides.
    """
    h, w = image.shape[:2]
    side = min(h, w)
    third, middle = max(1, side // 3), np.array([h // 2, w // 2])
    old = middle + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    new = old + rng.uniform(-shift * side, shift * side, (3, 2))
    back = np.linalg.solve(np.c_[new, np.ones(3)], old)  # where a pixel of the result comes from
    grid = np.indices((h, w)).astype(float)
    noise = rng.uniform(-1, 1, (2, h, w))
    if alpha and sigma:
        smooth = [ndimage.gaussian_filter(plane, sigma * side, mode="reflect", truncate=3) for plane in noise]
        grid += alpha * side * np.stack(smooth)
    where = np.tensordot(back[:2].T, grid, 1) + back[2][:, None, None]
    planes = [ndimage.map_coordinates(image[:, :, c], where, order=1, mode="mirror") for c in range(image.shape[2])]
    return np.stack(planes, 2)


def _bytes(image: Image) -> np.ndarray:
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
