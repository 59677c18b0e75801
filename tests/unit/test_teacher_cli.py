"""`datastill teacher`, and a set that is recovered from a teacher and scored, all through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from datastill import load_distilled
from datastill.cli import main
from datastill.surrogates.teachers import load_teacher
from decoupled_data import NETWORK, digits, teacher

SMALL = "convnet:width=8,depth=1,norm=batch"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    done = capsys.readouterr()
    return code, done.out, done.err


def accuracy() -> float | None:
    """Of the teacher of the digits, on the test split."""
    return teacher().test_accuracy(digits(), torch.device("cpu"))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Bad input: exit code 2, one sentence with these words, and no teacher left behind."""

    def check(*args: object, words: tuple[str, ...], out: Path | None = None) -> str:
        target = tmp_path / "refused" if out is None else out
        code, printed, err = run(capsys, "teacher", *args, "--out", target)
        assert code == 2, err
        for word in words:
            assert word in err, err
        assert "Traceback" not in err + printed
        assert not (target / "teacher.json").exists()
        assert not list(tmp_path.rglob("*.tmp"))
        return err

    return check


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A trained network's weights, as a user has them."""
    save_file(teacher().network.state_dict(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


class TestTrain:
    def test_leaves_a_teacher_and_its_record(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "teachers" / "small"
        args = ("--data", "digits", "--network", SMALL, "--passes", 2, "--batch", 32, "--out", out)
        code, printed, err = run(capsys, "teacher", "train", *args, "--json")
        assert code == 0, err
        record = json.loads(printed)
        assert record["network"] == SMALL
        assert record["classes"] == [str(c) for c in range(10)]
        assert record["accuracy"] > 0.3
        assert record["origin"]["squeeze"]["passes"] == 2
        read = load_teacher(out)
        assert read.id == record["id"]
        assert read.test_accuracy(digits(), torch.device("cpu")) == pytest.approx(record["accuracy"])

        code, printed, err = run(capsys, "teacher", "train", *args[:-1], tmp_path / "again", "--json")
        assert code == 0, err
        assert json.loads(printed)["id"] == record["id"], "one seed gives one teacher"

    def test_says_how_to_go_on(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        args = ("--data", "digits", "--network", SMALL, "--passes", 1, "--batch", 16, "--out", tmp_path / "t")
        code, printed, err = run(capsys, "teacher", "train", *args)
        assert code == 0, err
        assert f"distill sre2l --teacher {tmp_path / 't'}" in printed + err
        code, printed, err = run(capsys, "teacher", "train", *args[:-1], tmp_path / "silent", "--quiet")
        assert (code, printed + err) == (0, "")

    def test_refuses_what_cannot_be_one(self, refused) -> None:
        refused("train", "--data", "digits", "--network", "convnet:width=8,depth=1", words=("no batch norm",))
        refused("train", "--data", "digits", "--network", SMALL, "--passes", 0, words=("--passes",))
        refused("train", "--data", "digits", "--network", SMALL, "--lr", "inf", words=("--lr",))


class TestImport:
    def test_takes_weights_as_they_are(self, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
        args = ("teacher", "import", weights, "--data", "digits", "--network", NETWORK, "--out", tmp_path / "t")
        code, printed, err = run(capsys, *args, "--json")
        assert code == 0, err
        record = json.loads(printed)
        mine = teacher()
        assert record["id"] == mine.id
        assert record["accuracy"] == pytest.approx(accuracy())
        assert record["origin"]["weights"] == "mine.safetensors"
        x = digits().batch(torch.arange(4)).x
        assert torch.equal(load_teacher(tmp_path / "t").network(x), mine.network(x))

    def test_classes_in_another_order_are_refused_unless_named(
        self, tmp_path: Path, refused, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = teacher().network.state_dict()
        last = [name for name, t in state.items() if t.shape[:1] == (10,)]
        assert last, "the layer of the logits"
        path = tmp_path / "turned.safetensors"
        save_file({name: t.flip(0).contiguous() if name in last else t for name, t in state.items()}, path)
        args = ("import", path, "--data", "digits", "--network", NETWORK)
        refused(*args, words=("classes are in another order", "--classes"))
        turned = ",".join(str(c) for c in range(9, -1, -1))
        code, printed, err = run(capsys, "teacher", *args, "--classes", turned, "--out", tmp_path / "t", "--json")
        assert code == 0, err
        assert json.loads(printed)["accuracy"] == pytest.approx(accuracy())

    def test_other_faults(self, tmp_path: Path, weights: Path, refused) -> None:
        data = ("--data", "digits")
        refused("import", tmp_path / "absent.pt", *data, "--network", NETWORK, words=("no weights file",))
        refused("import", weights, *data, "--network", SMALL, words=("do not fit",))
        refused("import", weights, *data, "--network", NETWORK, "--pixels", "usual", words=("'usual'", "mean/std"))
        refused("import", weights, *data, "--network", NETWORK, "--classes", "a,b", words=("do not fit",))
        (tmp_path / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        refused("import", tmp_path / "code.pt", *data, "--network", NETWORK, words=("weights alone",))

    @pytest.mark.parametrize("action", ["train", "import"])
    def test_nothing_in_the_way_is_overwritten(self, action: str, tmp_path: Path, weights: Path, refused) -> None:
        folder, file = tmp_path / "full", tmp_path / "file"
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        file.write_text("mine")
        args: tuple[object, ...] = ("--data", "digits", "--network", NETWORK)
        if action == "import":
            args = (weights, *args)
        for out in (folder, file):
            refused(action, *args, words=("is there already", "--out"), out=out)
        assert [p.name for p in folder.iterdir()] == ["notes.txt"]
        assert (folder / "notes.txt").read_text() == file.read_text() == "mine"


class TestInspect:
    def test_tells_and_tries(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        mine = teacher()
        mine.save(tmp_path / "t")
        code, printed, err = run(capsys, "teacher", "inspect", tmp_path / "t")
        assert code == 0, err
        assert mine.id in printed
        assert NETWORK in printed
        code, printed, err = run(capsys, "teacher", "inspect", tmp_path / "t", "--data", "digits", "--json")
        assert code == 0, err
        tried = json.loads(printed)["tried"]
        assert tried["test_accuracy"] == pytest.approx(accuracy())
        assert tried["accuracy"] > 0.9

    def test_refuses_other_folders(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = run(capsys, "teacher", "inspect", tmp_path)
        assert code == 2
        assert "holds no teacher" in err


def test_actions_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = run(capsys, "teacher", "--help")
    assert code == 0
    for action in ("train", "import", "inspect"):
        assert action in printed
        assert run(capsys, "teacher", action, "--help")[0] == 0
    code, _, err = run(capsys, "teacher", "trian")
    assert (code, "'train'" in err) == (2, True)
    code, _, err = run(capsys, "teacher")
    assert (code, "teacher train" in err) == (2, True)


def test_a_set_is_recovered_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: a teacher in a folder, images from it, scores with hard and with its labels."""
    teacher().save(tmp_path / "t")
    out = tmp_path / "run"
    args = ("--teacher", tmp_path / "t", "--data", "digits", "--ipc", 1, "--steps", 4, "--jitter", 1, "--out", out)
    code, _, err = run(capsys, "distill", "sre2l", *args, "--quiet")
    assert code == 0, err
    made = load_distilled(out)
    assert made.images.shape == (10, 1, 8, 8)
    assert made.manifest["network"]["spec"] == NETWORK, "the teacher's"
    assert made.manifest["student"] == {"protocol": "soft-quick-v1", "labels": "teacher"}
    assert load_teacher(out / "teacher").id == teacher().id

    told: dict[str, Any] = {}
    for labels in ("hard", "teacher"):
        code, printed, err = run(capsys, "evaluate", out, "--networks", 1, "--labels", labels, "--json")
        assert code == 0, err
        told[labels] = json.loads(printed)
        assert told[labels]["protocol"] == "soft-quick-v1"
    assert told["hard"]["notes"] != told["teacher"]["notes"]
    assert any("hard" in note for note in told["hard"]["notes"])
    assert any("by the teacher" in note for note in told["teacher"]["notes"])
    assert any("Bytes" in note for note in told["teacher"]["notes"])
    assert told["hard"]["distilled"]["accuracies"] != told["teacher"]["distilled"]["accuracies"]


def test_a_share_that_is_done_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and a sentence, so that a queue of shares and the command that puts them together can be chained."""
    teacher().save(tmp_path / "t")
    out = tmp_path / "run"
    args = ("--teacher", tmp_path / "t", "--data", "digits", "--ipc", 2, "--steps", 2, "--jitter", 1, "--out", out)
    code, printed, err = run(capsys, "distill", "sre2l", *args, "--shard", "0/2")
    assert (code, printed) == (0, ""), err
    assert "Share 0/2 is done: 1 of 2 blocks" in err
    assert not err.startswith("datastill:"), "no error"
    assert not (out / "manifest.json").exists()
    code, printed, _ = run(capsys, "distill", "sre2l", *args, "--resume", "--shard", "1/2", "--json")
    assert (code, json.loads(printed)["share"]) == (0, "1/2")
    assert run(capsys, "distill", "sre2l", *args, "--resume", "--quiet") == (0, "", "")
    assert load_distilled(out).images.shape == (20, 1, 8, 8)


def test_a_teacher_of_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher().save(tmp_path / "t")
    args = ("--teacher", tmp_path / "t", "--data", "digits", "--size", 12, "--steps", 2, "--quiet")
    code, _, err = run(capsys, "distill", "sre2l", *args, "--out", tmp_path / "run")
    assert code == 2
    assert "--size" in err
    assert not (tmp_path / "run").exists(), "the same command, mended, may begin"
    code, _, err = run(capsys, "distill", "sre2l", "--teacher", tmp_path / "absent", "--out", tmp_path / "other")
    assert code == 2
    assert "holds no teacher" in err
    assert not (tmp_path / "other").exists()
