"""`datastill experts` as its users meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from datastill.cli import main
from datastill.store.sizes import bytes_in_words
from datastill.surrogates.experts import open_buffer

NET = "convnet:width=4,depth=1"
TRAIN = ["experts", "train", "--data", "digits", "--network", NET, "--epochs", "2", "--policy", "sgd:lr=0.1"]


def run(args: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts that the command made."""
    out = tmp_path_factory.mktemp("cli") / "experts"
    assert main([*TRAIN, "--experts", "2", "--out", str(out), "--quiet"]) == 0
    return out


def test_train_says_what_it_does_and_goes_on(tmp_path, capsys):
    code, out, err = run([*TRAIN, "--experts", 1, "--out", tmp_path / "e"], capsys)
    assert code == 0, err
    told = " ".join(err.split())
    for part in ("1 experts × 2 epochs on 899 images", "parameters", "[1/1] expert 0: training loss", "inspect"):
        assert part in told
    assert "mean squared step" in " ".join(out.replace("┃", " ").split()) or "squared" in out
    stamp = (tmp_path / "e" / "expert_00000.bin").stat().st_mtime_ns
    code, out, err = run([*TRAIN, "--experts", 2, "--out", tmp_path / "e", "--quiet"], capsys)
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "e" / "expert_00000.bin").stat().st_mtime_ns == stamp
    assert len(open_buffer(tmp_path / "e")) == 2


def test_inspect(folder, capsys):
    code, out, err = run(["experts", "inspect", folder, "--verify"], capsys)
    assert code == 0
    for part in ("2 experts, epochs 0 to 2 of 2", NET, "data digits, 899 images", "lr 0.1", "squared", "kB on disk"):
        assert part in out
    assert "agree with their hashes" in err
    code, out, err = run(["experts", "inspect", folder, "--json"], capsys)
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["experts"] == [0, 1]
    assert record["bytes"] == sum(p.stat().st_size for p in folder.glob("expert_*"))
    assert [row["epoch"] for row in record["by_epoch"]] == [1, 2]
    rows = open_buffer(folder)
    steps = [rows.rows(k, [0, 1]).diff(dim=0).double().square().sum() for k in (0, 1)]
    assert record["by_epoch"][0]["mean_squared_step"] == pytest.approx(float(sum(steps) / 2), rel=1e-5)
    assert record["by_epoch"][0]["max_squared_step"] == pytest.approx(float(max(steps)), rel=1e-5)
    assert record["by_epoch"][0]["test_accuracy"] is None


def test_test_accuracy_where_it_was_asked_for(tmp_path, capsys):
    asked = [*TRAIN, "--experts", 1, "--out", tmp_path / "e", "--test-accuracy", "--stop-after", 1, "--json"]
    code, out, err = run(asked, capsys)
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert 0 < record["by_epoch"][0]["test_accuracy"] < 1
    assert record["epochs"] == 1
    assert "test" in run(["experts", "inspect", tmp_path / "e"], capsys)[1]


def test_an_empty_buffer_is_shown(folder, tmp_path, capsys):
    (tmp_path / "meta.json").write_bytes((folder / "meta.json").read_bytes())
    code, out, _ = run(["experts", "inspect", tmp_path], capsys)
    assert code == 0
    assert "0 experts" in out


def test_import_of_a_released_buffer(folder, tmp_path, capsys):
    buffer = open_buffer(folder)
    shapes = [slot.shape for slot in buffer.layout.parameters]
    sizes = [slot.numel for slot in buffer.layout.parameters]
    experts = [
        [[t.view(s) for t, s in zip(row.split(sizes), shapes, strict=True)] for row in buffer.rows(k, range(3))]
        for k in buffer.experts
    ]
    torch.save([[[t.clone() for t in snap] for snap in expert] for expert in experts], tmp_path / "replay_buffer_0.pt")
    words = ["experts", "import", tmp_path / "replay_buffer_0.pt", "--data", "digits", "--network", NET]
    code, _, err = run([*words, "--out", tmp_path / "none"], capsys)
    assert code == 2
    assert "is not stated" in err
    code, out, err = run([*words, "--space", "measured", "--out", tmp_path / "out"], capsys)
    assert code == 0, err
    assert "2 experts, epochs 0 to 2 of 2" in out
    assert "imported; augmentation not known" in out
    made = open_buffer(tmp_path / "out")
    assert all(torch.equal(made.rows(k, range(3)), buffer.rows(k, range(3))) for k in (0, 1))
    code, out, _ = run([*words, "--space", "raw", "--out", tmp_path / "raw", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["about"]["space"]["kind"] == "raw"
    code, _, err = run([*words, "--space", "raw", "--out", tmp_path / "raw"], capsys)
    assert (code, "is there already" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Say what to do with experts"),
        (["trian"], "Did you mean 'train'?"),
        (["inspect", "nowhere"], "no folder nowhere"),
        (["inspect", "."], "holds no expert trajectories"),
        (["train", "--data", "./nowhere", "--out", "x"], "nowhere"),
        (["train", "--network", "convnett", "--out", "x"], "convnett"),
        (["train", "--policy", "gsm", "--out", "x"], "no policy 'gsm'"),
        (["train", "--experts", "0", "--out", "x"], "experts must be"),
        (["train", "--epochs", "3", "--stop-after", "4", "--out", "x"], "stop_after is 4"),
        (["import", "no.pt", "--data", "digits", "--space", "raw", "--out", "x"], "does not exist"),
        (["import", "no.pt", "--data", "digits", "--space", "odd", "--out", "x"], "no space 'odd'"),
    ],
)
def test_bad_input(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["experts", *args], capsys)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_the_same_folder_with_other_settings(folder, capsys):
    code, _, err = run([*TRAIN, "--out", folder, "--seed", 1], capsys)
    assert code == 2
    assert "its seed is 0, this run's is 1" in err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_and_again(tmp_path, workers):
    out = tmp_path / "e"
    words = [*TRAIN, "--epochs", "400", "--experts", "2", "--workers", str(workers), "--out", str(out), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "datastill", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("partial/expert_*.safetensors")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "0 of 2 units are finished and kept; rerun the same command to go on" in err
    assert "Traceback" not in err
    assert len(open_buffer(out)) == 0
    assert list(out.glob("partial/expert_*.safetensors"))


def test_bytes_in_words():
    assert [bytes_in_words(n) for n in (0, 12, 1234, 5.5e6, 6.5e9, 2e12)] == [
        "0 bytes", "12 bytes", "1.23 kB", "5.5 MB", "6.5 GB", "2,000 GB",
    ]  # fmt: skip
