"""A method and a network in a user's own files, through every application that distills or trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datastill.cli import main
from datastill.core import registry

pytestmark = pytest.mark.usefixtures("short_protocols")

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "add_a_method.md"
NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes, size):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(4))
        self.head = nn.Linear(6 * (size[0] // 4) * (size[1] // 4), classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))
"""
#: Arguments beside the method, --network and --out; where the file of results says of the method.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "backdoor": (["--attack", "doorping", "--every", "2", "--ipc", "3", "--networks", "1"], "backdoor.json"),
    "continual": (["--steps", "2", "--ipc", "2", "--networks", "1"], "continual.json"),
    "nas": (["--sample", "2", "--ipc", "2", "--passes", "2", "--whole-passes", "1", "--images", "200"], "search.json"),
    "attribute": (["--images", "4", "--nodes", "8", "--passes", "1"], "attribution.json"),
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The tutorial's method, and a network that is none of ours, each in a file."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    found = re.search(r"```\{code-block\} python\n:caption: moments.py\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "moments.py").write_text(found[1])
    (tmp_path / "net.py").write_text(NETWORK)
    return str(tmp_path / "moments.py"), f"{tmp_path / 'net.py'}:Net"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_method_and_a_network_in_files_of_ones_own(command: str, theirs: tuple[str, str], tmp_path: Path) -> None:
    method, network = theirs
    options, result = COMMANDS[command]
    args = [command, method, "--data", "digits", "--network", network, *options, "--quiet", "--out"]
    assert main([*args, str(tmp_path / "o"), "--set", f"{method}.steps=4"]) == 0
    told: dict[str, Any] = json.loads((tmp_path / "o" / result).read_text())
    assert "moments" in json.dumps(told["config"])


def test_a_gradient_of_a_network_of_ones_own_leaks(theirs: tuple[str, str], tmp_path: Path) -> None:
    args = ["leak", "--data", "digits", "--network", theirs[1], "--images", "1", "--iterations", "3", "--quiet"]
    assert main([*args, "--out", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "leakage.html").is_file()


def test_settings_are_of_a_method_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (
        ("dsa.steps=4", "'dsa', which is no method here"),
        ("dm.stepz=4", "stepz"),
        ("steps=4", "METHOD.NAME"),
    ):
        assert main(["continual", "dm", "--data", "digits", "--set", given, "--out", str(tmp_path / "o")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
