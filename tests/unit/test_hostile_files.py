"""Files of others that lie: refused in one sentence, at once, before what they claim is allocated."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from datastill import distill, load_distilled
from datastill.core.errors import InputError
from datastill.core.rng import undisturbed
from datastill.exchange import read_released
from datastill.models import resolve_network
from datastill.models.factory import MOST_RECORDED, at_most
from datastill.store.artifact import MANIFEST, TENSORS
from datastill.store.files import read_json, read_tensors, write_json
from datastill.store.manifest import Manifest
from datastill.store.opening import open_regular

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and sparse files are those of POSIX")

Change = Callable[[Any], Any]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill("random", "digits", ipc=2).save(tmp_path_factory.mktemp("hostile") / "set")


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "set"))


def lie(folder: Path, change: Change | None = None, tensors: Change | None = None) -> None:
    """Change an artifact as its author can: hashes are made to fit."""
    if tensors is not None:
        found = load_file(folder / TENSORS)
        tensors(found)
        save_file(found, folder / TENSORS)
    record = json.loads((folder / MANIFEST).read_text())
    record["files"] = {TENSORS: hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()}
    if change is not None:
        change(record)
    (folder / MANIFEST).write_text(json.dumps(record))


def test_a_lie_that_changes_nothing_loads(saved: Path) -> None:
    before = load_distilled(saved)
    lie(saved, lambda r: r.update(future={"key": [1, None]}))
    after = load_distilled(saved)
    assert torch.equal(before.images, after.images)
    assert after.manifest["future"] == {"key": [1, None]}
    assert Manifest.of(after.manifest, saved).plain() == after.manifest


@pytest.mark.parametrize("ipc", [-1, 0, 1, 3, 2**40, 2.0, "2", True, None])
def test_images_per_class_are_those_of_the_labels(saved: Path, ipc: Any) -> None:
    lie(saved, lambda r: r.update(ipc=ipc))
    with pytest.raises(InputError, match=r"ipc|images of each"):
        load_distilled(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["space"].update(mean=[float("nan")]), "NaN"),
        (lambda r: r["space"].update(mean=[0.1, 0.1, 0.1], std=[1, 1, 1]), "Space"),
        (lambda r: r["space"].update(std=[0.0]), r"space\.std"),
        (lambda r: r["space"].update(kind="zca"), "Space"),
        (lambda r: r.update(shape=[1, 28, 28]), "do not fit"),
        (lambda r: r.update(shape=[1, 8]), "shape"),
        (lambda r: r["classes"]["names"].append("eleven"), "do not fit"),
        (lambda r: r["classes"].update(names=[*r["classes"]["names"][:9], 9]), r"names\.9"),
        (lambda r: r["classes"].update(names=[]), "names"),
        (lambda r: r["classes"].update(names=["\ud800"] * 10), "character"),
        (lambda r: r.update(seed="0"), "seed"),
        (lambda r: r.update(seed=2**63), "seed"),
        (lambda r: r.update(seed=10**400), "JSON"),
        (lambda r: r["cost"].update(seconds="long"), r"cost\.seconds"),
        (lambda r: r.update(data=[]), "data"),
        (lambda r: r.update(notes="one"), "notes"),
        (lambda r: r.update(hyper=None), "hyper"),
        (lambda r: r["student"].update(lr=-1.0), r"student\.lr"),
        (lambda r: r.update(files={TENSORS: 7}), "files"),
        (lambda r: r.update(decoder={"decoder": "multi_formation", "factor": 1.5}), "factor"),
        (lambda r: r.update(decoder={"decoder": "multi_formation", "factor": 10**9, "mode": "multi"}), "cut into"),
        (lambda r: r.update(decoder={"decoder": "texture", "factor": 3}), "canvas"),
        (lambda r: r.update(decoder=["pixels"]), "decoder"),
    ],
)
def test_a_manifest_that_lies(saved: Path, change: Change, words: str) -> None:
    lie(saved, change)
    with pytest.raises(InputError, match=words):
        load_distilled(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(labels=torch.zeros(20, dtype=torch.int64)), "images of each class"),
        (lambda t: t["labels"].sub_(1), "labels"),
        (lambda t: t["labels"].add_(1), "labels"),
        (lambda t: t["labels"].masked_fill_(t["labels"] == 3, 4), "images of each class"),
        (lambda t: t.update(labels=t["labels"].float()), "labels"),
        (lambda t: t.update(labels=t["labels"].int()), "labels"),
        (lambda t: t.update(labels=t["labels"][:19].clone()), "labels"),
        (lambda t: t.update(labels=torch.tensor(3)), "images of each"),
        (lambda t: t.update(labels=torch.zeros(20, 10, 1)), "labels"),
        (lambda t: t.update(labels=torch.full((20, 10), 5.0)), "probabilities"),
        (lambda t: t.update(labels=torch.full((20, 10), torch.nan)), "NaN"),
        (lambda t: t.update(labels=torch.full((20, 9), 1 / 9)), "9 classes"),
        (lambda t: t.pop("labels"), "labels"),
        (lambda t: t.pop("codes/images"), "codes"),
        (lambda t: t.update({"codes/images": t["codes/images"][:, 0].clone()}), "height"),
        (lambda t: t.update({"codes/images": t["codes/images"][:10].clone()}), "one label for each"),
        (lambda t: t.update({"codes/images": torch.zeros(20, 1, 16, 16)}), "do not fit"),
        *[
            (lambda t, d=d: t.update({"codes/images": t["codes/images"].to(d)}), "codes/images")
            for d in (torch.half, torch.double, torch.int64, torch.bool, torch.bfloat16, torch.float8_e4m3fn)
        ],
        (lambda t: t.update({"codes/images": t["codes/images"].to(torch.complex64)}), "codes/images"),
        (lambda t: t.update({"space/whiten": torch.eye(64)}), "Space"),
        (lambda t: t.update({"extra/selected": torch.full((20,), torch.nan)}), "extra/selected"),
    ],
)
def test_tensors_that_lie(saved: Path, change: Change, words: str) -> None:
    lie(saved, tensors=change)
    with pytest.raises(InputError, match=words):
        load_distilled(saved)


def test_a_decoder_is_believed_as_far_as_the_file_goes(tmp_path: Path) -> None:
    """640 KB at factor 64 would be 2.6 GB of images; at factor 4 it is 10 MB."""
    made = distill("random", "digits", ipc=2)
    made.codes = {"images": torch.zeros(20, 1, 90, 90)}
    made.manifest.update(shape=[1, 90, 90], decoder={"decoder": "multi_formation", "factor": 3})
    folder = made.save(tmp_path / "set")
    assert len(load_distilled(folder).images) == 20 * 9
    lie(folder, lambda r: r.update(decoder={"decoder": "multi_formation", "factor": 45}))
    with pytest.raises(InputError, match="rendered"):
        load_distilled(folder)


def sparse(path: Path, size: int) -> Path:
    """A file of one small block and a hole; as safetensors it claims one tensor of all of it."""
    header = json.dumps({"codes/images": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size // 4 * 4]}})
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + size // 4 * 4)
    return path


def test_sparse_files_are_refused(saved: Path, tmp_path: Path) -> None:
    for name in (TENSORS, MANIFEST):
        folder = Path(shutil.copytree(saved, tmp_path / name))
        (folder / name).unlink()
        sparse(folder / name, 3 << 30)
        with pytest.raises(InputError, match=r"sparse|at most"):
            load_distilled(folder)
    with pytest.raises(InputError, match="sparse"):
        read_released(sparse(tmp_path / "x.pt", 3 << 30))


def test_a_large_file_that_is_there_is_read(tmp_path: Path) -> None:
    """Whatever a file holds may be read, though half of it is a hole."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000), "b": torch.zeros(1000)}, path)
    assert set(read_tensors(path)[0]) == {"a", "b"}


def bomb(path: Path, size: int) -> Path:
    """A .pt file whose tensor is deflated zeros."""
    torch.save(torch.zeros(4), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            with archive.open(name, "w") as file:
                for _ in range(size >> 20 if name.endswith("data/0") else 0):
                    file.write(bytes(1 << 20))
                file.write(data)
    return path


def test_deflated_tensors_are_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unpacks to"):
        read_released(bomb(tmp_path / "x.pt", 300 << 20))


def test_a_bytearray_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    with pytest.raises(InputError, match="bytearray"):
        read_released(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (open_regular, read_json, read_tensors):
        with pytest.raises(InputError, match=r"not a regular file|cannot be read"):
            read(path)


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert read_json(tmp_path / "b.json") == {"a": 1}


def test_pipes_in_the_place_of_the_files_of_a_set(saved: Path) -> None:
    """In another process, with a limit: an open pipe waits without an end."""
    folders = []
    for name in (TENSORS, MANIFEST):
        folders.append(Path(shutil.copytree(saved, saved.with_name(name))))
        (folders[-1] / name).unlink()
        os.mkfifo(folders[-1] / name)
    code = f"from datastill.cli import main; print([main(['inspect', f]) for f in {[*map(str, folders)]}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[2, 2]\n", done.stderr


MEMORY = """
import resource, sys
from datastill import load_distilled
from datastill.core.errors import InputError
from datastill.exchange import read_released
import datastill.decoders.multi_formation, datastill.report, datastill.evaluation
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for read, path in zip((load_distilled, load_distilled, read_released, read_released), sys.argv[1:]):
    try:
        read(path)
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_bounded(saved: Path, tmp_path: Path) -> None:
    """A process with 1 GB to spare refuses all of them."""
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    sparse(saved / TENSORS, 3 << 30)
    made = distill("random", "digits", ipc=2)
    made.codes = {"images": torch.zeros(20, 1, 90, 90)}
    made.manifest.update(shape=[1, 90, 90], decoder={"decoder": "multi_formation", "factor": 45})
    made.save(other)
    lists = tmp_path / "y.pt"
    lists.write_bytes(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    files = [saved, other, bomb(tmp_path / "x.pt", 300 << 20), lists]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, files)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files), done.stdout


ODD: tuple[Any, ...] = (None, True, -1, 0, 2**70, 1.5, 1e308, "x", "\ud800", [], {}, [[1]], {"a": 1}, "../../x", "")


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every field of a JSON value stands; of a list, its first two items."""
    if above:
        yield above
    for key in value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*above, key))


def changed(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    """A copy with another value in one place; without it for Ellipsis."""
    made = copy.deepcopy(value)
    inside = made
    for key in place[:-1]:
        inside = inside[key]
    if odd is ...:
        del inside[place[-1]]
    else:
        inside[place[-1]] = odd
    return made


def attack(path: Path, use: Callable[[], Any], count: int | None) -> None:
    """Swap and drop the fields of a JSON file; whatever uses it refuses in one sentence, or goes on."""
    text = path.read_text()
    record = json.loads(text)
    record.pop("checksum", None)
    if path.name == MANIFEST:
        record["files"].pop(MANIFEST, None)
    every = [(place, odd) for place in places(record) for odd in (*ODD, ...)]
    refused: list[str] = []
    for place, odd in every if count is None else random.Random(0).sample(every, min(count, len(every))):
        path.write_text(json.dumps(changed(record, place, odd)))
        try:
            with undisturbed():  # the parser of the command line draws
                use()
        except InputError as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(f"{path.name}: {place} = {odd!r}") from error
    assert refused or "ceilings" in path.parts, "every field may be anything, and none is measured anew"
    assert not any("\n" in sentence for sentence in refused)
    path.write_text(text)


def other_headers(meta: dict[str, str]) -> list[dict[str, str]]:
    """Headers of tensors with other texts, and where a text is JSON, with other values in it."""
    found = []
    for name, text in meta.items():
        found += [{n: t for n, t in meta.items() if n != name}]
        found += [{**meta, name: odd} for odd in ("", "x", "nan", "-1", "1e999", "[", "{}", "null", "é")]
        with contextlib.suppress(ValueError):
            record = json.loads(text)
            odd = [(place, odd) for place in places(record) for odd in (*ODD, ...)]
            found += [{**meta, name: json.dumps(changed(record, *one))} for one in odd]
    return found


def attack_tensors(path: Path, use: Callable[[], Any], count: int | None) -> None:
    """Other dtypes and shapes, NaN, tensors left out; truncated files and flipped bits."""
    whole, draw = path.read_bytes(), random.Random(0)
    with safe_open(path, "pt") as file:
        tensors, meta = {n: file.get_tensor(n) for n in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    meta.pop("checksum", None)
    ways: list[Change] = [
        *[lambda t, d=d: t.to(d) for d in (torch.double, torch.half, torch.int64, torch.bool, torch.complex64)],
        lambda t: t.float().to(torch.float8_e4m3fn),
        lambda t: t * float("nan"),
        lambda t: t.flatten()[:1].clone(),
        lambda t: t[None].clone(),
        lambda t: torch.zeros(0),
        lambda t: torch.tensor(3.0),
        lambda t: None,
    ]
    files = []
    for name, way in [(name, way) for name in tensors for way in ways]:
        other = {**tensors, name: way(tensors[name])}
        files.append(save({n: t for n, t in other.items() if t is not None}, meta))
    files += [save(tensors, other) for other in other_headers(meta)]
    for _ in range(30):
        files.append(whole[: draw.randrange(len(whole))])
        flipped = bytearray(whole)
        flipped[draw.randrange(min(len(whole), 400))] ^= 1 << draw.randrange(8)
        files.append(bytes(flipped))
    for data in files if count is None else draw.sample(files, min(count, len(files))):
        path.write_bytes(data)
        with contextlib.suppress(InputError), warnings.catch_warnings(), undisturbed():
            warnings.simplefilter("ignore")
            use()
    path.write_bytes(whole)


def of_a_set(folder: Path) -> dict[str, Callable[[], Any]]:
    """The files of a run, and what reads each."""
    from datastill import load_real
    from datastill.cli.inspect_command import main
    from datastill.report import write_run

    real = load_real("digits")
    run = folder / "run"
    settings: dict[str, Any] = {"ipc": 1, "steps": 2, "network": "convnet:width=4,depth=1"}
    distill("dm", real, out=run, **settings)

    def show() -> None:
        one = load_distilled(run)
        main([str(run)])
        write_run(folder / "shown", one)

    def resume() -> None:
        again = Path(shutil.copytree(run, folder / "again"))
        try:
            distill("dm", real, out=again, resume=True, **settings)
        finally:
            shutil.rmtree(again)

    checkpoint = next((run / "checkpoints").glob("*.safetensors")).relative_to(folder)
    return {
        f"run/{MANIFEST}": show,
        f"run/{TENSORS}": lambda: load_distilled(run),
        "run/config.json": resume,
        str(checkpoint): resume,
        "run/losses.safetensors": lambda: write_run(run, load_distilled(run)),
    }


def of_a_teacher(folder: Path) -> dict[str, Callable[[], Any]]:
    """A teacher and a label bank."""
    from datastill import load_real
    from datastill.augment.trace import TraceSpec
    from datastill.labels.bank import LabelBank
    from datastill.labels.labeler import Labeler
    from datastill.models import resolve_network
    from datastill.surrogates.teachers.teacher import Teacher, load_teacher

    real = load_real("digits")
    factory = resolve_network("convnet:width=4,depth=1,norm=batch", channels=1, classes=10, size=(8, 8))
    teacher = Teacher(factory(0), real.space, real.class_names, 1, (8, 8), str(factory))
    teacher.save(folder / "teacher")
    images = real.batch(torch.arange(6)).x
    spec = TraceSpec(crop="padded", flip=True, mix="cutmix")
    LabelBank.make(folder / "bank", images, Labeler([teacher.network]), spec, epochs=1, batch=3)

    def label() -> None:
        bank = LabelBank.open(folder / "bank")
        bank.check(images)
        bank[0, 1].trace.apply(images[bank[0, 1].positions])

    return {
        "teacher/teacher.json": lambda: load_teacher(folder / "teacher").describe(),
        "teacher/teacher.safetensors": lambda: load_teacher(folder / "teacher"),
        "bank/bank.json": label,
    }


def of_experts(folder: Path) -> dict[str, Callable[[], Any]]:
    """A buffer of one expert."""
    from datastill import load_real
    from datastill.cli.experts_command import describe
    from datastill.models import resolve_network
    from datastill.surrogates.experts import open_buffer, train_experts

    real = load_real("digits")
    network = resolve_network("convnet:width=4,depth=1", channels=1, classes=10, size=(8, 8))
    train_experts(real, network, folder / "experts", experts=1, epochs=2)

    def use() -> None:
        buffer = open_buffer(folder / "experts")
        describe(buffer.describe())
        buffer.rows(0, [0, 1])
        buffer.check(network, real)

    return {"experts/meta.json": use, "experts/expert_00000.json": use}


def of_a_comparison(folder: Path) -> dict[str, Callable[[], Any]]:
    """A comparison, its cells in the ledger, and an evaluation."""
    from datastill import compare, evaluate
    from datastill.cli.results_command import main as results
    from datastill.experiments import load_comparison
    from datastill.experiments.page import write_comparison_report

    out, width = folder / "compare", "convnet:width=4,depth=1"
    compare(["random"], "digits", ipc=[1], seeds=1, networks=1, network=width, protocol="dsa-quick-v1", out=out)
    one = distill("random", "digits", ipc=1)
    found = evaluate(one, "digits", networks=1, network=width, protocol="dsa-quick-v1")
    write_json(folder / "evaluation" / "evaluation.json", found.to_dict())
    cell = next((out / "results").glob("*.json")).relative_to(folder)

    def page() -> None:
        comparison = load_comparison(out)
        comparison.save()
        if comparison.rows:
            write_comparison_report(folder / "page.html", comparison)

    def ledger() -> None:
        page()
        results([str(out / "results"), "--markdown"])

    return {
        "compare/plan.json": page,
        str(cell): ledger,
        "evaluation/evaluation.json": lambda: results([str(folder / "evaluation")]),
    }


def of_copies(folder: Path) -> dict[str, Callable[[], Any]]:
    """A comparison that is taken up again and copied into a ledger, the copies there, evaluations that are replaced."""
    from datastill import evaluate
    from datastill.cli.compare_command import main as compare
    from datastill.cli.evaluate_command import main as score
    from datastill.cli.results_command import main as results

    width, ledger = "convnet:width=4,depth=1", folder / "ledger"
    words = ["--methods", "random", "--data", "digits", "--seeds", "2", "--networks", "1", "--network", width]
    words += ["--protocol", "dc-v1", "--quiet", "--ledger", str(ledger)]
    for seed in range(2):
        made = distill("random", "digits", ipc=1, seed=seed, out=folder / f"set-{seed}")
        found = evaluate(made, "digits", networks=1, network=width, protocol="dsa-quick-v1")
        write_json(folder / f"set-{seed}" / "evaluation.json", found.to_dict())
        write_json(ledger / f"set-{seed}.json", found.to_dict())

    def go_on() -> None:
        again = folder / "again"
        shutil.copytree(folder / "compare", again)
        try:
            compare([*words, "--out", str(again)])
        finally:
            shutil.rmtree(again)

    def read() -> None:
        results([str(ledger), "--json"])  # what is damaged is kept out
        results([str(ledger), "--markdown"])
        results(["--check", *(str(path) for path in ledger.glob("*.json"))])

    def replace() -> None:
        """Whether a result lies there is asked before the work."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datastill.evaluation.evaluate", reached)
            with contextlib.suppress(Reached):
                score([str(folder / "set-1"), "--quiet"])

    with undisturbed():
        compare([*words, "--out", str(folder / "compare")])
    cell = next((folder / "compare" / "results").glob("*.json"))
    return {
        "compare/plan.json": go_on,
        str(cell.relative_to(folder)): go_on,
        f"ledger/{cell.name}": read,
        "ledger/set-0.json": read,
        "set-1/evaluation.json": replace,
    }


class Reached(Exception):
    """The work would begin."""


def reached(*_: Any, **__: Any) -> None:
    raise Reached


def of_what_is_prepared(folder: Path) -> dict[str, Callable[[], Any]]:
    """Networks that a run prepared, and what the cache keeps: weights against a bias, a ceiling, a whitening."""
    from datastill import evaluate, load_real
    from datastill.debias import debias

    runs: dict[str, dict[str, Any]] = {
        "herding": {"feature_passes": 1, "network": "convnet:width=4,depth=1"},
        "sre2l": {"squeeze_passes": 1, "steps": 1, "network": "convnet:width=4,depth=1,norm=batch"},
        "dm": {"steps": 1, "real_batch": 4, "network": "convnet:width=4,depth=1", "surrogates": "dfa:count=1,steps=2"},
    }
    uses: dict[str, Callable[[], Any]] = {}
    for method, settings in runs.items():
        run = partial(distill, method, "digits", ipc=1, units=folder / method, out=folder / f"run-{method}", **settings)
        run()
        uses |= {
            str(path.relative_to(folder)): partial(run, resume=True) for path in (folder / method / "prepare").iterdir()
        }
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    real = load_real((x, torch.arange(40) % 2))

    def cached(use: Callable[[], Any]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATASTILL_CACHE", str(folder / "cache"))
            use()

    made, settings = distill("random", real, ipc=1), {"networks": 1, "network": "mlp", "protocol": "dc-v1"}
    ways = {
        "ceilings": lambda: evaluate(made, real, **settings, random=False, ceiling=True),
        "weights": lambda: debias(real, epochs=1, variance=0.1, folder=folder / "cache" / "weights"),
        "zca": lambda: load_real((x, torch.arange(40) % 2), space="zca"),
    }
    for name, use in ways.items():
        cached(use)
        paths = [*(folder / "cache" / name).iterdir()]
        uses |= {str(path.relative_to(folder)): partial(cached, use) for path in paths}
    return uses


KINDS = [of_a_set, of_a_teacher, of_experts, of_a_comparison, of_copies, of_what_is_prepared]


def attack_all(files: dict[str, Callable[[], Any]], folder: Path, count: int | None) -> None:
    for name, use in files.items():
        with undisturbed():
            use()
        (attack if name.endswith(".json") else attack_tensors)(folder / name, use, count)


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_ends_in_a_traceback(kind: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack_all(kind(tmp_path), tmp_path, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_change_of_a_file_ends_in_a_traceback(kind: Change, tmp_path: Path, capsys: Any) -> None:
    attack_all(kind(tmp_path), tmp_path, 60)  # of each file; all of them take several minutes a kind


@pytest.mark.parametrize(
    "spec",
    ["convnet:width=10000000", "convnet:depth=1000000000,pool=none", f"convnet:width={10**20}", "torchvision/vit_h_14"],
)
def test_networks_are_counted_before_they_are_built(spec: str) -> None:
    shapes: dict[str, Any] = {"channels": 3, "classes": 10, "size": (224, 224)}
    with at_most(MOST_RECORDED, "a file"), pytest.raises(InputError, match="a file names a network"):
        resolve_network(spec, **shapes)
    with at_most(MOST_RECORDED, "a file"):
        assert resolve_network("convnet", channels=3, classes=10, size=32).parameters_count == 320_010


def test_a_pipe_in_a_label_bank(tmp_path: Path) -> None:
    files = of_a_teacher(tmp_path)
    for path in sorted((tmp_path / "bank").iterdir()):
        data = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(InputError, match=r"regular file|no label bank"):
            files["bank/bank.json"]()
        path.unlink()
        path.write_bytes(data)
    files["bank/bank.json"]()


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    made = distill("random", "digits", ipc=1)
    made.manifest["seed"] = "zero"
    with pytest.raises(InputError, match="seed"):
        made.save(tmp_path / "set")
    assert not (tmp_path / "set").exists()
