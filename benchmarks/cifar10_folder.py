"""Write a folder of class sub-folders: what a user's own images look like.

python benchmarks/cifar10_folder.py runs/cifar10-folder             # 10 classes of CIFAR-10, 500 PNGs each
python benchmarks/cifar10_folder.py runs/twenty-classes --twenty    # and 10 of FashionMNIST; JPEGs of unequal size
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datastill import load_real

#: Shortest and longest side of images of unequal size, in pixels.
SIDES = (28, 56)


def write(target: Path, data: str, per_class: int, sides: np.random.Generator | None = None) -> None:
    """One file per training image, named by its position in the set; of unequal size where `sides` is there to draw."""
    real = load_real(data)
    for c, name in enumerate(real.class_names):
        folder = target / name.replace("/", "-")
        folder.mkdir(parents=True)
        for i in real.class_index(c)[:per_class].tolist():
            pixels = (real.pixels(torch.tensor([i]))[0] * 255).round().to(torch.uint8)
            image = Image.fromarray(np.asarray(pixels.permute(1, 2, 0).squeeze(2)))
            if sides is None:
                image.save(folder / f"{i:05d}.png")
                continue
            width, height = (int(side) for side in sides.integers(SIDES[0], SIDES[1] + 1, 2))
            image.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=92)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--twenty", action="store_true", help="FashionMNIST's classes too, JPEGs of unequal size")
    parser.add_argument("--per-class", type=int, default=500)
    given = parser.parse_args()
    sides = np.random.default_rng(0) if given.twenty else None
    for data in ("cifar10", "fashion_mnist") if given.twenty else ("cifar10",):
        write(given.target, data, given.per_class, sides)
