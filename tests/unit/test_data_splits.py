"""Which part of a source is which split: what its owner means, or a refusal, never a silent other reading."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from datastill.core.errors import InputError
from datastill.data import RealSet, load_real
from datastill.data.parquet import find_parquet, refuse_mixed
from datastill.data.raw import Choice, Request
from datastill.data.splits import decide

TRAIN = (
    "train",
    "Train",
    "training",
    "training_set",
    "Training Data",
    "trainset",
    "train_images",
    "trainSet",
    "train2017",
)
CLASSES = ("bus", "car", "train", "test tube", "valid", "invalid", "dev", "train station")
TEST = ("test", "testing", "test1", "test_set", "Testing", "eval", "evaluation", "test-data", "testset")
VALIDATION = ("val", "valid", "validation", "val_set", "dev", "validset", "val2017")
#: What each part of a tree is for its owner, as the brightest pixel of its images.
OWNERS = {"train": 250, "test": 240, "validation": 230, "other": 220}


def image(owner: str, number: int) -> Image.Image:
    """Tells in its pixels whose it is."""
    pixels = np.zeros((3, 3), np.uint8)
    pixels[0, 0], pixels[1, 1], pixels[1, 2] = OWNERS[owner], number // 200, number % 200
    return Image.fromarray(pixels)


class Tree:
    """A folder that remembers what was put where and why."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put: list[tuple[str, str]] = []  # owner, class

    def add(self, folder: str, owner: str, label: str, count: int = 2) -> None:
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image(owner, len(self.put)).save(path / f"{len(self.put):03}.png")
            self.put.append((owner, label))

    def of(self, owner: str) -> list[tuple[int, str]]:
        return [(i, label) for i, (whose, label) in enumerate(self.put) if whose == owner]


def read(real: RealSet | None) -> list[tuple[str, int, str]]:
    """Whose, which and of what class the images of a set are."""
    if real is None:
        return []
    pixels = (real.pixels(torch.arange(len(real)))[:, 0] * 255).round().int()
    whose = {value: owner for owner, value in OWNERS.items()}
    return sorted(
        (whose[int(p[0, 0])], int(p[1, 1]) * 200 + int(p[1, 2]), real.class_names[c])
        for p, c in zip(pixels, real.labels.tolist())
    )


def meant(tree: Tree, real: RealSet, tests: tuple[str, ...]) -> None:
    """Training images are those of the owner, with their classes; test images are another of the owner's splits."""
    own = [("train", i, label) for i, label in tree.of("train")]
    train, test = read(real), read(real.test)
    if test and test[0][0] == "train":  # held out: there is no other
        assert not [owner for owner in tests if tree.of(owner)]
        assert sorted(train + test) == own
        return
    assert train == own
    owner = next(owner for owner in tests if tree.of(owner))
    assert test == [(owner, i, label) for i, label in tree.of(owner)]


def tried(source: Path) -> tuple[RealSet | None, str]:
    """The set, or the sentence that it is refused with."""
    try:
        return load_real(source, storage="decode"), ""
    except InputError as error:
        return None, str(error)


@st.composite
def splits(draw) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    """Folders of a set in splits (path, owner, class), and which of them can be its test split, best first."""
    train = draw(st.sampled_from(TRAIN))
    prefix = draw(st.sampled_from(["", "", "seg_", "mnist-", "My Pets "]))
    classes = draw(st.sampled_from([("cat", "dog"), ("0", "1", "2"), ("train", "bus"), ("n01", "n02", "test")]))
    deep = draw(st.sampled_from(["", "images/"]))
    wrap = draw(st.booleans())
    folders = []

    def put(name: str, owner: str, labeled: bool) -> None:
        inner = f"{prefix}{name}/" + (f"{prefix}{name}/" if wrap else "")
        if not labeled:
            folders.append((f"{prefix}{name}", "other", ""))
        folders.extend((f"{inner}{label}/{deep}", owner, label) for label in classes if labeled)

    put(train, "train", True)
    tests = []
    if draw(st.booleans()):
        labeled = draw(st.booleans())
        put(draw(st.sampled_from(TEST)), "test", labeled)
        tests += ["test"] if labeled else []
    if draw(st.booleans()):
        labeled = draw(st.booleans())
        put(draw(st.sampled_from(VALIDATION)), "validation", labeled)
        tests += ["validation"] if labeled else []
    for decoy in draw(st.lists(st.sampled_from(["pred", "unlabeled", "extra", "metadata", "masks"]), unique=True)):
        inside = [f"{label}/" for label in classes] if decoy == "extra" else [""]
        folders.extend((f"{decoy}/{one}", "other", "") for one in inside)
    return folders, tuple(tests)


@settings(max_examples=40, deadline=None)
@given(splits())
def test_splits_are_what_their_owner_means_or_refused(tmp_path_factory, plan) -> None:
    folders, tests = plan
    tree = Tree(tmp_path_factory.mktemp("t"))
    for path, owner, label in folders:
        tree.add(path, owner, label)
    real, refusal = tried(tree.root)
    if real is not None:
        meant(tree, real, tests)
    else:
        assert "--train" in refusal
        assert "datastill data" in refusal


@pytest.mark.parametrize(
    ("train", "test"), [*((name, "test") for name in TRAIN), *(("train", name) for name in (*TEST, *VALIDATION))]
)
def test_usual_names_are_understood(tmp_path: Path, train: str, test: str) -> None:
    tree = Tree(tmp_path)
    for label in "ab":
        tree.add(f"{train}/{label}", "train", label)
        tree.add(f"{test}/{label}", "test", label)
    real = load_real(tmp_path, storage="decode")
    meant(tree, real, ("test",))
    told = f"2 classes, 4 train from {train}/, 4 test from {test}/"
    assert real.notes == () if (train, test) == ("train", "test") else real.notes[0].startswith(told)


@settings(max_examples=25, deadline=None)
@example(["train", "valid"], "/in")
@given(
    st.lists(st.sampled_from(CLASSES), min_size=2, unique=True),
    st.sampled_from(["", "/in", "/in/it", "/a or b"]),
)
def test_a_class_may_bear_the_name_of_a_split(tmp_path_factory, names: list[str], below: str) -> None:
    # train/a, train/b, valid/a, valid/b are splits of the classes a and b to everybody: no owner means the names' way
    assume(below != "/a or b" or not set(names) <= {"train", "valid", "dev"})
    tree = Tree(tmp_path_factory.mktemp("c"))
    for name in names:
        for one in ("/a", "/b") if below == "/a or b" else (below,):
            tree.add(f"{name}{one}", "train", name)
    real, refusal = tried(tree.root)
    if real is None:
        assert "--train ." in refusal
        real = load_real(tree.root, storage="decode", train=".")
    meant(tree, real, ())


@pytest.mark.parametrize(
    ("outer", "inner", "words"),
    [
        (["fold0", "fold1", "fold2"], ["a", "b"], "--train fold0,fold1 --test fold2"),
        (["align", "conflict"], ["0", "1"], "--train align,conflict"),
        (["photo", "sketch", "art"], ["dog", "cat", "cow"], "groups or domains"),
        (["cat", "dog"], ["train", "test"], "put train/ and test/ above the classes"),
        (["fold_1", "fold_2"], [""], "without class folders"),
        (["train", "test1"], [""], "no class sub-folders"),
        (["train", "bus"], ["a", "b"], None),
        (["train", "bus"], ["a", "b", "c", "d"], None),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path: Path, outer, inner, words) -> None:
    tree = Tree(tmp_path)
    for name in outer:
        for one in inner:
            tree.add(f"{name}/{one}" if name != "bus" else f"bus/{one}x", "train", name)
    with pytest.raises(InputError, match="--train") as caught:
        load_real(tmp_path)
    assert words is None or words in str(caught.value)
    real = load_real(tmp_path, train=".", storage="decode")
    assert set(real.class_names) == set(outer)
    assert load_real(real.source, **real.options).fingerprint == real.fingerprint


def test_the_caller_settles_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for group in ("align", "conflict", "held"):
        for label in "ab":
            tree.add(f"{group}/{label}", {"held": "test"}.get(group, "train"), label)
    real = load_real(tmp_path, train="align,conflict", test="held")
    meant(tree, real, ("test",))
    again = load_real(real.source, **real.options)
    assert (again.fingerprint, again.test.fingerprint) == (real.fingerprint, real.test.fingerprint)
    assert len(load_real(tmp_path, train=["align"], test="none", holdout=0)) == 4
    assert load_real(tmp_path, train="[ac]*", test="none", holdout=0).test is None
    standing_in = load_real(tmp_path, train="align", val="held")
    assert read(standing_in.test) == [("test", i, label) for i, label in tree.of("test")]
    for wrong, words in {
        "algin": "Did you mean 'align'",
        "align/a": "2 images but no class sub-folders",
        "../other": "nothing named",
    }.items():
        with pytest.raises(InputError, match=words):
            load_real(tmp_path, train=wrong, test="held")
    with pytest.raises(InputError, match="two splits"):
        load_real(tmp_path, train="align,held", test="held")
    with pytest.raises(InputError, match="must be a training split"):
        load_real(tmp_path, train="none")
    with pytest.raises(InputError, match="no parts"):
        load_real("digits", train="align")
    assert len(load_real("digits", test="none").test) == 180  # of 899


def test_a_test_split_is_left_out_when_asked(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for label in "ab":
        tree.add(f"train/{label}", "train", label, 5)
        tree.add(f"test/{label}", "test", label)
        tree.add(f"val/{label}", "validation", label)
    meant(tree, load_real(tmp_path), ("test",))
    held = load_real(tmp_path, test="none")
    assert {owner for owner, *_ in read(held) + read(held.test)} == {"train"}
    assert {owner for owner, *_ in read(load_real(tmp_path, test="none", val="val").test)} == {"validation"}


# -- parquet -----------------------------------------------------------------------------------------------------------

WORDS = (
    "train",
    "training",
    "test",
    "testing",
    "eval",
    "val",
    "validation",
    "dev",
    "extra",
    "mnist",
    "cats",
    "data",
    "fold",
)


@st.composite
def parquet_names(draw) -> list[str]:
    """File names below a folder: words, numbers, shards, folders."""
    names = set()
    for _ in range(draw(st.integers(1, 4))):
        words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))
        stem = draw(st.sampled_from("-_. ")).join(words) + draw(st.sampled_from(["", "", "1", "_2", "-00000-of-00001"]))
        if draw(st.integers(0, 3)) == 0:
            names.add(f"{draw(st.sampled_from(WORDS))}{draw(st.sampled_from(['', '1', '_set']))}/0000.parquet")
        names.add(f"{stem}.parquet")
    if draw(st.booleans()):  # all in folders, as the Hub converts sets
        names = {f"{Path(name).stem}/0000.parquet" for name in names}
    return sorted(names)


def as_datasets_reads(names: list[str]) -> dict[str, set[str]]:
    """Files by split, by the patterns of `datasets` itself, matched as fsspec does but without a disk."""
    from datasets.data_files import _get_data_files_patterns
    from fsspec.utils import glob_translate

    def matching(pattern: str) -> list[str]:
        return [name for name in names if re.match(glob_translate(pattern), name)]

    found = _get_data_files_patterns(matching)
    return {str(split): {name for p in patterns for name in matching(p)} for split, patterns in found.items()}


@settings(max_examples=300, deadline=None)
@given(parquet_names())
def test_names_of_parquet_files_are_read_as_datasets_reads_them(tmp_path_factory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("p").resolve()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    try:
        files = find_parquet(folder)
        refuse_mixed(files, Request(), folder)
        decision = decide(list(files), Choice(), folder)
    except InputError:
        return
    known = as_datasets_reads(names)

    def paths(parts: tuple[str, ...]) -> set[str]:
        return {str(file.relative_to(folder)) for part in parts for file in files[part]}

    # a file that datasets puts into two splits is in neither here
    both = known.get("train", set()) & (known.get("test", set()) | known.get("validation", set()))
    both |= known.get("test", set()) & known.get("validation", set())
    assert paths(decision.train) == known["train"] - both
    wanted = [known[kind] - both for kind in ("test", "validation") if known.get(kind, set()) - both]
    assert [paths(parts) for parts in decision.tests] == wanted


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["mnist_train", "mnist_test"], ["mnist_train"], ["mnist_test"]),
        (["train-00000-of-00002", "train-00001-of-00002", "test1-00000-of-00001"], 2, 1),
        (["train-00000-of-00001", "extra-00000-of-00001"], 1, 0),
        (["train/0000", "test/0000", "validation/0000"], 1, 1),
        (["0000", "0001"], 2, 0),
        (["a", "b"], 2, 0),
    ],
)
def test_parquet_files_by_name(tmp_path: Path, names, train, test) -> None:
    for number, name in enumerate(names):
        write_parquet(tmp_path / f"{name}.parquet", "test" if "test" in name else "train", number)
    real = load_real(tmp_path, holdout=0)
    assert len(real) == 2 * (train if isinstance(train, int) else len(train))
    assert (0 if real.test is None else len(real.test)) == 2 * (test if isinstance(test, int) else len(test))
    assert {owner for owner, *_ in read(real)} == {"train"}
    assert {owner for owner, *_ in read(real.test)} <= {"test"}


def write_parquet(path: Path, owner: str, number: int, labels=(0, 1), column: str = "label") -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = []
    for i in range(2):
        buffer = io.BytesIO()
        image(owner, 2 * number + i).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), column: datasets.Value("int64")})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": rows, column: list(labels)}, features=features).to_parquet(str(path))


@pytest.mark.parametrize("labels", [(-1, -1), (None, None), "no column"])
@pytest.mark.parametrize("kind", ["parquet", "object"])
def test_a_split_without_labels_is_passed_over(tmp_path: Path, labels, kind: str) -> None:
    import datasets

    write_parquet(tmp_path / "train.parquet", "train", 0)
    write_parquet(tmp_path / "val.parquet", "validation", 1)
    given_labels, column = ((0, 1), "other") if labels == "no column" else (labels, "label")
    write_parquet(tmp_path / "test.parquet", "test", 2, given_labels, column)
    source = tmp_path
    if kind == "object":
        parts = {
            p.stem: datasets.Dataset.from_parquet(str(p), cache_dir=str(tmp_path / "hf"))
            for p in tmp_path.glob("*.parquet")
        }
        source = datasets.DatasetDict(parts)
    real = load_real(source)
    assert {owner for owner, *_ in read(real.test)} == {"validation"}
    assert any("test has no labels" in note for note in real.notes)
    with pytest.raises(InputError):
        load_real(source, test="test")
    assert len(load_real(source, test="none", holdout=0)) == 2


def test_splits_of_objects_by_name(tmp_path: Path) -> None:
    import datasets

    write_parquet(tmp_path / "a.parquet", "train", 0)
    write_parquet(tmp_path / "b.parquet", "test", 1)
    one, two = (
        datasets.Dataset.from_parquet(str(tmp_path / f"{n}.parquet"), cache_dir=str(tmp_path / "hf")) for n in "ab"
    )
    for train, test in (("train", "test"), ("training", "eval"), ("train", "dev")):
        real = load_real(datasets.DatasetDict({test: two, train: one}))
        assert {owner for owner, *_ in read(real)} == {"train"}
        assert {owner for owner, *_ in read(real.test)} == {"test"}
    folds = datasets.DatasetDict({"fold_0": one, "fold_1": two})
    with pytest.raises(InputError, match="--train"):
        load_real(folds)
    assert {owner for owner, *_ in read(load_real(folds, train="fold_0", test="fold_1").test)} == {"test"}


def test_links_of_splits(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "elsewhere")
    for label in "ab":
        tree.add(f"train/{label}", "train", label)
        tree.add(f"test/{label}", "test", label)
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test"):
        (data / name).symlink_to(tree.root / name)
    with pytest.raises(InputError, match=r"2 links lead out of .* --follow-links"):
        load_real(data)
    meant(tree, load_real(data, follow_links=True), ("test",))
    for name in ("up", "again"):  # links that lead back are not walked for ever
        (tree.root / "docs").mkdir(exist_ok=True)
        (tree.root / "docs" / name).symlink_to(tree.root / "docs")
        (tree.root / "train" / "a" / name).symlink_to(tree.root / "train" / "a")
    meant(tree, load_real(tree.root), ("test",))


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    tree = Tree(tmp_path)
    for label in "ab":
        tree.add(f"train/{label}", "train", label)
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("datastill.data.parts.os.scandir", refusing)
    with pytest.raises(InputError, match=r"train/b cannot be read \(Permission denied\)"):
        load_real(tmp_path)


def test_arrays_as_a_test_split_are_told_where_they_go() -> None:
    """The sentence shows none of their numbers."""
    x, y = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    with pytest.raises(
        InputError, match=r"test is a tuple, which names no part.*\(\(x, y\), \(x_test, y_test\)\)"
    ) as error:
        load_real((x, y), test=(x, y))  # type: ignore[arg-type]
    assert "tensor" not in str(error.value)
