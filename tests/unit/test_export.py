"""Exports: the pixels come back, what was lost is told, nothing is left half-written."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datastill import distill, evaluate, load_real
from datastill.core.errors import InputError
from datastill.core.space import Space, normalized
from datastill.exchange.export import export, safe_names
from datastill.store.artifact import DistilledSet
from datastill.store.files import read_tensors


def made(
    channels: int = 3, names: tuple[str, ...] = ("cat", "dog", "owl"), ipc: int = 2, soft: bool = False
) -> DistilledSet:
    """A distilled set whose pixels reach beyond [0, 1] here and there."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(len(names) * ipc, channels, 6, 5, generator=generator) * 1.2 - 0.1
    space = normalized((0.4,) * channels, (0.25,) * channels)
    labels = torch.arange(len(names)).repeat_interleave(ipc)
    manifest = {
        "method": "dm", "family": "distribution", "ipc": ipc, "seed": 0, "labels": "soft" if soft else "hard",
        "hyper": {}, "classes": {"names": list(names), "label_ids": list(range(len(names)))}, "shape": [channels, 6, 5],
        "space": space.to_dict(), "decoder": {"decoder": "pixels", "clamp": False},
        "data": {"name": "toys", "source": "", "options": {}, "images": 9, "test_images": 3}, "notes": [],
    }  # fmt: skip
    if soft:
        return DistilledSet(
            {"images": space.encode(pixels)}, torch.eye(len(names))[labels] * 0.8 + 0.05, space, manifest
        )
    return DistilledSet({"images": space.encode(pixels)}, labels, space, manifest)


@pytest.mark.parametrize("format", ["imagefolder", "parquet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_load_real_reads_back_is_what_the_export_says(tmp_path, format, channels):
    one = made(channels)
    done = export(one, tmp_path / "out", format)
    back = load_real(tmp_path / "out", holdout=0, space=one.space)
    assert back.class_names == one.class_names
    assert torch.equal(back.labels, one.labels)
    batch = back.batch(torch.arange(len(back)))
    assert torch.equal(batch.x, done.distilled.images)
    expected = (one.pixels * 255).round() / 255
    assert (back.pixels(torch.arange(len(back))) - expected).abs().max() < 1e-6
    assert done.path == tmp_path / "out"


def test_the_losses_of_rounding_and_clipping_are_told(tmp_path):
    one = made()
    raw = one.space.decode(one.images)
    outside = float(((raw < 0) | (raw > 1)).float().mean())
    done = export(one, tmp_path / "out", "imagefolder")
    assert not done.lossless
    assert done.clipped_fraction == pytest.approx(outside, abs=1e-6)
    assert 0 < outside < 0.5
    assert done.max_pixel_error == pytest.approx(float((done.distilled.pixels - raw).abs().max()), abs=1e-6)
    assert 0.05 < done.max_pixel_error <= 0.1 + 1e-3
    assert "pixels changed by up to" in done.distilled.manifest["notes"][-1]
    assert one.manifest["notes"] == []


def test_pixels_are_rounded_not_cut_off(tmp_path):
    one = made(1, ("a", "b"), 1)
    one.codes["images"] = one.space.encode(torch.full((2, 1, 6, 5), 100.6 / 255))
    done = export(one, tmp_path / "out", "imagefolder")
    with Image.open(tmp_path / "out" / "train" / "a" / "0000.png") as picture:
        assert picture.mode == "L"
        assert picture.getpixel((0, 0)) == 101
    assert done.max_pixel_error == pytest.approx(0.4 / 255, abs=1e-5)


def test_real_images_of_eight_bits_survive_without_loss(tmp_path):
    pixels = torch.randint(0, 256, (4, 3, 6, 5), generator=torch.Generator().manual_seed(2)).float() / 255
    one = made(3, ("a", "b"), 2)
    one.codes["images"] = one.space.encode(pixels)
    done = export(one, tmp_path / "out", "parquet")
    assert done.lossless
    assert done.clipped_fraction == 0
    assert torch.allclose(done.distilled.images, one.images, atol=1e-5)


def test_tensors_are_exact_with_their_space(tmp_path):
    one = made(5)
    done = export(one, tmp_path / "out", "tensors")
    assert done.lossless
    assert done.max_pixel_error == 0
    tensors = load_file(tmp_path / "out" / "images.safetensors")
    assert torch.equal(tensors["images"], one.images)
    assert torch.equal(tensors["labels"], one.labels)
    assert torch.equal(done.distilled.images, one.images)
    _, meta = read_tensors(tmp_path / "out" / "images.safetensors")
    assert Space.from_dict(json.loads(meta["space"])) == one.space
    assert json.loads(meta["class_names"]) == ["cat", "dog", "owl"]


def test_datasets_reads_the_parquet_with_its_features_and_card(tmp_path):
    import datasets

    one = made(3, ("cat", "<dog>", "great owl"))
    done = export(one, tmp_path / "out", "parquet")
    assert (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").is_file()
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["label"].names == ["cat", "<dog>", "great owl"]
    assert isinstance(data.features["image"], datasets.Image)
    assert data["label"][:] == one.labels.tolist()
    pixels = torch.stack([torch.tensor(np.asarray(item["image"]).astype(np.int64)) for item in data])
    assert torch.equal(pixels.permute(0, 3, 1, 2), (done.distilled.pixels * 255).round().long())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "path: data/train-*" in card
    assert "load_dataset(" in card


def test_datasets_reads_the_folders(tmp_path):
    import datasets

    export(made(), tmp_path / "out", "imagefolder")
    data = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data.features["label"].names == ["cat", "dog", "owl"]
    assert data["label"][:] == [0, 0, 1, 1, 2, 2]


def test_soft_labels_go_into_parquet_and_tensors_but_not_into_folders(tmp_path):
    import datasets

    one = made(soft=True)
    with pytest.raises(InputError, match="soft labels"):
        export(one, tmp_path / "a", "imagefolder")
    done = export(one, tmp_path / "b", "parquet")
    data = datasets.load_dataset(str(tmp_path / "b"), split="train", cache_dir=str(tmp_path / "cache"))
    assert torch.equal(torch.tensor(data["probabilities"][:]), one.labels)
    assert data["label"][:] == [0, 0, 1, 1, 2, 2]
    assert torch.equal(done.distilled.targets, one.labels)
    export(one, tmp_path / "c", "tensors")
    assert torch.equal(load_file(tmp_path / "c" / "images.safetensors")["labels"], one.labels)
    assert not (tmp_path / "a").exists()


def test_class_names_become_safe_and_distinct_folders(tmp_path):
    names = ("a/b", "a:b", "A_B", "..", ".hidden", "nul", "ends. ", "ü" * 200, "", "x\ny")
    safe = safe_names(names)
    assert safe == ["a_b", "a_b_2", "A_B_3", "class_3", "hidden", "class_nul", "ends", "ü" * 60, "class_8", "x_y"]
    assert safe_names(["cat", "great owl", "北京"]) == ["cat", "great owl", "北京"]
    done = export(made(1, names, 1), tmp_path / "out", "imagefolder")
    back = load_real(tmp_path / "out", holdout=0)
    assert sorted(back.class_names) == sorted(safe)
    for c, name in enumerate(safe):
        place = back.class_index(back.class_names.index(name))
        assert torch.equal(back.pixels(place), done.distilled.pixels[c : c + 1].mul(255).round() / 255)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "The folder 'a\\_b\\_2' holds the class 'a:b'" in card
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_an_export_scores_under_the_same_protocol(tmp_path):
    real = load_real("digits")
    one = distill("dm", real, ipc=1, steps=5, real_batch=8)
    done = export(one, tmp_path / "out", "parquet")
    result = evaluate([one, done.distilled], real, networks=1, protocol="dsa-quick-v1", random=False)
    before, after = result.distilled.accuracies.flatten().tolist()
    assert abs(before - after) < 0.1
    done.distilled.save(tmp_path / "again")


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "tensors"])
def test_bad_targets_are_refused_and_nothing_is_written(tmp_path, format):
    one = made()
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(one, used, format)
    assert [p.name for p in used.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="is a file"):
        export(one, used / "mine.txt", format)
    with pytest.raises(InputError, match="file of that name"):
        export(one, used / "mine.txt" / "below", format)
    empty = tmp_path / "empty"
    empty.mkdir()
    export(one, empty, format)
    assert (empty / "README.md").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"used", "empty"}
    assert stat.S_IMODE(empty.stat().st_mode) & 0o500 == 0o500


@pytest.mark.parametrize("format", ["imagefolder", "parquet", "tensors"])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, format, monkeypatch):
    original = Path.write_text

    def full(self: Path, *args: object, **kwargs: object) -> int:
        if self.name == "README.md":
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left"):
        export(made(), tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_channels_are_refused(tmp_path):
    with pytest.raises(InputError, match="'imagefolder'"):
        export(made(), tmp_path / "out", "imagefolders")
    for format in ("imagefolder", "parquet"):
        with pytest.raises(InputError, match="2 channels"):
            export(made(2), tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []
