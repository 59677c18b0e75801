"""Configuration files: a run is made again from its folder alone; what a file cannot say is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
import torch

from datastill import distill, load_distilled, load_real
from datastill.cli import main
from datastill.cli.config_file import Config
from datastill.cli.distill_command import RunOptions
from datastill.core import registry
from datastill.core.overrides import overrides
from datastill.distillation.runfile import RUN_FILE, as_toml
from datastill.store.artifact import TENSORS
from datastill.store.opening import sha256_of

pytestmark = pytest.mark.usefixtures("short_protocols")

NETWORK = "convnet:width=8,depth=1"
#: What a run is given, and what it is settled to on the way: scaled, chosen, measured, changed, of a recipe.
RUNS = {
    "scaled": ["dm", "--steps", "4", "--real-batch", "8"],
    "chosen": ["--budget", "0.2s"],
    "budget": ["dm", "--budget", "0.2s", "--real-batch", "8"],
    "recipe": ["dc", "--recipe", "paper", "--steps", "2", "--real-batch", "8", "--ipc", "2"],
    "weights": ["dm", "--steps", "2", "--real-batch", "8", "--codes", "dct"],
    "coreset": ["random", "--seed", "-3", "--size", "6", "--space", "raw"],
    "shared": ["mtt", "--steps", "2", "--expert-count", "1", "--expert-epochs", "3", "--max-start", "1"],
}


def made(arguments: list[str], out: Path) -> Path:
    assert main(["distill", *arguments, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_made_again_from_its_folder_alone(name: str, tmp_path: Path) -> None:
    network = [] if name == "chosen" else ["--network", NETWORK]
    first = made([*RUNS[name], *network], tmp_path / "x")
    again = made(["--config", str(first / RUN_FILE)], tmp_path / "y")
    assert sha256_of(again / TENSORS) == sha256_of(first / TENSORS)
    assert (again / RUN_FILE).read_text() == (first / RUN_FILE).read_text()
    one, other = load_distilled(first).manifest, load_distilled(again).manifest
    for key in ("method", "hyper", "data", "network", "student", "space", "decoder", "seed"):
        assert one[key] == other[key], key


def test_a_method_of_the_users_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    source = Path(__file__).parents[2] / "src" / "datastill" / "methods" / "random.py"
    own = tmp_path / "mine.py"
    own.write_text(source.read_text().replace('@method("random"', '@method("of-a-file"'), encoding="utf-8")
    first = made([str(own), "--network", NETWORK], tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    again = made(["--config", "x/run.toml"], tmp_path / "y")
    assert sha256_of(again / TENSORS) == sha256_of(first / TENSORS)


def test_a_network_and_a_teacher_of_the_users_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the folder from which the run is repeated lies another file of the same name, which is not meant."""
    own = "from torch import nn\n\n\ndef Net(channels, classes, size):\n    return nn.Sequential(nn.Flatten(), "
    own += "nn.Linear(channels * size[0] * size[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))\n"
    for folder, width in (("one", "6"), ("other", "7")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets_of_mine.py").write_text(own.replace("WIDTH", width), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "one")
    first = made(["dm", "--steps", "2", "--real-batch", "4", "--network", "nets_of_mine.py:Net"], tmp_path / "x")
    told = tomllib.loads((first / RUN_FILE).read_text())
    assert told["network"] == f"{tmp_path / 'one' / 'nets_of_mine.py'}:Net"
    monkeypatch.chdir(tmp_path / "other")
    again = made(["--config", str(first / RUN_FILE)], tmp_path / "y")
    assert sha256_of(again / TENSORS) == sha256_of(first / TENSORS)


def test_a_generator_is_named_as_from_any_folder_where_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of generators that are no folders stay names, whatever lies beside them."""
    for name in ("model", "tiny", "5"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    placed = overrides()["codes"].placed
    assert placed("ld3m:steps=5,generator=model,lr=0.0") == f"ld3m:steps=5,generator={tmp_path / 'model'},lr=0.0"
    same = f"ld3m:generator={tmp_path / 'model'}"
    for text in ("ld3m:steps=5,generator=tiny", "ld3m:generator=absent", "glad:generator=model", "method", "dct", same):
        assert placed(text) == text


def test_a_file_of_another_method_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "x.toml"
    config.write_text("method = 'dm'\nimage_lr = 2.0\nipc = 2\n")
    out = str(tmp_path / "out")
    assert main(["distill", "random", "--config", str(config), "--out", out]) == 2
    said = capsys.readouterr().err
    assert "is of the method dm, and its option 'image_lr' is none of random" in said
    config.write_text("method = 'dm'\nipc = 2\n")
    assert main(["distill", "random", "--config", str(config), "--out", out, "--network", NETWORK]) == 0
    assert "wins over" in (said := capsys.readouterr().err)
    assert "method" in said


def test_help_tells_of_the_file(capsys: pytest.CaptureFixture) -> None:
    for command in ("distill", "estimate"):
        assert main([command, "--help"]) == 0
        assert "--config run.toml" in capsys.readouterr().out


def test_a_value_that_is_called_like_an_option_is_none() -> None:
    """`--out seed` once took the file's seed away."""
    arguments, lost = Config(Path("run.toml"), {"seed": 3, "ipc": 2}).arguments(
        ["--out", "seed", "--name=ipc"], {"seed", "ipc", "out"}, "dm"
    )
    assert arguments == ["--seed=3", "--ipc=2"]
    assert not lost


def test_the_command_line_wins_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'method = "dm"\nsteps = 7\nreal-batch = 8\nseed = 4\nnetwork = "{NETWORK}"\nclamp = true\n')
    out = tmp_path / "x"
    assert main(["distill", "--config", str(file), "--steps=2", "--seed", "1", "--no-clamp", "--out", str(out)]) == 0
    assert f"The command line wins over {file}: steps, seed, clamp." in capsys.readouterr().err
    record = load_distilled(out).record
    assert (record.hyper["steps"], record.seed, record.hyper["clamp"], record.hyper["real_batch"]) == (2, 1, False, 8)
    assert main(["estimate", f"--config={file}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 3", r"option 'stepz' that there is not\. Did you mean 'steps'"),
        ("config = 'x.toml'", "option 'config' that there is not"),
        ("steps = 3\n[data]\nname = 1", "option 'data' is|data is no value|no value of an option"),
        ("steps = [true]", "no value of an option"),
        ("ipc = 1979-05-27", "no value of an option"),
        ("real-batch = 3\nreal_batch = 4", "twice"),
        ("steps = ", "is no TOML"),
        ("\x00", "is no TOML"),
        ("ipc = " + "9" * 5000, "is no TOML"),
        ("track = ['tensorboard', '--ipc=3']", "looks like another option"),
        ("steps = 0", r"steps \(--steps\) must be .* not 0"),
        ("method = 3", "method is the name of a method"),
        ("method = 'dn'", "There is no method 'dn'"),
    ],
)
def test_what_a_file_cannot_say(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import re

    (tmp_path / "x.toml").write_text(text)
    name = [] if "method" in text else ["dm"]
    code = main(["distill", *name, "--config", str(tmp_path / "x.toml"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert code == 2
    assert re.search(words, said), said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["distill", "dm", "--config", str(tmp_path / "no.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["distill", "--config", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert f"name the file of options in it, such as {tmp_path / 'run.toml'}" in capsys.readouterr().err


def test_what_options_cannot_say_is_not_written(tmp_path: Path) -> None:
    real = load_real("digits").with_weights(torch.rand(899, generator=torch.Generator().manual_seed(0)))
    distill("random", real, ipc=1, network=NETWORK, out=tmp_path / "x")
    assert (tmp_path / "x" / "manifest.json").is_file()
    assert not (tmp_path / "x" / RUN_FILE).exists()


def test_toml_says_what_it_was_given() -> None:
    told = {
        "a": 'q"\\\n\x7f\x01é😀',
        "b": [1, -2.5e-7, "x"],
        "c": True,
        "d": 1e300,
        "e": -(2**62),
        "f_g": None,
        "h": 0.1,
    }
    found = tomllib.loads(as_toml(told))
    assert found == {"f-g" if name == "f_g" else name: value for name, value in {**told, "f_g": "None"}.items()}
    assert "config" in {f.name for f in dataclasses.fields(RunOptions)}
