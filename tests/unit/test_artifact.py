"""The artifact: exact, complete, and refused when it is damaged or hostile."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from datastill import distill, load_distilled, load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.overrides import Override, overrides
from datastill.experiments.records import Made
from datastill.report import card
from datastill.report.reproduce import python_call
from datastill.store.artifact import MANIFEST, TENSORS, DistilledSet
from datastill.store.files import digest, write_tensors
from datastill.store.manifest import Manifest
from datastill.store.schema import Record
from datastill.store.sizes import bytes_of_parts


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = distill("random", "digits", ipc=2)
    return made.save(tmp_path / "set")


def edit(folder: Path, change) -> None:
    record = json.loads((folder / MANIFEST).read_text())
    record["files"].pop(MANIFEST, None)  # as a manifest of an older version, which no checksum protects
    change(record)
    (folder / MANIFEST).write_text(json.dumps(record))


def test_space_travels(saved: Path) -> None:
    one = load_distilled(saved)
    assert one.space.kind == "normalized"
    assert one.pixels.min() >= 0
    assert one.pixels.max() <= 1
    assert torch.allclose(one.space.encode(one.space.decode(one.images)), one.images, atol=1e-5)
    assert one.images.min() < -0.5, "stored numbers are not pixels"


def test_zca_set_reloads_with_its_matrix(tmp_path: Path) -> None:
    from datastill import load_real

    real = load_real("digits", space="zca")
    made = distill("random", real, ipc=2, out=tmp_path / "set")
    again = load_distilled(tmp_path / "set")
    assert again.space == real.space
    assert torch.allclose(again.pixels, real.pixels(made.extra["selected"]), atol=1e-3)


def test_as_dataset(saved: Path) -> None:
    data = load_distilled(saved).as_dataset()
    assert len(data) == 20
    x, y = data[3]
    assert x.shape == (1, 8, 8)
    assert int(y) == 1


def test_truncated(saved: Path) -> None:
    path = saved / TENSORS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=TENSORS):
        load_distilled(saved)


def test_changed_bytes(saved: Path) -> None:
    path = saved / TENSORS
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="changed or damaged"):
        load_distilled(saved)


class Bomb:
    """Unpickling this makes a file."""

    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_pickle_is_never_loaded(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (saved / TENSORS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="safetensors"):
        load_distilled(saved)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_manifest_that_points_outside(saved: Path, name: str) -> None:
    edit(saved, lambda r: r["files"].update({name: "0" * 64}))
    with pytest.raises(InputError, match="outside"):
        load_distilled(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(format="other"), "not the manifest"),
        (lambda r: r.update(version=99), "version 99"),
        (lambda r: r.pop("space"), "space"),
        (lambda r: r.pop("files"), "names no files"),
        (lambda r: r.update(decoder={"decoder": "os"}), "decoder"),
        (lambda r: r.update(decoder={"decoder": "../../evil"}), "decoder"),
        (lambda r: r.update(decoder={"decoder": "pixels", "command": "rm"}), "options"),
        (lambda r: r["classes"].update(names=["only one"]), "do not fit"),
    ],
)
def test_manifest_that_lies(saved: Path, change, words: str) -> None:
    edit(saved, change)
    with pytest.raises(InputError, match=words):
        load_distilled(saved)


def test_manifest_that_is_no_json(saved: Path) -> None:
    (saved / MANIFEST).write_text('{"format": "data')
    with pytest.raises(InputError, match="not readable JSON"):
        load_distilled(saved)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no distilled set"):
        load_distilled(tmp_path / "nowhere")


def test_not_finite_images_are_refused(saved: Path) -> None:
    one = load_distilled(saved)
    one.codes["images"][0, 0, 0, 0] = float("nan")
    one.save(saved)
    with pytest.raises(InputError, match="do not fit"):
        load_distilled(saved)


def test_soft_labels_round_trip(saved: Path) -> None:
    one = load_distilled(saved)
    soft = torch.nn.functional.one_hot(one.labels, 10).float() * 0.9 + 0.01
    other = DistilledSet(one.codes, soft, one.space, dict(one.manifest), one.extra)
    other.save(saved)
    again = load_distilled(saved)
    assert torch.equal(again.labels, soft)
    assert torch.equal(again.hard_labels, one.labels)


def test_nothing_half_written_on_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk; in a child process, since the limit cannot be raised again."""
    import subprocess
    import sys

    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from datastill.cli import main\n"
        "import datastill.distillation.distill, datastill.data, datastill.evaluation, datastill.report\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"sys.exit(main(['distill', 'random', '--ipc', '5', '--out', {str(tmp_path / 'run')!r}, '--quiet']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / TENSORS).exists()
    assert not (tmp_path / "run" / MANIFEST).exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_an_output_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match="in the way"):
        distill("random", "digits", ipc=1, out=tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "here"


def test_digest_tells_values_apart() -> None:
    a = torch.arange(4.0)
    assert digest({"a": a}) == digest({"a": a.clone()})
    assert digest({"a": a}) != digest({"a": a.view(2, 2)})
    assert digest([1, 2]) != digest([12])


def test_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match="No space left"):
        write_tensors(path, {"a": torch.ones(2)})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_loading_hashes_the_tensors_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datastill.store import files

    hashed = []
    for name in ("sha256_of", "_checksum_of"):
        before = getattr(files, name)
        monkeypatch.setattr(files, name, lambda path, before=before: hashed.append(path) or before(path))
    load_distilled(saved)
    assert hashed == [saved / TENSORS]


class TestRecord:
    """The manifest in types, beside the mapping that says the same."""

    def test_says_what_the_mapping_says_at_this_moment(self, saved: Path) -> None:
        one = load_distilled(saved)
        assert (one.record.method, one.record.seed, one.record.cost.steps) == ("random", 0, 0)
        assert one.record.plain() == one.manifest
        one.manifest["student"]["lr"] = 0.5
        one.manifest["seed"] = 7
        assert (one.record.student.lr, one.record.seed) == (0.5, 7)
        one.manifest["seed"] = "seven"
        with pytest.raises(InputError, match=r"seed is 'seven'"):
            _ = one.record

    def test_of_a_set_in_memory_may_say_less_than_a_file_must(self, saved: Path, tmp_path: Path) -> None:
        one = load_distilled(saved)
        few = {name: one.manifest[name] for name in ("method", "ipc", "seed", "classes", "labels", "decoder", "shape")}
        small = DistilledSet(one.codes, one.labels, one.space, {**few, "data": {"name": "digits"}})
        assert small.name == one.name
        assert (small.record.network, small.record.student.protocol, small.record.cost.known) == (None, "dc-v1", True)
        with pytest.raises(InputError, match="missing"):
            small.save(tmp_path / "set")

    @pytest.mark.parametrize("missing", ["cost", "family", "data.fingerprint", "cost.versions", "student.protocol"])
    def test_of_a_file_is_complete(self, saved: Path, missing: str) -> None:
        record = json.loads((saved / MANIFEST).read_text())
        section, _, name = missing.rpartition(".")
        del (record[section] if section else record)[name]
        with pytest.raises(InputError, match=rf"m is damaged: {missing} is missing"):
            Manifest.of_file(record, "m")

    def test_names_no_override(self) -> None:
        assert not set(Manifest.model_fields) & set(overrides())
        assert not set(Made.model_fields) & set(overrides())

    def test_of_an_override_is_what_the_override_says_it_is(self, saved: Path, monkeypatch: Any) -> None:
        class NoiseRecord(Record):
            scale: float

        class Noise(Override):
            option = "noise"
            label = "noise"

            @classmethod
            def schema(cls) -> Any:
                return NoiseRecord

            @classmethod
            def told(cls, record: Mapping[str, Any]) -> tuple[str, str]:
                return "Noise of", f"{record['scale']:g}"

            @classmethod
            def text(cls, record: Mapping[str, Any]) -> str:
                return f"{record['scale']:g}"

        monkeypatch.setattr("datastill.store.manifest.overrides", lambda: {"noise": Noise})
        one = load_distilled(saved)
        one.manifest["noise"] = {"scale": 0.5, "later": "kept"}
        assert one.record.changes == [(Noise, {"scale": 0.5, "later": "kept"})]
        assert "noise=" in python_call(one.record)
        assert ", noise of (`0.5`)" in card(one).lower()
        one.save(saved)
        assert load_distilled(saved).record.change("noise") == {"scale": 0.5, "later": "kept"}
        one.manifest["noise"] = {"scale": "loud"}
        with pytest.raises(InputError, match=r"noise\.scale"):
            one.save(saved)


def test_a_set_says_what_it_weighs_part_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tensors by their size, folders beside the set that belong to it by their files; links are not followed."""
    made = distill("random", load_real("digits"), ipc=2, network="convnet:width=4,depth=1")
    assert bytes_of_parts(made) == {"images": 20 * 64 * 4, "labels": 20 * 8}
    made.save(tmp_path / "set")
    for name, size in (("teacher", 1000), ("teacher-1", 10), ("labels", 300), ("prepare", 5000)):
        (tmp_path / "set" / name).mkdir()
        (tmp_path / "set" / name / "file").write_bytes(bytes(size))
    (tmp_path / "set" / "teacher" / "link").symlink_to(tmp_path / "set" / "prepare" / "file")
    told = bytes_of_parts(load_distilled(tmp_path / "set"))
    assert told == {"images": 5120, "labels": 160, "label bank": 300, "teacher": 1000, "teacher-1": 10}
    assert main(["inspect", str(tmp_path / "set")]) == 0
    out = capsys.readouterr().out
    assert "images 5.12 kB, labels 160 bytes" in out
    assert "6.59 kB in all" in out
