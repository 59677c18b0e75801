"""What real folders and files do to a reader: names, pixels that hold nothing, rows without bytes, items of None."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.utils.data import DataLoader, Dataset, IterableDataset

from datastill import load_distilled
from datastill.cli import main
from datastill.cli.options import names_of
from datastill.core.errors import InputError
from datastill.data import load_real
from datastill.data.places import places_of
from datastill.data.sources import sources
from datastill.store.outputs import refuse_out

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape or (6, 6), dtype=np.uint8)


def folder_of(root: Path, make=noise, ending: str = "png", count: int = 3, **options) -> Path:
    for label in ("ant", "bee"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            made = make()
            made = made if isinstance(made, Image.Image) else Image.fromarray(made)
            made.save(root / label / f"{i}.{ending}", **options)
    return root


def refused(source, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_real(source, **options)
    return str(caught.value)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_folder_wins_over_what_is_built_in(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / name)
    real = load_real(name)
    assert real.class_names == ("ant", "bee")
    assert any(f"{name}: with a colon" in note for note in real.notes)
    assert places_of(name) == (tmp_path.resolve() / name,)
    assert load_real(real.source, **real.options).fingerprint == real.fingerprint
    assert tmp_path.resolve() / name not in places_of(f"{name}:")
    if name == "digits":
        built_in = load_real("digits:")
        assert len(built_in) == 899
        assert load_real(built_in.source).fingerprint == built_in.fingerprint
        assert len(load_real("digits:train=1000")) == 1000


def test_a_folder_of_results_has_no_claim_on_a_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "digits" / "pictures")
    (tmp_path / "digits" / "manifest.json").write_text("{}")
    assert len(load_real("digits")) == 899
    assert load_real("digits:").source == "digits"


def test_a_set_made_of_what_is_built_in_finds_it_beside_a_folder_of_its_name(tmp_path: Path, monkeypatch) -> None:
    from datastill.data.recorded import load_recorded
    from datastill.store.manifest import Data

    real = load_real("digits")
    record = json.loads(json.dumps(real.describe()))
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "digits")
    assert load_recorded(Data.model_validate(record), real.space, None).fingerprint == real.fingerprint


@pytest.mark.parametrize("path", ["x" * 300, "a/" + "x" * 300, "/" + "x/" * 3000])
def test_a_path_that_is_too_long_is_one_sentence(path: str, capsys) -> None:
    for use in (load_real, load_distilled, refuse_out):
        with pytest.raises(InputError, match="too long"):
            use(Path(path))
    for command in (["inspect", path], ["evaluate", path], ["data", path], ["distill", "dm", "--out", path],
                    ["experts", "import", path, "--data", "digits", "--out", "o", "--space", "raw"],
                    ["teacher", "inspect", path], ["results", path], ["export", path, "imagefolder"]):  # fmt: skip
        assert main(command) == 2, command
        *_, told = capsys.readouterr().err.splitlines()
        assert told.startswith("datastill: ")
        assert len(told) < 500, told
    assert not Path("o").exists()


def test_bytes_that_are_no_utf8_are_one_sentence(tmp_path: Path, capsys) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for use in (load_real, load_distilled, refuse_out):
        with pytest.raises(InputError, match=r"caf\\xe9 holds bytes that are no UTF-8"):
            use(strange)
    assert main(["distill", "random", "--data", "digits", "--out", strange]) == 2
    assert "caf\\xe9 holds bytes" in capsys.readouterr().err
    folder_of(tmp_path / "set")
    try:
        (Path(strange).parent / "set" / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert "caf\\xe9 holds bytes that are no UTF-8" in refused(tmp_path / "set")
    # a file of such a name harms nobody, and can be named where it is skipped
    shutil.rmtree(tmp_path / "set" / os.fsdecode(b"caf\xe9"))
    (tmp_path / "set" / "ant" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"\\xff\.png"):
        real = load_real(tmp_path / "set", skip_bad=True, holdout=0)
    assert len(real) == 6
    json.dumps(real.describe(), ensure_ascii=False).encode()


def test_what_is_no_image_is_counted_and_named(tmp_path: Path) -> None:
    folder_of(tmp_path)
    for name in (".hidden.png", "a.heic", "b.heic", "IMG_0001", "notes.txt", ".DS_Store", "._0.png", "Thumbs.db"):
        (tmp_path / "bee" / name).write_bytes(b"?")
    Image.fromarray(noise()).save(tmp_path / "beside.png")
    (note,) = (note for note in load_real(tmp_path).notes if "passed over" in note)
    for told in ("2 .heic", "1 hidden", "1 .txt", "1 without an extension", "bee/.hidden.png", "1 .png"):
        assert told in note, note
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "1.heic").write_bytes(b"?")
    assert "cow has no image (.png, .jpg, .webp, ...) but 1 .heic, such as" in refused(tmp_path)


def test_class_names_out_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("tench, Tinca tinca\ngoldfish\r\n\n great white shark \n")
    assert names_of(f"@{tmp_path / 'names.txt'}") == ("tench, Tinca tinca", "goldfish", "great white shark")
    assert names_of("a, b") == ("a", "b")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, words in {"no.txt": "does not exist", "empty.txt": "no names", "latin.txt": "UTF-8"}.items():
        with pytest.raises(InputError, match=words):
            names_of(f"@{tmp_path / name}")


# -- pixels ------------------------------------------------------------------------------------------------------------


def clear() -> np.ndarray:
    """A shape in the alpha channel alone."""
    return np.concatenate([np.zeros((6, 6, 3), np.uint8), noise(6, 6, 1)], 2)


def deep(most: int, kind: type = np.uint16):
    return lambda: RNG.integers(0, most, (6, 6)).astype(kind)


@pytest.mark.parametrize(
    ("make", "ending", "words"),
    [
        (clear, "png", "hold nothing: all pixels lie between 0 and 0 of 255"),
        (lambda: np.zeros((6, 6), np.uint8), "png", "hold nothing"),
        (lambda: np.full((6, 6), 200, np.uint8) + RNG.integers(0, 2, (6, 6), dtype=np.uint8), "png", "hold nothing"),
        (deep(4096), "png", "12 bits in files of 16"),
        (deep(2**31 - 1, np.int32), "tif", "integers from"),
        (deep(200, np.int32), "tif", "integers from"),
    ],
)
def test_pixels_that_hold_nothing_are_refused(tmp_path: Path, make, ending: str, words: str) -> None:
    for storage in ("auto", "decode"):
        told = refused(folder_of(tmp_path, make, ending), mode="RGB", storage=storage)
        assert words in told
        assert str(tmp_path / "ant") in told


def test_a_black_first_frame_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 6)), Image.fromarray(noise())]
    assert "first frame" in refused(
        folder_of(tmp_path, lambda: frames[0], "gif", save_all=True, append_images=frames[1:])
    )


@pytest.mark.parametrize("scale", [1, 2, 1 / 255])
def test_arrays_that_hold_nothing_are_refused(scale: float) -> None:
    x = RNG.integers(0, 2, (20, 5, 5)) * scale
    x = x.astype(np.float32) if scale < 1 else x.astype(np.uint8)
    assert "hold nothing" in refused((x, np.arange(20) % 2))
    same = np.repeat(noise(1, 5, 5), 20, 0)
    assert "All 20 train images are the same" in refused((same, np.arange(20) % 2))
    test = (np.zeros((4, 5, 5), np.uint8), [0, 1, 0, 1])
    assert "The test images hold nothing" in refused(((noise(20, 5, 5), np.arange(20) % 2), test))


def test_one_varied_image_among_many_is_found(tmp_path: Path) -> None:
    x = np.zeros((5000, 4, 4), np.uint8)
    x[4321] = noise(4, 4)
    with pytest.warns(UserWarning, match="single color"):
        assert len(load_real((x, np.arange(5000) % 2), holdout=0)) == 5000


def test_a_mean_or_spread_that_no_set_has_is_warned_of(tmp_path: Path) -> None:
    x = np.zeros((40, 8, 8), np.uint8)
    x[:, 0, 0] = np.arange(40) * 6
    with pytest.warns(UserWarning, match="which sets of images seldom have"):
        notes = load_real((x, np.arange(40) % 2)).notes
    assert any("seldom" in note for note in notes)
    x = noise(40, 8, 8)
    x[::4] = np.arange(10, dtype=np.uint8)[:, None, None]
    with pytest.warns(UserWarning, match="10 of 40 train images .* are of a single color, such as item"):
        load_real(Items(zip(x, np.arange(40) % 2)))


@pytest.mark.parametrize("bits", [12, 16, 10])
def test_a_known_depth_is_scaled_by(tmp_path: Path, bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 36).reshape(6, 6).astype(np.uint16)
    wanted = values >> (bits - 8)

    info = PngInfo()
    info.add(b"sBIT", bytes([bits]))
    folder_of(tmp_path / "png", lambda: Image.fromarray(values), pnginfo=info)
    read = load_real(tmp_path / "png", mode="L", holdout=0)
    assert np.array_equal((read.pixels(torch.tensor([0]))[0, 0] * 255).round().numpy(), wanted)


# -- rows and items ----------------------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, items) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class Walked(IterableDataset):
    def __init__(self, items) -> None:
        self.items = items

    def __iter__(self):
        yield from self.items


def pairs(count: int = 8):
    return [(noise(5, 5), i % 2) for i in range(count)]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, "is None"),
        ((None, 1), "without an image"),
        ((noise(5, 5), None), "without a label"),
        (OSError("cut short"), "cut short"),
    ],
)
def test_items_without_something_are_named_or_skipped(item, words: str) -> None:
    items = Items([*pairs(), item, *pairs(2)])
    told = refused(items)
    assert "Item 8 of the train dataset" in told
    assert words in told
    assert "--skip-bad" in told
    with pytest.warns(UserWarning, match="1 unreadable image of the train split skipped: item 8"):
        assert len(load_real(items, skip_bad=True, holdout=0)) == 10


def test_datasets_that_are_walked(monkeypatch) -> None:
    items = pairs()
    by_position = load_real(Items(items), holdout=0)
    assert load_real(Walked(items), holdout=0).fingerprint == by_position.fingerprint
    both = load_real({"train": Walked(items), "test": Walked(pairs(4))})
    assert (len(both), len(both.test)) == (8, 4)
    assert "give the dataset that it loads from" in refused(DataLoader(Items(items)))
    monkeypatch.setattr("datastill.data.items.MOST_ITEMS", 5)
    assert "goes on after 5 images" in refused(Walked(items))
    monkeypatch.setattr("datastill.data.items.IN_MEMORY_BYTES", 60)
    assert "goes on after 2 images" in refused(Walked(items))
    assert "Item 0 of the train dataset cannot be read (TypeError" in refused(Walked(5))


def test_iterable_datasets_of_hugging_face(tmp_path: Path, monkeypatch) -> None:
    import datasets

    datasets.disable_progress_bars()
    folder_of(tmp_path / "set")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "hf"))
    streamed = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), streaming=True)
    wanted = load_real(loaded, holdout=0).fingerprint
    assert load_real(streamed, holdout=0).fingerprint == wanted
    assert load_real(streamed["train"], holdout=0).fingerprint == wanted
    monkeypatch.setattr("datastill.data.hub.MOST_ITEMS", 3)
    assert "goes on after 3 rows" in refused(streamed)
    # the cache of "imagefolder" names files, which may have been moved since
    (tmp_path / "set").rename(tmp_path / "moved")
    for options in ({}, {"skip_bad": True}):
        told = refused(loaded, storage="decode", **options)
        assert "free some space" not in told
    assert "a file that is not at" in refused(loaded, storage="decode")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_is_understood(tmp_path: Path, capsys) -> None:
    folder_of(tmp_path / "set" / "training_set")
    folder_of(tmp_path / "set" / "Test", count=2)
    sheet = tmp_path / "sheet.png"
    assert main(["data", str(tmp_path / "set"), "--out", str(sheet), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["error"] is None
    assert record["splits"]["train"]["classes"] == {"ant": 3, "bee": 3}
    assert record["splits"]["test"]["images"] == 4
    assert record["files"]["sizes"] == {"6x6": 10}
    assert record["files"]["modes"] == {"L": 10}
    assert record["notes"] == ["2 classes, 6 train from training_set/, 4 test from Test/"]
    with Image.open(sheet) as image:
        assert image.width > image.height > 100
        assert len(np.unique(np.asarray(image))) > 50
    assert main(["data", str(tmp_path / "set"), "--out", str(sheet)]) == 0  # its own picture is made anew
    told = capsys.readouterr().out
    for words in ("6 images of 1×6×6, 2 classes: ant 3, bee 3", "sizes", "6x6 (10)", "pixels: mean"):
        assert words in told


def test_the_command_tells_what_is_there_where_it_cannot_be_loaded(tmp_path: Path, capsys) -> None:
    folder_of(tmp_path / "set")
    Image.fromarray(noise(9, 7, 3)).save(tmp_path / "set" / "ant" / "x.png")
    (tmp_path / "set" / "bee" / "bad.png").write_bytes(b"no image")
    assert main(["data", str(tmp_path / "set"), "--json", "--out", str(tmp_path / "s.png")]) == 2
    out = capsys.readouterr()
    record = json.loads(out.out)
    assert "mix modes" in record["error"]
    assert record["relaxed"]
    assert record["files"]["sizes"] == {"6x6": 6, "9x7": 1}
    assert record["files"]["modes"] == {"L": 6, "RGB": 1}
    assert record["files"]["unreadable"] == [str(tmp_path / "set" / "bee" / "bad.png")]
    assert (tmp_path / "s.png").is_file()
    assert f"`datastill data {tmp_path / 'set'}` shows what is there." in refused(tmp_path / "set")

    for name in ("align", "conflict"):
        shutil.copytree(tmp_path / "set", tmp_path / "groups" / name)
    assert main(["data", str(tmp_path / "groups")]) == 2
    out = capsys.readouterr()
    assert "align" in out.out
    assert "--train align,conflict" in out.err
    assert main(["data", str(tmp_path / "no")]) == 2
    assert "There is no folder" in capsys.readouterr().err


def test_the_sheet_overwrites_nothing_and_lies_outside_the_data(tmp_path: Path, capsys) -> None:
    folder_of(tmp_path / "set")
    photo = tmp_path / "photo.png"
    Image.fromarray(noise()).save(photo)
    before = photo.read_bytes()
    for out in (photo, tmp_path / "set" / "s.png", tmp_path / "set" / "ant" / "s.png", tmp_path / "s.jpg"):
        assert main(["data", str(tmp_path / "set"), "--out", str(out)]) == 2, out
        assert "Traceback" not in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert len(list(tmp_path.rglob("*"))) == 10
