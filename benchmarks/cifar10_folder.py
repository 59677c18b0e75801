"""Write a folder of PNG class sub-folders from CIFAR-10's training images: what a user's own images look like.

python benchmarks/cifar10_folder.py runs/cifar10-folder        # 10 classes, 500 images each
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from datastill import load_real


def main(target: Path, per_class: int = 500) -> None:
    """One PNG per image, named by its position in the set."""
    real = load_real("cifar10")
    for c, name in enumerate(real.class_names):
        folder = target / name
        folder.mkdir(parents=True)
        for i in real.class_index(c)[:per_class].tolist():
            pixels = (real.pixels(torch.tensor([i]))[0] * 255).round().to(torch.uint8)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:05d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
