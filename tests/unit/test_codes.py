"""Frequencies as codes, in the place of any method's pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import torch

import datastill
from datastill.core.errors import InputError
from datastill.data.real import RealSet
from datastill.decoders.dct import Dct, varying_most
from datastill.evaluation.protocols import get_protocol
from datastill.overrides.codes import Frequencies

NET = "convnet:width=8,depth=1"


def images(n: int = 6, h: int = 5, w: int = 8) -> torch.Tensor:
    return torch.randn(n, 2, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_coefficients_are_those_of_scipy() -> None:
    x, kept = images(), (0, 3, 9, 39)
    wanted = scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho").reshape(6, 2, 40)[:, :, kept]
    found = Dct(5, 8, kept, 3).encode(x)["coefficients"]
    assert np.allclose(found.numpy(), wanted.reshape(2, 3, 2, 4), atol=1e-12)


def test_all_frequencies_are_the_identity() -> None:
    decoder, x = Dct(5, 8, range(40), 2), images()
    assert torch.allclose(decoder.decode(decoder.encode(x), torch.arange(3)).x, x, atol=1e-12)


def test_backward_is_the_transpose_of_decode() -> None:
    decoder, grads = Dct(5, 8, (0, 1, 8, 17), 3), images()
    z = decoder.encode(images())["coefficients"].requires_grad_()
    made = decoder.decode({"coefficients": z}, torch.tensor([4, 7]))
    assert made.y.tolist() == [4, 4, 4, 7, 7, 7]
    (wanted,) = torch.autograd.grad(made.x, z, grads)
    assert torch.allclose(decoder.backward({}, made.y, None, grads)["coefficients"], wanted, atol=1e-12)


def test_the_frequencies_that_vary_most_are_kept() -> None:
    z = torch.zeros(50, 1, 1, 40, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for position, spread in ((2, 1.0), (11, 3.0), (30, 2.0)):
        z[..., position] = spread * torch.randn(50, 1, 1, dtype=torch.float64, generator=generator)
    x = Dct(5, 8, range(40)).decode({"coefficients": z}, torch.zeros(50)).x
    assert varying_most(x + 7, 2) == (11, 30)  # what is the same in all images tells nothing


@pytest.fixture(scope="module")
def real() -> RealSet:
    return datastill.load_real("digits")


@pytest.mark.parametrize("method", ["dm", "dsa", "random"])
def test_any_method_of_whole_images_takes_them(real: RealSet, method: str, tmp_path) -> None:
    steps = {} if method == "random" else {"steps": 2}
    asked = {"ipc": 2, "network": NET, "codes": "dct:kept=16", **steps}
    made = datastill.distill(method, real, out=tmp_path / "run", **asked)
    assert made.codes["coefficients"].shape == (20, 4, 1, 16)  # the numbers of 20 stored images
    assert made.images.shape == (80, 1, 8, 8)
    assert made.targets.tolist() == [c for c in range(10) for _ in range(8)]
    assert made.manifest["codes"] == {"how": "dct", "kept": 16, "instances": 0}
    again = datastill.load_distilled(tmp_path / "run")
    assert torch.equal(again.images, made.images)
    found = datastill.evaluate(again, real, networks=1, protocol=replace(get_protocol("dc-v1"), passes=2))
    assert found.distilled.mean > 0


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("dm", {"codes": "dst"}, "Did you mean 'dct'"),
        ("dm", {"codes": "dct:keep=3"}, "Did you mean 'kept'"),
        ("dm", {"codes": "dct:kept=65"}, "8 x 8 have 64 frequencies"),
        ("dm", {"codes": "dct:kept=-1"}, "kept of codes"),
        ("dm", {"codes": "dct", "init": "noise"}, "leave dm its --init real"),
        ("stages", {"codes": "dct", "factor": 2}, "give --factor 1"),
    ],
)
def test_what_cannot_be_is_told(real: RealSet, method: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        datastill.distill(method, real, ipc=1, network=NET, **options)


def test_the_text_of_the_record_asks_for_the_same() -> None:
    asked = Frequencies.parse("dct:kept=16")
    assert asked is not None
    assert Frequencies.parse(Frequencies.text(asked.describe())) == asked
