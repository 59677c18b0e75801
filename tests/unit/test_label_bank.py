"""Label banks: exact replay, exact labels, honest sizes; other images, other views and damaged files are refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datastill.augment.trace import TraceSpec
from datastill.core import space
from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.labels import bank_files
from datastill.labels.bank import LabelBank
from datastill.labels.bank_labels import LabelCode
from datastill.labels.bank_layout import Layout
from datastill.labels.labeler import Labeler

SPEC = TraceSpec(crop="resized", min_scale=0.3, mix="cutmix")
SPECS = [
    SPEC,
    TraceSpec(crop="padded", shuffle=2, mix="mixup", alpha=0.8),
    TraceSpec(flip=False),
]
CLASSES = 12


def teacher(classes: int = CLASSES) -> nn.Module:
    with isolated(0):
        network = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 48, classes)
        )
        network(torch.randn(20, 2, 8, 6))
    with torch.no_grad():
        network[4].weight *= 8  # logits of several units, as trained networks have
    return network


def images(n: int = 23) -> Tensor:
    return torch.randn(n, 2, 8, 6, generator=torch.Generator().manual_seed(3))


def make(folder: Path, x: Tensor | None = None, spec: TraceSpec = SPEC, **settings: Any) -> LabelBank:
    settings = {"epochs": 3, "batch": 5, "seed": 4, **settings}
    return LabelBank.make(folder, images() if x is None else x, Labeler([teacher()]), spec, **settings)


@pytest.mark.parametrize("encoding", ["seed", "explicit"])
@pytest.mark.parametrize("spec", SPECS, ids=["cutmix", "mixup", "plain"])
def test_labels_are_the_teachers_for_the_replayed_views(tmp_path: Path, encoding: str, spec: TraceSpec) -> None:
    x = images()
    bank = LabelBank.open(make(tmp_path / "bank", spec=spec, encoding=encoding).folder)
    labeler = Labeler([teacher()])
    assert len(bank) == 15
    for epoch in range(3):
        seen = []
        for b in range(bank.batches):
            index, trace, logits = bank[epoch, b]
            seen.append(index)
            expected = labeler(trace.apply(x[index]))
            assert torch.equal(logits, expected.half().float())
        assert torch.cat(seen).sort().values.tolist() == list(range(23))
    assert not torch.equal(bank[0, 0].positions, bank[1, 0].positions)


@pytest.mark.parametrize("workers", [0, 2])
def test_replay_is_exact_in_any_order_and_any_process(tmp_path: Path, workers: int) -> None:
    x = images()
    shown: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    class Watching(Labeler):
        def __call__(self, views: Tensor) -> Tensor:
            self.seen = [*getattr(self, "seen", []), views.clone()]
            return super().__call__(views)

    for encoding in ("seed", "explicit"):
        watching = Watching([teacher()])
        bank = LabelBank.make(tmp_path / encoding, x, watching, SPEC, epochs=3, batch=5, seed=4, encoding=encoding)
        views = watching.seen[1:]  # the first call asks for the number of classes
        dataset = LabelBank.open(bank.folder).dataset(x, epochs=4)
        assert len(dataset) == 20
        generator = torch.Generator().manual_seed(1)
        loader = DataLoader(dataset, batch_size=None, shuffle=True, num_workers=workers, generator=generator)
        found = sorted(loader, key=lambda item: (item[0].tolist(), item[1].sum().item()))
        straight = sorted((dataset[i] for i in range(20)), key=lambda item: (item[0].tolist(), item[1].sum().item()))
        for (index, view, logits), (index_, view_, logits_) in zip(found, straight, strict=True):
            assert torch.equal(index, index_)
            assert torch.equal(view, view_)
            assert torch.equal(logits, logits_)
        for i in range(20):
            assert torch.equal(dataset[i][1], views[i % 15])  # the fourth epoch is the first again
            shown.setdefault((i, 0), dataset[i][1:])
            assert all(torch.equal(a, b) for a, b in zip(shown[i, 0], dataset[i][1:], strict=True))


def test_a_bank_goes_to_other_processes_without_its_arrays(tmp_path: Path) -> None:
    bank = make(tmp_path / "bank", dtype="float32", epochs=20)
    expected = bank[7, 2]
    sent = pickle.dumps(bank)
    assert len(sent) < bank.nbytes / 4
    received = pickle.loads(sent)[7, 2]
    assert torch.equal(received.logits, expected.logits)
    assert received.trace == expected.trace


def test_both_encodings_hold_the_same(tmp_path: Path) -> None:
    for k, spec in enumerate(SPECS):
        a = make(tmp_path / f"a{k}", spec=spec, encoding="seed")
        b = make(tmp_path / f"b{k}", spec=spec, encoding="explicit")
        for epoch in range(3):
            for batch in range(a.batches):
                for one, other in zip(a[epoch, batch], b[epoch, batch], strict=True):
                    assert one == other if not isinstance(one, Tensor) else torch.equal(one, other)


def test_a_last_batch_of_one_image_joins_the_one_before(tmp_path: Path) -> None:
    bank = make(tmp_path / "bank", images(21))
    assert [len(bank[0, b].positions) for b in range(bank.batches)] == [5, 5, 5, 6]
    assert [len(make(tmp_path / "one", images(1))[0, b].positions) for b in range(1)] == [1]


def test_batch_labels_differ_and_belong_to_their_batch(tmp_path: Path) -> None:
    network = teacher()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    labeler = Labeler([network], mode="batch")
    by_batch = LabelBank.make(tmp_path / "batch", images(), labeler, SPEC, epochs=2, batch=5)
    running = LabelBank.make(tmp_path / "eval", images(), Labeler([network]), SPEC, epochs=2, batch=5)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert by_batch.mode == "batch"
    assert (by_batch[0, 0].logits - running[0, 0].logits).abs().max() > 0.1
    index, trace, logits = by_batch[1, 2]
    assert torch.equal(logits, labeler(trace.apply(images()[index])).half().float())


def test_all_logits_kept_by_rank_lose_nothing(tmp_path: Path) -> None:
    full = make(tmp_path / "full")
    ranked = make(tmp_path / "ranked", top_k=CLASSES, temperature=4.0)
    assert not ranked.partial
    for b in range(full.batches):
        assert torch.equal(full[0, b].logits, ranked[0, b].logits)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("k", [1, 3, CLASSES - 1])
def test_the_largest_logits_and_one_for_the_rest_give_the_right_masses(
    tmp_path: Path, temperature: float, k: int
) -> None:
    exact = make(tmp_path / "exact", dtype="float32")
    bank = make(tmp_path / "bank", top_k=k, temperature=temperature)
    assert bank.partial
    for b in range(bank.batches):
        p = (exact[0, b].logits / temperature).softmax(1)
        q = (bank[0, b].logits / temperature).softmax(1)
        kept = exact[0, b].logits.topk(k, 1).indices
        assert (p.gather(1, kept) - q.gather(1, kept)).abs().max() < 1e-3
        assert (p.gather(1, kept).sum(1) - q.gather(1, kept).sum(1)).abs().max() < 1e-3
        rest = torch.ones_like(q, dtype=torch.bool).scatter(1, kept, False)
        assert all(len(row[mask].unique()) == 1 for row, mask in zip(q, rest, strict=True))


def test_a_tail_at_another_temperature_is_wrong(tmp_path: Path) -> None:
    """The check above can fail: a tail for temperature 1 does not serve at 20."""
    exact, bank = make(tmp_path / "exact", dtype="float32"), make(tmp_path / "bank", top_k=3, temperature=1.0)
    p, q = (exact[0, 0].logits / 20).softmax(1), (bank[0, 0].logits / 20).softmax(1)
    assert (p - q).topk(3, 1).values.abs().max() > 3e-3


def test_one_byte_per_logit_is_within_half_a_step(tmp_path: Path) -> None:
    exact, bank = make(tmp_path / "exact", dtype="float32"), make(tmp_path / "bank", dtype="int8")
    for b in range(bank.batches):
        logits = exact[0, b].logits
        step = (logits.amax(1) - logits.amin(1)) / 255
        error = (bank[0, b].logits - logits).abs().amax(1)
        assert (error <= 0.501 * step).all()
        assert (error > 0.1 * step).any()
    constant = LabelCode(dtype="int8").encode(torch.full((2, 3), 1.5))
    assert torch.equal(LabelCode(dtype="int8").decode(constant, 3), torch.full((2, 3), 1.5))


def test_reported_bytes_are_those_on_disk(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"encoding": "explicit"},
        {"dtype": "int8"},
        {"top_k": 3, "temperature": 4.0},
        {"spec": SPECS[1], "encoding": "explicit"},
    ]
    for k, settings in enumerate(cases):
        bank = make(tmp_path / str(k), **settings)
        files = list(bank.folder.iterdir())
        assert bank.nbytes == sum(len(path.read_bytes()) for path in files)
        assert len(files) <= 10
        arrays = sum(len(path.read_bytes()) for path in files if path.suffix == ".npy")
        assert 0 <= arrays - bank.layout.nbytes <= 128 * len(files)
    small = make(tmp_path / "small")
    assert small.layout.nbytes == 3 * 23 * (1 + 2 * CLASSES) + 3 * 5 * 8  # position, logits; a seed per batch
    assert small.image_bytes == 23 * 2 * 8 * 6


def test_the_size_is_known_beforehand() -> None:
    """The table of the reference page: ImageNet-1K, 10 images a class, 300 epochs."""
    common = {"count": 10_000, "size": (224, 224), "classes": 1000, "epochs": 300, "batch": 100, "trace": SPEC}
    assert Layout(**common).nbytes == 300 * 10_000 * (2000 + 2) + 300 * 100 * 8
    top = Layout(**common, code=LabelCode(top_k=10, temperature=20.0))
    assert top.nbytes == 300 * 10_000 * (42 + 2) + 300 * 100 * 8


def test_the_header_says_whose_labels_they_are(tmp_path: Path) -> None:
    told = {"id": "ours", "accuracy": 0.84}
    bank = make(
        tmp_path / "bank", teacher=told, space=space.normalized((0.3, 0.4), (0.2, 0.2)), top_k=2, temperature=4.0
    )
    header = json.loads((bank.folder / "bank.json").read_text())
    assert header == bank.header
    assert header["teacher"] == told
    assert header["labeller"] == Labeler([teacher()]).describe()
    assert header["space"]["mean"] == [0.3, 0.4]
    assert (header["epochs"], header["batch"], header["seed"], header["classes"]) == (3, 5, 4, CLASSES)
    assert header["labels"] == {"dtype": "float16", "top_k": 2, "temperature": 4.0}
    assert header["augmentation"]["mix"] == "cutmix"
    assert header["images"]["shape"] == [23, 2, 8, 6]
    assert header["rng"]


def test_other_images_and_other_augmentation_are_refused(tmp_path: Path) -> None:
    bank, x = make(tmp_path / "bank"), images()
    bank.check(x, SPEC)
    changed = x.clone()
    changed[22, 1, 7, 5] += 1e-6
    for other, words in ((changed, "other images"), (x.flip(0), "other images"), (x[:22], "The labels are of images")):
        with pytest.raises(InputError, match=words):
            bank.check(other)
        with pytest.raises(InputError, match=words):
            bank.dataset(other)
    with pytest.raises(InputError, match="train with the bank's augmentation"):
        bank.check(x, TraceSpec(crop="resized", min_scale=0.3))


def test_a_bank_is_a_function_of_its_seed(tmp_path: Path) -> None:
    a, b, c = (make(tmp_path / str(k), seed=seed) for k, seed in enumerate((4, 4, 5)))
    for path in a.folder.glob("*.npy"):
        assert path.read_bytes() == (b.folder / path.name).read_bytes()
    assert not torch.equal(a[0, 0].positions, c[0, 0].positions)
    assert a[0, 0].trace != c[0, 0].trace


def test_images_stay_as_they_are_and_progress_is_told(tmp_path: Path) -> None:
    x, told = images(), []
    make(tmp_path / "bank", x, progress=lambda task, done, total, numbers: told.append((done, total)))
    assert torch.equal(x, images())
    assert told == [(k + 1, 15) for k in range(15)]


@pytest.mark.parametrize("name", ["index", "seed", "logits"])
def test_a_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "bank").folder / f"{name}.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.npy has changed"):
        LabelBank.open(tmp_path / "bank")
    LabelBank.open(tmp_path / "bank", verify=False)


@pytest.mark.parametrize("verify", [True, False])
def test_files_that_are_cut_short_or_missing_are_refused(tmp_path: Path, verify: bool) -> None:
    folder = make(tmp_path / "bank").folder
    path = folder / "logits.npy"
    whole = path.read_bytes()
    for cut in (len(whole) - 1, 100, 3, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cut short or damaged"):
            LabelBank.open(folder, verify=verify)
    np.save(path, np.zeros((3, 23, 5), "<f2"))
    with pytest.raises(InputError, match="as the bank's header says"):
        LabelBank.open(folder, verify=verify)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        LabelBank.open(folder, verify=verify)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        LabelBank.open(folder, verify=verify)
    with pytest.raises(InputError, match="no label bank"):
        LabelBank.open(tmp_path)


def test_headers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "bank").folder / "bank.json"
    header = json.loads(path.read_text())
    broken: list[tuple[Any, str]] = [
        ([], "no label bank"),
        ({**header, "format": "x"}, "no label bank"),
        ({**header, "version": 2}, "of version 2"),
        ({**header, "rng": "other"}, "with other"),
        ({**header, "epochs": 4}, "as the bank's header says"),
        ({**header, "classes": "many"}, "damaged"),
        ({k: v for k, v in header.items() if k != "labeller"}, "damaged"),
        ({**header, "augmentation": {**header["augmentation"], "version": 9}}, "version 9 of the draws"),
        ({**header, "augmentation": {**header["augmentation"], "crop": "x"}}, "Unknown crop"),
        ({**header, "files": {}}, "has changed"),
    ]
    for value, words in broken:
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match=words):
            LabelBank.open(tmp_path / "bank")
    path.write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        LabelBank.open(tmp_path / "bank")


def test_labels_that_are_not_finite_leave_nothing_behind(tmp_path: Path) -> None:
    for value, words in ((float("nan"), "not finite"), (1e30, "too large for float16")):
        network = teacher()
        with torch.no_grad():
            network[4].bias[3] = value
        with pytest.raises(InputError, match=words):
            LabelBank.make(tmp_path / "bank", images(), Labeler([network]), SPEC, epochs=1, batch=5)
    assert list(tmp_path.iterdir()) == []
    network[4].bias.data[3] = 1e30
    bank = LabelBank.make(tmp_path / "bank", images(), Labeler([network]), SPEC, epochs=1, batch=5, dtype="float32")
    assert bank[0, 0].logits[:, 3].tolist() == pytest.approx([1e30] * 5, rel=1e-6)


def test_a_stop_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(task: str, done: float, total: float, numbers: dict[str, float]) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "bank", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_and_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "bank")
    before = (tmp_path / "bank" / "logits.npy").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        make(tmp_path / "bank")
    assert (tmp_path / "bank" / "logits.npy").read_bytes() == before
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is there already"):
        make(tmp_path / "file")

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bank_files._ArrayFile, "_write", full)
        with pytest.raises(InputError, match="No space left"):
            make(tmp_path / "full")
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr(bank_files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="has 0 MB free"):
        make(tmp_path / "full")
    assert sorted(os.listdir(tmp_path)) == ["bank", "empty", "file"]


def test_what_cannot_be_is_refused_before_any_labeling(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"epochs": 0}, "at least one epoch"),
        ({"batch": 0}, "at least 1"),
        ({"encoding": "jpeg"}, "Unknown encoding"),
        ({"dtype": "float8"}, "Unknown dtype"),
        ({"top_k": 0, "temperature": 4.0}, "at least one logit"),
        ({"top_k": 3}, "needs the temperature"),
        ({"top_k": 3, "temperature": 0.0}, "a number above 0"),
        ({"top_k": CLASSES + 1, "temperature": 4.0}, "top_k cannot be"),
        ({"top_k": 3, "temperature": 4.0, "dtype": "int8"}, "top_k keeps"),
        ({"teacher": {"network": teacher()}}, "must be JSON"),
        ({"teacher": {"accuracy": float("nan")}}, "must be JSON"),
        ({"x": images()[0]}, r"\(n, c, h, w\)"),
    ]
    for settings, words in wrong:
        with pytest.raises(InputError, match=words):
            make(tmp_path / "bank", **settings)
    assert list(tmp_path.iterdir()) == []


def test_batches_that_are_not_there_are_no_batches(tmp_path: Path) -> None:
    bank = make(tmp_path / "bank")
    for key in ((0, 5), (0, -1), (-1, 0)):
        with pytest.raises(IndexError):
            bank[key]
    with pytest.raises(IndexError):
        bank.dataset(images())[15]
