"""Bad input: one clear sentence that says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from datastill.core.errors import InputError
from datastill.data import load_real
from datastill.data.sources import call_source

X = np.random.default_rng(0).integers(0, 256, (12, 5, 6), dtype=np.uint8)
Y = np.arange(12) % 3


def put(root: Path, name: str, mode: str = "L", size: tuple[int, int] = (6, 5)) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(0, 65535 if mode == "I;16" else 255, size[1]).astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(np.repeat(rows[:, None], size[0], axis=1))
    (image if mode == "I;16" else image.convert(mode)).save(path)
    return path


def refused(source, **options) -> str:
    """The sentence that the source is refused with: one line, ended by a full stop."""
    with pytest.raises(InputError) as caught:
        load_real(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text[-1] in ".?"
    assert caught.value.exit_code == 2
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        put(tmp_path, f"ant/{i}.png")
        put(tmp_path, f"bee/{i}.png")
    return tmp_path


def test_missing_path(tmp_path: Path):
    for source in (
        tmp_path / "no",
        str(tmp_path / "no"),
        "./no",
        "~/no/such",
        "a/b/c",
        "photos/",
        Path("no"),
    ):
        assert "There is no folder" in refused(source)


def test_unknown_name(monkeypatch):
    monkeypatch.setattr("datastill.data.hub.reachable", lambda: False)
    monkeypatch.delenv("DATASTILL_DATA", raising=False)
    text = refused("no_such_set_at_all")
    assert "not a folder here, not under DATASTILL_DATA (which is not set)" in text
    assert "cannot be reached" in text
    monkeypatch.setenv("DATASTILL_DATA", "/somewhere")
    assert "DATASTILL_DATA (/somewhere)" in refused("org/no_such_set")


def test_a_file_is_no_folder(tmp_path: Path):
    assert "is a file" in refused(put(tmp_path, "one.png"))


def test_folders_without_classes_or_images(folder: Path, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert "no class sub-folders" in refused(empty)
    put(empty, "loose.png")
    assert "1 images but no class sub-folders" in refused(empty)
    (folder / "cow").mkdir()
    (folder / "cow" / "notes.txt").write_text("no image")
    text = refused(folder)
    assert "cow" in text
    assert "no image" in text


@pytest.mark.parametrize("storage", ["auto", "decode"])
@pytest.mark.parametrize("name", ["0.png", "2.png"])
def test_a_corrupt_image_is_named_or_skipped(folder: Path, name: str, storage: str):
    whole = (folder / "bee" / name).read_bytes()
    (folder / "bee" / name).write_bytes(whole[: len(whole) // 2])
    text = refused(folder, storage=storage)
    assert str(folder / "bee" / name) in text
    assert "skip_bad" in text
    for _ in range(2):  # decoded, and from the cache
        with pytest.warns(UserWarning, match="1 unreadable image of the train split skipped"):
            real = load_real(folder, skip_bad=True, holdout=0, storage=storage)
        assert real.counts.tolist() == [4, 3]
        assert any(f"bee/{name}" in note for note in real.notes)
        assert real.pixels(torch.arange(7)).shape == (7, 1, 5, 6)
    for i in range(4):
        (folder / "bee" / f"{i}.png").write_bytes(b"")
    assert "Class 'bee' has no readable image" in refused(folder, skip_bad=True, storage=storage)
    for i in range(4):
        (folder / "ant" / f"{i}.png").write_bytes(b"")
    assert "None of the 8 images" in refused(folder, skip_bad=True, storage=storage)


def test_a_dangling_link_is_a_corrupt_image(folder: Path):
    (folder / "bee" / "link.png").symlink_to(folder / "nowhere.png")
    assert "link.png" in refused(folder)


def test_mixed_modes_and_sizes(folder: Path):
    put(folder, "bee/color.png", "RGB")
    text = refused(folder)
    assert "mix modes" in text
    assert "color.png" in text
    assert "mode='RGB'" in text
    assert load_real(folder, mode="RGB").shape == (3, 5, 6)
    put(folder, "bee/large.png", "L", (9, 9))
    text = refused(folder, mode="L")
    assert "mix sizes" in text
    assert "large.png is 9x9" in text
    assert "ant/0.png is 5x6" in text
    assert load_real(folder, mode="L", size=4).shape == (1, 4, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "I;16"])
def test_modes_that_need_a_decision(folder: Path, mode: str):
    put(folder, f"bee/odd.{'jpg' if mode == 'CMYK' else 'png'}", mode)
    text = refused(folder)
    assert "odd" in text
    assert "--mode RGB" in text
    assert load_real(folder, mode="L").shape[0] == 1


def test_train_and_test_of_different_shape(folder: Path):
    root = folder / "both"
    for split, size in (("train", (6, 5)), ("test", (7, 7))):
        for name in ("ant/1.png", "bee/1.png"):
            put(root, f"{split}/{name}", size=size)
    assert "(1, 5, 6) and test images (1, 7, 7)" in refused(root)
    assert load_real(root, size=8).test.shape == (1, 8, 8)
    put(root, "test/wasp/1.png")
    assert "'wasp', which no training image has" in refused(root, size=8)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1] * 4, "unlabeled"),
        ([0, 1, 1.5] * 4, "1.5 is not a whole number"),
        ([0, 1, float("nan")] * 4, "nan is not a whole number"),
        ([0, 1, None] * 4, "neither a whole number nor a string"),
        ([0, 1, "a"] * 4, "mix"),
        ([7] * 12, "one class ('7')"),
        ([0, 1] * 5, "12 images and 10 labels"),
        (np.eye(3)[Y], "argmax"),
        ([[1], [1, 2]], "flat list"),
    ],
)
def test_labels(labels, words: str):
    assert words in refused((X, labels))


def test_labels_beyond_the_names():
    assert "Label 2 is out of range: there are 2 class names" in refused((X, Y), class_names=["a", "b"])
    assert "repeat" in refused((X, Y), class_names=["a", "b", "a"])
    assert "2 class names were given for 3 classes" in refused((X, list("abc") * 4), class_names=["x", "y"])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((12, 4, 4), np.nan), "NaN or infinity (in 12 of 12)"),
        (np.where(np.arange(12)[:, None, None] == 5, np.inf, np.zeros((12, 4, 4))), "in 1 of 12"),
        (X.astype(np.float32), "divide by 255"),
        (X.astype(np.float32) / 128 - 1, "undo any normalization"),
        (X.astype(np.int64) * 2, "scale them to 0..255"),
        (X[0], "shape (5, 6)"),
        (X[None], "12 labels"),
        (np.zeros((12, 0, 4)), "shape"),
        (X.astype(str), "type <U"),
        (X[:0], "labels"),
    ],
)
def test_arrays(images, words: str):
    assert words in refused((images, Y))


def test_no_images():
    assert "no images" in refused((X[:0], []))


@pytest.mark.parametrize("source", [7, None, (X,), (X, Y, Y), {"test": (X, Y)}, {"train": (X, Y), "dev": (X, Y)}, ""])
def test_what_is_no_source(source):
    refused(source)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": (3, 4, 5)},
        {"size": 2.5},
        {"mode": "rgb"},
        {"storage": "disk"},
        {"space": "zac"},
        {"holdout": 1},
        {"holdout": -0.1},
        {"limit": 0},
        {"mode": "L", "size": "big"},
    ],
)
def test_options(options: dict):
    refused((X, Y), **options)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits:trian=5", "train"),
        ("digits:train=five", "must be a whole number"),
        ("digits:train=0", "between 10 and 1787"),
        ("digits:train", "key=value"),
        ("digits:train=900,train=901", "gives train twice"),
    ],
)
def test_options_of_named_sources(name: str, words: str):
    assert words in refused(name)


def test_option_types():
    def function(request, *, ratio: float = 0.5, name: str = "", loud: bool = False, depth: int = 1):
        return (ratio, name, loud, depth)

    texts = {"ratio": "0.05", "name": "x", "loud": "true", "depth": "3"}
    assert call_source(function, "f", texts, None) == (0.05, "x", True, 3)
    for bad in ({"ratio": "a"}, {"loud": "loud"}, {"depth": "1.5"}, {"other": "1"}):
        with pytest.raises(InputError, match="f"):
            call_source(function, "f", bad, None)


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


GOOD = (torch.zeros(1, 4, 4), 0), (torch.ones(1, 4, 4), 1)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Items(), "no items"),
        (Items(*GOOD, torch.zeros(1, 4, 4)), "Item 2 of the train dataset is not (image, label)"),
        (Items(*GOOD, (torch.zeros(1, 5, 5), 1)), "item 2 is (1, 5, 5)"),
        (Items(*GOOD, (torch.full((1, 4, 4), -2.0), 1)), "range from -2 to -2"),
        (Items(*GOOD, (torch.full((1, 4, 4), torch.nan), 1)), "NaN"),
        (Items(*GOOD, ("text", 1)), "is a str"),
        (Items(*GOOD, (torch.zeros(4), 1)), "(c, h, w)"),
        (
            Items(*GOOD, OSError("cut short")),
            "Item 2 of the train dataset cannot be read (OSError: cut short)",
        ),
        (Items(*GOOD, (torch.zeros(1, 4, 4), -1)), "unlabeled"),
        ((Items(*GOOD), 5), "give"),
    ],
)
def test_datasets(dataset, words: str):
    assert words in refused(dataset)


def test_datasets_can_skip_bad_items():
    with pytest.warns(UserWarning, match="item 1"):
        real = load_real(Items(GOOD[0], OSError("cut short"), GOOD[1]), skip_bad=True, holdout=0)
    assert real.labels.tolist() == [0, 1]
    with pytest.warns(UserWarning, match="item 1"):
        on_access = load_real(Items(GOOD[0], OSError("cut short"), GOOD[1]), skip_bad=True, holdout=0, storage="decode")
    assert on_access.fingerprint == real.fingerprint


def test_parquet(tmp_path: Path):
    import datasets

    datasets.disable_progress_bars()
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet")
    assert "cannot be read as parquet" in refused(tmp_path)
    (tmp_path / "train-0.parquet").rename(tmp_path / "test-0.parquet")
    assert "no training split" in refused(tmp_path)
    (tmp_path / "test-0.parquet").unlink()

    good = put(tmp_path, "good.png").read_bytes()
    rows = {
        "image": [{"bytes": b, "path": "some.png"} for b in (good, good, b"bad", good)],
        "label": [0, 1, 0, 1],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train-0.parquet"))
    text = refused(tmp_path)
    assert "image 2 (some.png) is not a readable image" in text
    with pytest.warns(UserWarning, match="1 unreadable"):
        assert load_real(tmp_path, skip_bad=True, holdout=0).counts.tolist() == [1, 2]
