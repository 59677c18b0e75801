"""load_real: every kind of source gives the same set."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from datastill.core.errors import InputError
from datastill.data import RealSet, load_real

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (30, 6, 7, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (30, 6, 7), dtype=np.uint8)
NAMES = ("ant", "bee", "cow")
LABELS = np.arange(30) // 10  # sorted, as folders list them


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray = LABELS) -> Path:
    for i, (image, label) in enumerate(zip(images, labels)):
        path = root / NAMES[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path: Path, images: np.ndarray, labels=LABELS, names=NAMES, columns=("image", "label")) -> None:
    import datasets

    features = datasets.Features(
        {
            columns[0]: datasets.Image(),
            columns[1]: datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64"),
        }
    )
    rows = {
        columns[0]: [{"bytes": png(i), "path": None} for i in images],
        columns[1]: [int(v) for v in labels],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def everything(real: RealSet) -> tuple[torch.Tensor, list[str]]:
    return real.pixels(torch.arange(len(real))), [real.class_names[c] for c in real.labels]


class Items(Dataset):
    def __init__(self, images, labels, classes=None):
        self.images, self.labels = images, labels
        if classes:
            self.classes = list(classes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


@pytest.mark.parametrize("images", [COLOR, GRAY], ids=["color", "gray"])
def test_all_sources_agree(images: np.ndarray, tmp_path: Path):
    write_folder(tmp_path / "folder", images)
    write_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet", images)
    first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    pil = [Image.fromarray(i) for i in images]
    sources = {
        "folder": tmp_path / "folder",
        "parquet": str(tmp_path / "parquet"),
        "last": (images, LABELS),
        "first": (torch.from_numpy(first.copy()), torch.from_numpy(LABELS)),
        "wide": (first.astype(np.int64), LABELS.tolist()),
        "list": (list(images), LABELS.astype(float)),
        "pil": Items(pil, LABELS, NAMES),
        "arrays": Items(images, LABELS),
        "tensors": TensorDataset(torch.from_numpy(first.copy()), torch.from_numpy(LABELS)),
    }
    wanted = torch.from_numpy(first.copy()).float() / 255
    prints = set()
    for name, source in sources.items():
        real = load_real(source, holdout=0, class_names=NAMES)
        pixels, labels = everything(real)
        assert torch.equal(pixels, wanted), name
        assert labels == [NAMES[v] for v in LABELS], name
        assert real.test is None
        prints.add(real.fingerprint)
    assert len(prints) == 1
    floats = load_real((wanted, LABELS), holdout=0, class_names=NAMES)
    assert torch.equal(everything(floats)[0], wanted)


@pytest.mark.parametrize("mode", [None, "L", "RGB"])
@pytest.mark.parametrize("size", [None, 4, (9, 5)])
def test_mode_and_size_agree_between_sources(mode, size, tmp_path: Path):
    write_folder(tmp_path, COLOR)
    options = {"mode": mode, "size": size, "holdout": 0, "space": "raw"}
    folder = load_real(tmp_path, **options)
    arrays = load_real((COLOR, LABELS), **options)
    floats = load_real((COLOR.astype(np.float32) / 255, LABELS), **options)
    height, width = (6, 7) if size is None else (4, 4) if size == 4 else size
    assert folder.shape == (1 if mode == "L" else 3, height, width)
    assert torch.equal(everything(folder)[0], everything(arrays)[0])
    assert (everything(folder)[0] - everything(floats)[0]).abs().max() < 0.01


def test_train_and_test_in_every_form(tmp_path: Path):
    even, odd = np.arange(0, 30, 2), np.arange(1, 30, 2)
    write_folder(tmp_path / "folder" / "train", COLOR[even], LABELS[even])
    write_folder(tmp_path / "folder" / "test", COLOR[odd], LABELS[odd])
    write_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet", COLOR[even], LABELS[even])
    write_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet", COLOR[odd], LABELS[odd])
    pairs = (COLOR[even], LABELS[even]), (COLOR[odd], LABELS[odd])
    sources = [
        tmp_path / "folder",
        tmp_path / "parquet",
        pairs,
        list(pairs),
        {"train": pairs[0], "test": pairs[1]},
        (Items(*pairs[0]), Items(*pairs[1])),
        {"train": Items(*pairs[0]), "test": Items(*pairs[1])},
    ]
    for source in sources:
        real = load_real(source)
        assert (len(real), len(real.test)) == (15, 15)
        assert torch.equal(real.test.pixels(torch.arange(15)), torch.from_numpy(COLOR[odd]).permute(0, 3, 1, 2) / 255)
        assert real.test.labels.tolist() == LABELS[odd].tolist()
        assert real.notes == ()
        assert real.space == real.test.space


def test_a_validation_folder_stands_in_for_test_and_says_so(tmp_path: Path):
    for split in ("train", "valid"):
        write_folder(tmp_path / split, GRAY)
    real = load_real(tmp_path)
    assert len(real.test) == 30
    assert any("valid" in note for note in real.notes)
    write_parquet(tmp_path / "p" / "train.parquet", GRAY)
    write_parquet(tmp_path / "p" / "validation.parquet", GRAY)
    assert any("validation" in note for note in load_real(tmp_path / "p").notes)


def test_holdout_is_seeded_stratified_and_noted():
    real = load_real((COLOR, LABELS))
    assert real.counts.tolist() == [8, 8, 8]
    assert real.test.counts.tolist() == [2, 2, 2]
    assert "test split: a seeded stratified hold-out of 20 %" in real.notes[0]
    assert real.fingerprint == load_real((COLOR, LABELS)).fingerprint
    assert real.fingerprint != load_real((COLOR, LABELS), seed=1).fingerprint
    assert load_real((COLOR, LABELS), holdout=0.5).test.counts.tolist() == [5, 5, 5]


def test_nested_hidden_and_foreign_files(tmp_path: Path):
    write_folder(tmp_path, GRAY)
    deep = tmp_path / "ant" / "more" / "again"
    deep.mkdir(parents=True)
    Image.fromarray(GRAY[0]).save(deep / "X.PNG")
    (tmp_path / "ant" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("no class")
    (tmp_path / "bee" / "up").symlink_to(tmp_path / "bee")
    real = load_real(tmp_path, holdout=0)
    assert real.counts.tolist() == [11, 10, 10]
    assert real.class_names == NAMES
    assert real.name == tmp_path.name
    assert load_real(real.source, **real.options).fingerprint == real.fingerprint


def test_limit_and_options_are_recorded(tmp_path: Path):
    write_folder(tmp_path, COLOR)
    real = load_real(tmp_path, size=4, mode="L", limit=3, seed=2, holdout=0.3)
    assert real.counts.tolist() == [3, 3, 3]
    assert len(real.test) == 9
    again = load_real(real.source, **real.options)
    assert again.fingerprint == real.fingerprint
    assert again.test.fingerprint == real.test.fingerprint


def test_palette_bits_and_orientation(tmp_path: Path):
    def put(name: str, image: Image.Image, **options) -> None:
        for label in "ab":
            path = tmp_path / name / label / "1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **options)

    put("palette", Image.fromarray(COLOR[0]).quantize(8))
    put("bits", Image.fromarray(GRAY[0]).convert("1"))
    assert load_real(tmp_path / "palette", holdout=0).shape[0] == 3
    bits = load_real(tmp_path / "bits", holdout=0)
    assert bits.shape[0] == 1
    assert set(everything(bits)[0].flatten().tolist()) == {0.0, 1.0}

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    put("turned", Image.fromarray(GRAY[0]), exif=exif)
    turned = load_real(tmp_path / "turned", holdout=0)
    assert turned.shape == (1, 7, 6)
    assert np.array_equal((everything(turned)[0][0, 0] * 255).round().numpy(), np.rot90(GRAY[0], -1))

    deep = Image.fromarray(np.linspace(0, 65535, 42).reshape(6, 7).astype(np.uint16))
    put("deep", deep)
    deep_set = load_real(tmp_path / "deep", holdout=0, mode="L")
    assert everything(deep_set)[0].max() == 1.0
    assert everything(deep_set)[0].unique().numel() > 30
    for name, mode in {"rgba": "RGBA", "la": "LA"}.items():
        put(name, Image.fromarray(COLOR[0]).convert(mode))
        assert load_real(tmp_path / name, holdout=0, mode="RGB").shape[0] == 3


def test_channel_rule():
    for shape, wanted in {
        (4, 5, 6): (1, 5, 6),
        (4, 3, 2, 2): (3, 2, 2),
        (4, 4, 4, 3): (3, 4, 4),
        (4, 28, 28, 5): (5, 28, 28),
        (4, 13, 28, 28): (13, 28, 28),
        (4, 1, 9, 3): (1, 9, 3),
    }.items():
        assert load_real((RNG.integers(0, 256, shape, dtype=np.uint8), [0, 1, 0, 1]), holdout=0).shape == wanted


def test_label_ids_of_any_kind():
    images = RNG.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    numbers = load_real((images, [70, 5, 70, 5, 900, 5]), holdout=0)
    assert numbers.label_ids == (5, 70, 900)
    assert numbers.labels.tolist() == [1, 0, 1, 0, 2, 0]
    strings = load_real((images, np.array(["b", "a", "b", "a", "c", "a"])), holdout=0, class_names=["x", "y", "z"])
    assert strings.label_ids == ("a", "b", "c")
    assert strings.class_names == ("x", "y", "z")
    sparse = load_real((images, [1, 0, 1, 0, 3, 0]), holdout=0, class_names=["p", "q", "r", "s"])
    assert sparse.class_names == ("p", "q", "s")
    assert any("1 of 4 named classes" in note for note in sparse.notes)


def test_names_resolve_through_datastill_data(tmp_path: Path, monkeypatch):
    write_parquet(tmp_path / "my_set" / "train-00000-of-00001.parquet", GRAY)
    write_folder(tmp_path / "mnist", GRAY)
    monkeypatch.setenv("DATASTILL_DATA", str(tmp_path))
    real = load_real("My-Set", holdout=0)
    assert (real.name, real.source) == ("My-Set", "My-Set")
    assert load_real("mnist").space.source == "conventional"
    # a local path wins
    write_folder(tmp_path / "here" / "my_set", COLOR)
    monkeypatch.chdir(tmp_path / "here")
    assert load_real("my_set").shape[0] == 3


def test_columns_and_configurations_of_parquet(tmp_path: Path):
    write_parquet(tmp_path / "fine" / "train-0.parquet", GRAY, columns=("img", "fine_label"))
    write_parquet(tmp_path / "odd" / "train-0.parquet", GRAY, columns=("picture", "kind"))
    assert load_real(tmp_path / "fine", holdout=0).class_names == NAMES
    assert load_real(tmp_path / "odd", holdout=0).class_names == NAMES
    write_parquet(tmp_path / "plain" / "train-0.parquet", GRAY, names=None, columns=("picture", "kind"))
    with pytest.raises(InputError, match=r"no label column among picture, kind; name it with plain:label="):
        load_real(tmp_path / "plain")
    named = load_real(f"{tmp_path / 'plain'}:label=kind", holdout=0)
    assert named.class_names == ("0", "1", "2")
    assert load_real(named.source, holdout=0).fingerprint == named.fingerprint
    with pytest.raises(InputError, match="several configurations"):
        load_real(tmp_path)


def test_large_parquet_goes_through_a_copy_on_disk(tmp_path: Path, monkeypatch):
    for part in (0, 1):
        rows = slice(15 * part, 15 * part + 15)
        write_parquet(tmp_path / f"train-0000{part}-of-00002.parquet", COLOR[rows], LABELS[rows])
    small = load_real(tmp_path, holdout=0)
    monkeypatch.setattr("datastill.data.parquet.IN_MEMORY_BYTES", 10)
    large = load_real(tmp_path, holdout=0, size=(6, 7))  # another entry of the cache
    on_access = load_real(tmp_path, holdout=0, storage="decode")
    assert small.fingerprint == large.fingerprint == on_access.fingerprint


def test_the_hub(tmp_path: Path, monkeypatch):
    import datasets

    write_parquet(tmp_path / "train.parquet", COLOR)
    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"))})
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        if name == "org/none":
            raise datasets.exceptions.DatasetNotFoundError("no such set")
        if name == "org/script":
            raise RuntimeError("Dataset scripts are no longer supported")
        return loaded

    monkeypatch.setattr("datastill.data.hub.reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    real = load_real("org/cifar10:config=plain,label=label")
    assert asked == [("org/cifar10", "plain")]
    assert real.class_names == NAMES
    assert real.space.source == "conventional"
    assert real.source == "org/cifar10:config=plain,label=label"
    for name, words in {"org/none": "neither a folder", "org/script": "no longer supported"}.items():
        with pytest.raises(InputError, match=words):
            load_real(name)


def test_hugging_face_objects(tmp_path: Path):
    import datasets

    write_parquet(tmp_path / "train.parquet", COLOR)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "hf")
    )
    assert load_real(loaded, holdout=0).class_names == NAMES
    real = load_real(loaded["train"].select(range(5, 25)), holdout=0)
    assert torch.equal(everything(real)[0], torch.from_numpy(COLOR[5:25]).permute(0, 3, 1, 2) / 255)
    unlabeled = loaded["train"].cast_column("label", datasets.Value("int64")).map(lambda row: {"label": -1})
    both = load_real(datasets.DatasetDict({"train": loaded["train"], "test": unlabeled}))
    assert any("no labels" in note for note in both.notes)
    assert len(both.test) == 6


def test_random_transforms_are_drawn_from_a_seed_of_their_own():
    class Noisy(Items):
        def __getitem__(self, i):
            return torch.rand(1, 4, 4), int(self.labels[i])

    one, two = (load_real(Noisy(GRAY, LABELS), holdout=0) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert load_real(Noisy(GRAY, LABELS), holdout=0, storage="decode").fingerprint == one.fingerprint


def test_importing_the_package_is_light():
    code = (
        "import sys, datastill.data, datastill.data.load; "
        "print([name for name in ('datasets', 'sklearn', 'PIL') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "shape", "train"),
    [("fashion_mnist", (1, 28, 28), 60000), pytest.param("cifar10", (3, 32, 32), 50000, marks=pytest.mark.slow)],
)
def test_benchmark_sets(real_data: Path, name: str, shape: tuple[int, int, int], train: int):
    real = load_real(name)
    assert (len(real), len(real.test), real.shape) == (train, 10000, shape)
    assert real.counts.tolist() == [train // 10] * 10
    assert real.space.source == "conventional"
    start = time.perf_counter()
    again = load_real(name)
    assert time.perf_counter() - start < 2
    assert again.fingerprint == real.fingerprint
    mean = again.pixels(torch.arange(0, train, 10)).mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(real.space.mean), atol=0.01)
