"""Spaces: which one a set gets, and that every one can be undone."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastill.core.errors import InputError
from datastill.core.registry import get_method, with_overrides
from datastill.core.space import Space, normalized
from datastill.data import load_real
from datastill.data.spaces import conventional, measure, resolve_space
from datastill.data.store import MemoryStore


def store(c: int = 3, n: int = 20, seed: int = 0) -> MemoryStore:
    generator = torch.Generator().manual_seed(seed)
    return MemoryStore(torch.randint(0, 256, (n, c, 4, 5), dtype=torch.uint8, generator=generator))


@pytest.mark.parametrize(
    "name",
    ["cifar10", "CIFAR-10", "uoft-cs/cifar10", "data/Cifar_10/", "tiny-imagenet", "zh-plus/tiny_imagenet"],
)
def test_well_known_names_have_conventional_constants(name: str):
    space = conventional(name, 3)
    assert space is not None
    assert space.source == "conventional"
    assert len(space.mean) == 3


def test_constants_need_the_right_channels():
    assert conventional("mnist", 3) is None
    assert conventional("mnist", 1).mean == (0.1307,)
    assert conventional("mnist-but-mine", 1) is None
    assert resolve_space("auto", "mnist", store(3)).source == "measured"


def test_measured_constants_are_those_of_the_pixels():
    for images in (store(3).images, torch.rand(20, 2, 4, 5, generator=torch.Generator().manual_seed(0))):
        space = measure(MemoryStore(images))
        pixels = (images / 255 if images.dtype == torch.uint8 else images).double()
        assert torch.allclose(torch.tensor(space.mean).double(), pixels.mean((0, 2, 3)), atol=1e-6)
        assert torch.allclose(torch.tensor(space.std).double(), pixels.std((0, 2, 3), correction=0), atol=1e-6)


def test_a_constant_channel_is_left_in_scale():
    assert measure(MemoryStore(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8))).std == (1.0,)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["raw", "normalized", "zca"]),
    st.integers(1, 4),
    st.integers(2, 40),
    st.integers(0, 99),
)
def test_decode_undoes_encode(kind: str, channels: int, n: int, seed: int):
    images = store(channels, n, seed)
    space = resolve_space(kind, "", images)
    pixels = images.get(torch.arange(n))
    assert space.kind == kind
    assert torch.allclose(space.decode(space.encode(pixels)), pixels, atol=1e-5)


def test_zca_is_fitted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path))
    first = load_real("digits", space="zca")
    assert first.space.kind == "zca"
    monkeypatch.setattr("datastill.data.spaces.fit_zca", None)
    again = load_real("digits", space="zca")
    assert again.space == first.space
    assert again.fingerprint == first.fingerprint
    assert again.test.space is again.space
    x = again.batch(torch.arange(5)).x
    assert torch.allclose(again.space.decode(x), again.pixels(torch.arange(5)), atol=1e-5)


def test_a_space_of_other_images_is_refused():
    with pytest.raises(InputError, match="3 channels and the images have 1"):
        load_real("digits", space=normalized((0.5,) * 3, (0.5,) * 3))
    digits = load_real("digits")
    zca = load_real("digits", space="zca").space
    with pytest.raises(InputError, match="ZCA space belongs to"):
        load_real("digits", size=16, space=zca)
    with pytest.raises(InputError, match="'raw'"):
        load_real("digits", space="rwa")
    assert digits.with_space(Space()).test.space.kind == "raw"


def test_files_keep_the_spelling_that_they_have_and_old_names_are_taken() -> None:
    """Ids are in fingerprints of old sets and experts: the word in the hash may not change."""
    space = normalized((0.5,), (0.25,))
    assert space.id == hashlib.sha256(b'["normalised", [0.5], [0.25]]').hexdigest()[:16]
    assert space.to_dict()["kind"] == "normalised"
    assert Space.from_dict(space.to_dict()) == space
    assert load_real("digits", space="normalised").space == load_real("digits", space="normalized").space
    assert with_overrides(get_method("herding").cls(), {"normalise": True}).normalize  # type: ignore[attr-defined]
