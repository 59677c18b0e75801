"""ZCA against an explicit inverse square root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from datastill.core.errors import InputError
from datastill.core.space import Space, normalized
from datastill.data.zca import fit_zca


def images(n: int, shape: tuple[int, int, int] = (2, 3, 4), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(int(np.prod(shape)), int(np.prod(shape)), generator=generator)
    flat = torch.randn(n, len(mix), generator=generator) @ mix
    return torch.sigmoid(flat / 5).view(n, *shape)


BASE = normalized((0.4, 0.5), (0.2, 0.3))


@pytest.mark.parametrize("base", [Space(), BASE])
def test_whitening_is_the_inverse_square_root_of_the_ridged_covariance(base: Space):
    pixels = images(200)
    flat = base.encode(pixels.double()).flatten(1).numpy()
    centered = flat - flat.mean(0)
    cov = centered.T @ centered / len(flat)
    ridged = cov + 0.1 * np.trace(cov) / 24 * np.eye(24)
    root = scipy.linalg.sqrtm(ridged)
    space = fit_zca(pixels, ratio=0.1, base_space=base)
    assert np.allclose(space.tensors["whiten"].numpy(), np.linalg.inv(root), atol=1e-6)
    assert np.allclose(space.tensors["unwhiten"].numpy(), root, atol=1e-6)
    assert np.allclose(space.tensors["centre"].flatten().numpy(), flat.mean(0), atol=1e-6)


def test_the_covariance_of_whitened_images_is_the_ridged_identity():
    pixels = images(500).double()
    space = fit_zca(pixels, ratio=1e-6)
    whitened = space.encode(pixels).flatten(1)
    cov = torch.cov(whitened.T, correction=0)
    assert torch.allclose(cov, torch.eye(24, dtype=cov.dtype), atol=2e-3)


def test_with_fewer_images_than_dimensions_the_other_directions_stay():
    pixels = images(9)
    centered = pixels.double().flatten(1)
    centered = (centered - centered.mean(0)).numpy()
    cov = centered.T @ centered / 9
    values, vectors = np.linalg.eigh(cov)
    inside = vectors[:, -8:]  # nine centered images span eight directions
    scale = (values[-8:] + 0.1 * np.trace(cov) / 24) ** -0.5
    wanted = inside * scale @ inside.T + np.eye(24) - inside @ inside.T
    whiten = fit_zca(pixels).tensors["whiten"].numpy()
    assert np.allclose(whiten, wanted, atol=1e-5)
    # repeated images span less, and the result is still unique
    again = fit_zca(torch.cat([pixels[:5], pixels[:5]])).tensors["whiten"]
    shuffled = fit_zca(torch.cat([pixels[:5], pixels[:5]]).flip(0)).tensors["whiten"]
    assert torch.allclose(again, shuffled, atol=1e-4)


@pytest.mark.parametrize("n", [9, 24, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decode_undoes_encode(n: int, dtype: torch.dtype):
    space = fit_zca(images(n), base_space=BASE)
    other = images(50, seed=1).to(dtype)
    assert torch.allclose(space.decode(space.encode(other)), other, atol=1e-5)


def test_pieces_give_what_the_whole_gives():
    pixels = images(100)
    whole, pieces = fit_zca(pixels), fit_zca(pixels.split(17))
    assert torch.allclose(whole.tensors["whiten"], pieces.tensors["whiten"], atol=1e-6)


def test_the_space_survives_its_record():
    space = fit_zca(images(60), base_space=BASE)
    assert Space.from_dict(space.to_dict(), space.tensors) == space
    assert space != fit_zca(images(60, seed=2), base_space=BASE)


def test_bad_input():
    with pytest.raises(InputError, match="ratio"):
        fit_zca(images(9), ratio=0)
    with pytest.raises(InputError, match="already"):
        fit_zca(images(9), base_space=fit_zca(images(9)))
    with pytest.raises(InputError, match="at least one image"):
        fit_zca(images(9)[:0])
    with pytest.raises(InputError, match="resize"):
        fit_zca(torch.zeros(2, 3, 65, 65))
    with pytest.raises(InputError, match="identical"):
        fit_zca(torch.ones(40, 1, 2, 2) / 2)
