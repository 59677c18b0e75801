"""Backgrounds cut out of photographs of yours: a folder with one sub-folder per category."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from datastill.core.errors import InputError
from datastill.data.decode import decode_image
from datastill.data.folder import list_classes
from datastill.data.inside import Links
from datastill.data.parts import visible
from datastill.data.raw import Request

LARGER = 3  #: pictures are kept this many times larger than what is cut out of them
TEST_EVERY = 5  #: every fifth picture of a category is for the test split only


class FolderBackgrounds:
    """Random square cut-outs of pictures; train and test cut out of different pictures.

    Args:
        root: a folder with a sub-folder of pictures for each category, in sorted order.
        where: "train" or "test"; of the sorted pictures of a category every fifth is for test.

    Raises:
        InputError: no folder, or a category with fewer than two pictures.
    """

    def __init__(self, root: Path | str, where: str = "train") -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise InputError(f"There is no folder {root} of backgrounds; give one with a sub-folder per category.")
        folders = [f for f in visible(self.root) if f.is_dir()]
        if not folders:
            raise InputError(
                f"The folder {root} of backgrounds has no sub-folders; give one with a sub-folder per category."
            )
        files, names = list_classes(folders, Links(self.root))
        self.names = sorted(f.name for f in folders)
        self.files: list[list[Path]] = []
        for name in self.names:
            own = [file for file, of in zip(files, names) if of == name]
            if len(own) < 2:
                raise InputError(f"The backgrounds {self.root / name} need two pictures or more: one is for test only.")
            held = own[::TEST_EVERY] if where == "test" else [f for i, f in enumerate(own) if i % TEST_EVERY]
            self.files.append(held)
        self.categories = len(self.names)
        self._read = lru_cache(maxsize=None)(_read)

    def __call__(self, category: int, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """A cut-out of `size`, (3, height, width) float in [0, 1]."""
        from PIL import Image

        own = self.files[category]
        picture = self._read(own[int(rng.integers(len(own)))], max(size) * LARGER)
        height, width = picture.shape[:2]
        share = rng.uniform(0.4, 1.0) * min(height / size[0], width / size[1])
        high, wide = (max(1, int(side * share)) for side in size)
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        cut = Image.fromarray(picture[top : top + high, left : left + wide])
        small = cut.resize((size[1], size[0]), Image.Resampling.BOX if share > 1 else Image.Resampling.BILINEAR)
        return np.asarray(small).transpose(2, 0, 1) / 255

    def identity(self) -> Any:
        """The pictures by name, size and time."""
        stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for own in self.files for f in own]
        return ["folder", self.names, LARGER, stats]


def _read(file: Path, side: int) -> np.ndarray:
    """A picture as (h, w, 3) uint8, made smaller so that its shorter side is `side`, never larger."""
    from PIL import Image

    pixels = decode_image(file.read_bytes(), str(file), Request(mode="RGB")).transpose(1, 2, 0)
    height, width = pixels.shape[:2]
    if min(height, width) <= side:
        return pixels
    factor = side / min(height, width)
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX))
