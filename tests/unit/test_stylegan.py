"""Generators of the form of StyleGAN3 behind our names, and pickles that are opened only where words trust them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import datastill
from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.decoders.networks import register_generator
from datastill.models.generators import StyleGenerator
from datastill.models.generators.stylegan import StyleGan, open_pickle

CODE = """
import pickle, sys, torch
from torch import nn

class Layer(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.conv, self.style = nn.Conv2d(4, out, 3, padding=1), nn.Linear(6, 4)
    def forward(self, x, w):
        return self.conv(x * self.style(w)[:, :, None, None])

class Input(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(6, 256)
    def forward(self, w):
        return self.line(w).view(-1, 4, 8, 8)

class Synthesis(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.layer_names, self.output_scale = Input(), ["L0", "L1"], 0.5
        self.L0, self.L1 = Layer(4), Layer(1)
    def forward(self, ws):
        x = self.input(ws[:, 0])
        return 0.5 * self.L1(self.L0(x, ws[:, 1]), ws[:, 2])

class Mapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(5 + 12, 6)
    def forward(self, z, c):
        return self.line(torch.cat([z, c], 1))[:, None].repeat(1, 3, 1)

class Generator(nn.Module):
    z_dim, c_dim, w_dim, img_resolution, img_channels = 5, 12, 6, 8, 1
    def __init__(self):
        super().__init__()
        self.mapping, self.synthesis = Mapping(), Synthesis()

if __name__ == "__main__":
    import tiny_gan
    torch.manual_seed(0)
    with open(sys.argv[1], "wb") as file:
        pickle.dump({"G_ema": tiny_gan.Generator()}, file)
"""
TRUST = "this pickle may run code"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gan")
    (made / "tiny_gan.py").write_text(CODE)
    subprocess.run([sys.executable, "tiny_gan.py", "g.pkl"], cwd=made, check=True)
    return made


def test_a_pickle_needs_words(folder: Path) -> None:
    for trust in ("", "yes"):
        with pytest.raises(InputError, match="runs code that its author put there"):
            open_pickle(folder / "g.pkl", range(10), source=folder, trust=trust)
    (folder / "none.pkl").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="cannot be opened"):
        open_pickle(folder / "none.pkl", trust=TRUST)


def test_its_layers_are_those_of_the_generator(folder: Path) -> None:
    classes = [11, *range(1, 10)]
    gan = open_pickle(folder / "g.pkl", classes, source=folder, trust=TRUST)
    assert isinstance(gan, StyleGenerator)
    with torch.no_grad():
        z = torch.linspace(-1, 1, 15).view(3, 5)
        ws = gan.map(z, torch.tensor([0, 0, 4]))
        wanted = gan.generator.mapping(z, torch.nn.functional.one_hot(torch.tensor([11, 11, 4]), 12).float())
        assert torch.equal(ws, wanted)
        for n in range(2):
            found = gan.synthesize(ws, gan.features(ws, n), n)
            assert torch.allclose(found, gan.generator.synthesis(ws))
    with pytest.raises(InputError, match="knows 12 classes"):
        StyleGan(gan.generator, [12])
    with pytest.raises(InputError, match="lacks mapping"):
        StyleGan(torch.nn.Identity())


def test_it_is_taken_as_a_decoder(folder: Path) -> None:
    register_generator("gan", open_pickle(folder / "g.pkl", range(10), source=folder, trust=TRUST))
    with isolated(0):
        made = datastill.distill(
            "dm", "digits", ipc=1, network="convnet:width=8,depth=1", steps=2, real_batch=4,
            codes="glad:generator=gan,layer=f1",
        )  # fmt: skip
    assert made.codes["w"].shape == (10, 2, 6)
    assert made.codes["f"].shape == (10, 4, 8, 8)
    assert made.images.shape == (10, 1, 8, 8)
