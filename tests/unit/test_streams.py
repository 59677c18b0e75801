"""Output costs no result: encodings that lack a character, streams that are full, broken or closed."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from datastill import distill, load_real
from datastill.cli import main
from datastill.cli.streams import Lenient, lenient_streams

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("streams") / "run"
    distill("random", load_real("digits"), ipc=1, out=out)
    return out


@pytest.mark.parametrize("words", [["inspect"], ["evaluate", "--networks", "1", "--network", "mlp"], ["methods"]])
def test_every_command_speaks_to_an_ascii_terminal(
    made: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main([words[0], *([] if words == ["methods"] else [str(made)]), *words[1:]]) == 0
    said = b"".join(stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    assert {"inspect": b"1x8x8", "evaluate": b"test accuracy", "methods": b"arXiv:2110.04181"}[words[0]] in said


def test_a_command_in_a_c_locale(made: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "datastill", "inspect", str(made)], env={**os.environ, **ASCII}, capture_output=True
    )
    assert (done.returncode, b"1x8x8" in done.stdout) == (0, True), done.stderr


class Full(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Broken(Full):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("out", [Full, Broken, io.StringIO, None])
@pytest.mark.parametrize("err", [Full, Broken, None])
def test_what_was_made_is_there_whatever_becomes_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: type[io.StringIO] | None, err: type[io.StringIO] | None
) -> None:
    monkeypatch.setattr(sys, "stdout", out and out())
    monkeypatch.setattr(sys, "stderr", err and err())
    words = ["--data", "digits", "--ipc", "1", "--steps", "2", "--network", "mlp", "--out", str(tmp_path / "run")]
    assert main(["distill", "dm", *words]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["> /dev/full", "| head -1", ">&-", "2>&-", "2> /dev/full"])
def test_a_shell_that_takes_no_output(made: Path, stop: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is of Linux")
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m datastill inspect {shlex.quote(str(made))} {stop}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_half_a_character_does_not_end_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    with lenient_streams():
        print("a\udce9b")
        print("and on")
    assert "and on" in capsys.readouterr().out


def test_a_full_output_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["methods"]) == 0
    assert "some of the output could not be written" in errors.getvalue()


def test_a_stream_that_failed_is_let_go() -> None:
    stream = Lenient(Full())
    assert (stream.write("a"), stream.write("bc")) == (1, 2)
    assert isinstance(stream.lost, OSError)


def test_control_characters_of_a_name_are_spelled_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name in a set that was downloaded could move the cursor or color the terminal."""
    x = (torch.arange(40 * 64) % 251).view(40, 1, 8, 8).byte()
    real = load_real((x, torch.arange(40) % 2), class_names=("a\nb\x1b[31m", "c"), holdout=0)
    distill("random", real, ipc=1, out=tmp_path / "run")
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert r"a\nb\x1b[31m" in capsys.readouterr().out
    for k in range(8):
        folder = tmp_path / "data" / ("c" if k % 2 else "a\nb\x1b[31m")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[k, 0].numpy()).save(folder / f"{k}.png")
    assert main(["data", str(tmp_path / "data")]) == 0
    assert r"a\nb\x1b[31m" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", [["distill", "random", "--ipc", "1"], ["weigh", "--data", "{photos}"]], ids=" ".join)
def test_a_home_and_a_temporary_folder_below_a_file(tmp_path: Path, words: list[str]) -> None:
    """Nothing that a library would keep in either costs the result."""
    (tmp_path / "file").touch()
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((8, 8), 50 + i).save(tmp_path / "photos" / name / f"{i}.png")
    gone = {"HOME": str(tmp_path / "file" / "home"), "TMPDIR": str(tmp_path / "file" / "tmp")}
    kept = ("DATASTILL_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_DATASETS_CACHE")
    env = {name: value for name, value in os.environ.items() if name not in kept} | gone
    words = [word.format(photos=tmp_path / "photos") for word in words]
    words += ["--debias", "kde:epochs=1,variance=0.1"] if words[0] == "weigh" else []
    command = [sys.executable, "-m", "datastill", *words, "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "matplotlib" not in done.stderr.lower(), "a line of a library's own"
    assert any((tmp_path / "out").glob("*.png"))


def test_no_temporary_folder_at_all_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    assert main(["distill", "random", "--data", "digits", "--ipc", "1", "--out", str(tmp_path / "run")]) == 2
    assert "set TMPDIR to a folder that can be written" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["distill", "--help"]) == 0
