"""What is written where: nothing into data, nothing over what others made, and no change of a byte goes unseen."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from datastill import distill, load_distilled, load_real
from datastill.cli import main
from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Callback
from datastill.data import recorded  # noqa: F401 - before a test puts another reader in the place of its own
from datastill.data.places import places_of
from datastill.distillation.distill import remove_run
from datastill.store.files import atomic_path, read_sealed, read_tensors, write_json, write_sealed, write_tensors
from datastill.store.folders import LOCK, held, remove_made, whole_folder
from datastill.store.outputs import COMPARISON, FRONTIER, NEW, refuse_out, refuse_out_file

SMALL = {"ipc": 1, "network": "convnet:width=8,depth=1", "real_batch": 8, "steps": 4, "seed": 5}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of four pictures each."""
    root = tmp_path / "photos"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 40 * i).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled set of the digits."""
    folder = tmp_path_factory.mktemp("made") / "set"
    distill("random", "digits", ipc=1, out=folder)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file, with a hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Stop(Callback):
    """Stops a run after its second step, which leaves a checkpoint."""

    def after_step(self, context) -> None:
        if context.step == 2:
            signal.raise_signal(signal.SIGINT)


class TestIntoTheData:
    @pytest.mark.parametrize(
        "words",
        [
            ["distill", "random"],
            ["weigh"],
            ["teacher", "train"],
            ["experts", "train"],
            ["compare", "--methods", "random"],
            ["import", "set.pt", "--space", "raw"],
            ["experts", "import", "buffer.pt", "--space", "raw"],
            ["teacher", "import", "weights.safetensors", "--network", "mlp"],
        ],
        ids=lambda words: " ".join(words[:2]),
    )
    def test_every_command_refuses_before_it_works(self, photos, tmp_path, monkeypatch, capsys, words) -> None:
        monkeypatch.setattr("datastill.data.load.read_source", lambda *_: pytest.fail("the data were read"))
        before = tree(tmp_path)
        assert main([*words, "--data", str(photos), "--out", str(photos / "w")]) == 2
        assert "lies inside the data" in capsys.readouterr().err
        assert tree(tmp_path) == before
        assert not (photos / "w").exists()

    @pytest.mark.parametrize("words", [["demo"], ["study", "debias"]], ids=" ".join)
    def test_commands_without_data_of_the_users_see_a_folder_of_classes(self, photos, capsys, words) -> None:
        assert main([*words, "--out", str(photos / "w")]) == 2
        assert "one more class" in capsys.readouterr().err
        assert not (photos / "w").exists()

    def test_evaluate_and_export_know_the_data_of_the_set(self, photos, tmp_path, capsys) -> None:
        distill("random", str(photos), ipc=1, out=tmp_path / "set")
        assert main(["evaluate", str(tmp_path / "set"), "--out", str(photos / "ant" / "e.json")]) == 2
        assert main(["export", str(tmp_path / "set"), str(photos / "w")]) == 2
        assert capsys.readouterr().err.count("lies inside the data") == 2
        assert sorted(p.name for p in photos.iterdir()) == ["ant", "bee"]

    def test_every_way_to_name_the_data(self, photos, tmp_path, monkeypatch) -> None:
        link = tmp_path / "link"
        link.symlink_to(photos)
        monkeypatch.setenv("DATASTILL_DATA", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        for source in (str(photos), photos, "./photos", "link", "Photos", f"{photos}:label=x", "cmnist:base=photos"):
            assert places_of(source) == (photos,), source
        real = load_real("photos", size=8)
        monkeypatch.chdir("/")
        assert places_of(real) == (photos,)
        assert places_of("digits") == places_of("no/such/folder") == places_of(None) == ()
        assert places_of((torch.zeros(2, 1, 4, 4), torch.zeros(2))) == ()

    def test_a_class_that_is_a_link_is_data_too(self, photos, tmp_path) -> None:
        (tmp_path / "wasps").mkdir()
        (photos / "wasp").symlink_to(tmp_path / "wasps")
        with pytest.raises(InputError, match="inside the data"):
            refuse_out(tmp_path / "wasps" / "run", places_of(photos))
        with pytest.raises(InputError, match="holds the data"):
            refuse_out(tmp_path, places_of(photos))

    def test_runs_beside_runs_are_no_classes(self, made, tmp_path) -> None:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "preview.png").touch()
        with pytest.raises(InputError, match="one more class"):
            refuse_out(tmp_path / "three")
        (tmp_path / "one" / "manifest.json").touch()
        refuse_out(tmp_path / "three")


class TestInTheWay:
    def test_demo_leaves_what_it_did_not_make(self, tmp_path, capsys) -> None:
        for mine in ("set-photos", "set-0"):
            out = tmp_path / mine
            (out / mine).mkdir(parents=True)
            (out / mine / "cat.png").write_text("mine")
            assert main(["demo", "--out", str(out)]) == 2
            assert (out / mine / "cat.png").read_text() == "mine"
        assert capsys.readouterr().err.count("datastill:") == 2

    def test_demo_takes_away_the_beginning_of_a_set_that_a_kill_left(self, tmp_path) -> None:
        (tmp_path / "set-0").mkdir()
        (tmp_path / "set-0" / LOCK).touch()
        remove_run(tmp_path / "set-0")
        assert not (tmp_path / "set-0").exists()
        (tmp_path / "set-0").mkdir()
        (tmp_path / "set-0" / ".mine").touch()
        with pytest.raises(InputError, match="did not make"):
            remove_run(tmp_path / "set-0")

    def test_only_what_is_known_is_removed(self, tmp_path) -> None:
        folder = tmp_path / "images-x"
        folder.mkdir()
        (folder / "train.npy").touch()
        (folder / "holiday.png").touch()
        with pytest.raises(InputError, match=r"images-x/holiday\.png, which datastill did not make"):
            remove_made(folder, ("train.npy",))
        assert len(list(folder.iterdir())) == 2
        (folder / "holiday.png").unlink()
        remove_made(folder, ("train.npy",))
        assert not folder.exists()

    def test_a_result_goes_over_a_result_only(self, tmp_path) -> None:
        target = tmp_path / "package.json"
        write_json(target, {"name": "mine"})
        with pytest.raises(InputError, match="no earlier result"):
            refuse_out_file(target, ("distilled",))
        write_json(target, {"distilled": 1})
        refuse_out_file(target, ("distilled",))

    def test_a_place_that_cannot_be_written(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(InputError, match="not yours to write"):
            refuse_out(tmp_path / "run")

    def test_a_file_and_other_folders(self, tmp_path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="a file of that name"):
            refuse_out(tmp_path / "file" / "run")
        for kind in (NEW, COMPARISON):
            with pytest.raises(InputError, match="is not empty and holds no"):
                refuse_out(tmp_path, kind=kind)
        (tmp_path / "frontier.json").write_text('{"points": [')
        with pytest.raises(InputError, match=r"frontier\.json is damaged, or of something else than a frontier"):
            refuse_out(tmp_path, kind=FRONTIER)

    def test_a_manifest_and_a_card_of_others_stay(self, made, tmp_path) -> None:
        one = load_distilled(made)
        (tmp_path / "manifest.json").write_text('{"name": "my app"}')
        with pytest.raises(InputError, match="overwrite nothing"):
            one.save(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]

    def test_an_evaluation_is_printed_whatever_happens_to_its_file(self, made, tmp_path, monkeypatch, capsys) -> None:
        def full(*_: object) -> None:
            raise InputError("Cannot write: no space.")

        monkeypatch.setattr("datastill.store.files.write_json", full)
        words = ["evaluate", str(made), "--networks", "1", "--no-random", "--network", "mlp", "--json"]
        assert main([*words, "--out", str(tmp_path / "e.json")]) == 2
        assert "accuracies" in capsys.readouterr().out


class TestChecksums:
    def test_every_byte_of_tensors_counts(self, tmp_path) -> None:
        path = tmp_path / "t.safetensors"
        write_tensors(
            path, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}, {"z": "1", "k": "2"}
        )
        whole, wanted = path.read_bytes(), read_tensors(path)
        assert wanted[1] == {"z": "1", "k": "2"}
        refused = 0
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            try:
                tensors, _ = read_tensors(path)
            except InputError:
                refused += 1
            else:  # in the spaces that end the header, or in the checksum's own name
                assert all(torch.equal(tensors[name], wanted[0][name]) for name in wanted[0])
        assert refused > len(whole) - 20

    def test_every_byte_of_a_record_counts(self, tmp_path) -> None:
        path = tmp_path / "r.json"
        record = {"rate": 0.1, "steps": [1, 2, 3], "name": "x"}
        write_sealed(path, record)
        whole = path.read_bytes()
        assert read_sealed(path) == record
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            try:
                found = read_sealed(path)
            except InputError:
                continue
            assert {name: found[name] for name in record} == record, i

    def test_equal_tensors_are_equal_bytes(self, tmp_path) -> None:
        for name in "ab":
            write_tensors(tmp_path / name, {"x": torch.ones(3)}, {str(k): "v" for k in range(8)})
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_checkpoint_of_an_older_datastill_is_taken_and_told(self, tmp_path) -> None:
        from safetensors.torch import save_file

        save_file({"x": torch.ones(3)}, tmp_path / "old", metadata={"seconds": "1"})
        assert read_tensors(tmp_path / "old")[1] == {"seconds": "1"}
        with pytest.warns(UserWarning, match="carries no checksum"):
            read_tensors(tmp_path / "old", resuming=True)

    def test_a_resume_takes_no_changed_byte(self, tmp_path) -> None:
        whole = distill("dm", "digits", **SMALL)
        run = tmp_path / "run"
        with pytest.raises(Interrupted):
            distill("dm", "digits", **SMALL, out=run, callbacks=[Stop()])
        files = [run / "config.json", run / "checkpoints" / "block-00000.safetensors"]
        sound = {path: path.read_bytes() for path in files}
        refused = 0
        for path in files:
            data = sound[path]
            for i in range(0, len(data), max(1, len(data) // 9)):
                for other, content in sound.items():
                    other.write_bytes(content)
                path.write_bytes(data[:i] + bytes([data[i] ^ 2]) + data[i + 1 :])
                try:
                    again = distill("dm", "digits", **SMALL, out=run, resume=True)
                except InputError:
                    refused += 1
                else:
                    assert torch.equal(again.images, whole.images), (path, i)
        assert refused > 12

    def test_a_manifest_that_was_changed_is_refused(self, made, tmp_path) -> None:
        one = load_distilled(made)
        one.save(tmp_path / "set")
        path = tmp_path / "set" / "manifest.json"
        record = json.loads(path.read_text())
        record["seed"] = 3
        path.write_text(json.dumps(record))
        with pytest.raises(InputError, match="checksum differs"):
            load_distilled(tmp_path / "set")


class TestHeld:
    def test_one_at_a_time_and_the_other_is_told_who(self, tmp_path) -> None:
        folder = tmp_path / "run"
        with held(folder), pytest.raises(InputError, match=rf"process {os.getpid()} on .* is at work"), held(folder):
            pass
        assert not folder.exists(), "nothing came into it"
        with held(folder, shared=True), held(folder, shared=True), pytest.raises(InputError), held(folder):
            pass

    def test_a_kill_lets_go(self, tmp_path) -> None:
        child = os.fork()
        if not child:
            with held(tmp_path / "run"):
                os._exit(9)
        os.waitpid(child, 0)
        assert (tmp_path / "run" / ".datastill.lock").is_file()
        with held(tmp_path / "run"):
            pass
        assert list((tmp_path / "run").iterdir()) == []

    def test_what_another_is_writing_stays(self, tmp_path) -> None:
        with atomic_path(tmp_path / "x") as one, atomic_path(tmp_path / "x") as two:
            assert one.exists()
            assert two.exists()
        (tmp_path / ".y.abc.datastill.tmp").mkdir()
        with whole_folder(tmp_path / "y"):
            assert len(list(tmp_path.glob(".y.*"))) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_a_polite_kill_and_a_closed_terminal_save(self, tmp_path, number, code) -> None:
        words = [
            "distill",
            "dm",
            "--ipc",
            "1",
            "--network",
            "convnet:width=8,depth=1",
            "--steps",
            "100000",
            "--real-batch",
            "8",
            "--quiet",
        ]
        command = [sys.executable, "-m", "datastill", *words, "--out", str(tmp_path / "run")]

        def heard() -> None:  # also where the suite runs under nohup or in the background
            signal.signal(number, signal.SIG_DFL)

        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
            while not (tmp_path / "run" / "config.json").is_file() and process.poll() is None:
                time.sleep(0.05)
            time.sleep(1.0)
            process.send_signal(number)
            assert process.wait(60) == code
            assert process.stderr is not None
            assert "add --resume to go on" in process.stderr.read()
        assert not list((tmp_path / "run").glob(".*"))


_SMALL_FILES = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from datastill.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_after_the_set_was_made(tmp_path) -> None:
    """What is whole stays, and the message says how the rest is made."""
    words = ["distill", "dm", "--data", "digits", "--ipc", "1", "--steps", "2", "--network", "mlp", "--quiet"]
    words += ["--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_FILES, "60000", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "report.html: " in done.stderr
    assert "The set itself is saved in" in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    before = load_distilled(tmp_path / "run").images
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert load_distilled(tmp_path / "run").images.equal(before)
    assert not list((tmp_path / "run").glob(".*tmp*"))


def test_a_card_that_cannot_be_written_does_not_hide_the_set(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise InputError("Cannot write README.md: No space left on device.")

    monkeypatch.setattr("datastill.distillation.distill.write_card_and_preview", full)
    with pytest.raises(InputError, match="The set itself is saved in"):
        distill("random", load_real("digits"), ipc=1, out=tmp_path / "run")
    assert load_distilled(tmp_path / "run").stored == 10
