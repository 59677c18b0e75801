"""Sheets of the biased sets, to look at: images of each class, and every corruption at levels 1, 3 and 5.

    python benchmarks/biased_sheets.py --out docs/images

Needs MNIST, FashionMNIST and CIFAR-10 by name, so a folder in DATASTILL_DATA or the Hub.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from datastill import load_real
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.data.biased.corruptions import CORRUPTIONS, PRESETS, corrupt

GAP = 2
SPLIT = 10  #: between aligned and conflicting columns
SETS = {
    "cmnist": "cmnist:severity=1,train=6000,test=1000",
    "bg_fmnist": "bg-fmnist:train=6000,test=1000",
    "ccifar10": "ccifar10:train=3000,test=1000",
}


def tile(image: np.ndarray, zoom: int) -> np.ndarray:
    """(3, h, w) of [0, 1] to (h zoom, w zoom, 3) uint8."""
    pixels = np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def sheet(real: RealSet, aligned: int, conflicting: int, zoom: int) -> Image.Image:
    """A row per class: aligned training images, a gap, conflicting ones."""
    assert real.bias is not None
    side = real.shape[1] * zoom + GAP
    picture = Image.new("RGB", ((aligned + conflicting) * side + SPLIT, real.classes * side), "white")
    for c in range(real.classes):
        members = real.class_index(c)
        same = members[real.bias[members] == c][:aligned]
        other = members[real.bias[members] != c]
        other = other[real.bias[other].argsort(stable=True)][:: max(1, len(other) // conflicting)][:conflicting]
        for k, image in enumerate(real.pixels(torch.cat([same, other]))):
            left = k * side + SPLIT * (k >= len(same))
            picture.paste(Image.fromarray(tile(image.numpy(), zoom)), (left, c * side))
    return picture


def corruptions(real: RealSet, images: int, zoom: int) -> Image.Image:
    """A row per corruption: the clean images, then the same at levels 1, 3 and 5."""
    chosen = [(real.pixels(torch.tensor([i]))[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
              for i in range(4, 4 + images)]  # fmt: skip
    side, levels = chosen[0].shape[0] * zoom + GAP, (0, 1, 3, 5)
    picture = Image.new("RGB", (110 + len(levels) * (images * side + SPLIT), len(CORRUPTIONS) * side), "white")
    pen = ImageDraw.Draw(picture)
    for row, name in enumerate(sorted(CORRUPTIONS, key=(PRESETS["0"] + PRESETS["1"]).index)):
        pen.text((2, row * side + side // 3), name.replace("_", " "), fill="black")
        for block, level in enumerate(levels):
            for k, clean in enumerate(chosen):
                made = corrupt(clean, name, level, Rng(0).numpy("sheet", level, k)) if level else clean
                at = (110 + block * (images * side + SPLIT) + k * side, row * side)
                picture.paste(Image.fromarray(made.repeat(zoom, 0).repeat(zoom, 1)), at)
    return picture


def main() -> None:
    """Write biased_<set>.png and biased_corruptions.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--zoom", type=int, default=2)
    parser.add_argument("--sets", nargs="*", default=[*SETS, "corruptions"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        if name == "corruptions":
            picture = corruptions(load_real("cifar10"), 2, given.zoom)
        else:
            picture = sheet(load_real(SETS[name]), 6, 4, given.zoom)
        picture.quantize(256).save(given.out / f"biased_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
