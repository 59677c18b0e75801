"""`datastill compare` and `datastill results` as their users meet them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from datastill.cli import main
from datastill.cli.options import parse_settings
from datastill.core.errors import InputError
from datastill.store.files import write_json

pytestmark = pytest.mark.usefixtures("short_protocols")

NETWORK = "convnet:width=8,depth=1"
SMALL = ["--data", "digits", "--methods", "dm", "--ipc", "1", "2", "--seeds", "1", "--networks", "1"]
SMALL += ["--network", NETWORK, "--protocol", "dsa-quick-v1", "--set", "dm.steps=3", "dm.real_batch=4"]


def run(args: list[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that the command made."""
    out = tmp_path_factory.mktemp("cli") / "comparison"
    assert main(["compare", *SMALL, "--out", str(out), "--quiet"]) == 0
    return out


def test_a_comparison_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("comparison.json", "table.md", "report.html", "plan.json"):
        assert (folder / name).is_file(), name
    assert len(list((folder / "results").glob("*.json"))) == 4
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    code, out, err = run(["compare", *SMALL, "--out", folder, "--ledger", tmp_path / "ledger"], capsys)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()} == stamps, "it went on"
    for word in ("dm", "random", "dsa-quick-v1", "leads with", "± "):
        assert word in out
    assert {p.name for p in (tmp_path / "ledger").iterdir()} == {p.name for p in (folder / "results").iterdir()}
    code, out, _ = run(["compare", *SMALL, "--out", folder, "--json"], capsys)
    assert code == 0
    assert [row["method"] for row in json.loads(out)["rows"]] == ["random", "dm", "random", "dm"]


def test_the_command_that_it_keeps_makes_it_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    kept = shlex.split(json.loads((folder / "comparison.json").read_text())["command"])
    assert kept[:2] == ["datastill", "compare"]
    code, _, err = run([*kept[1:], "--out", folder, "--quiet"], capsys)
    assert code == 0, err  # the same configuration, or it would have been refused


def test_a_line_for_every_cell_and_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastill.core.wrapped._TOO_LARGE", float("inf"))  # else the rate is lowered ...
    monkeypatch.setattr("datastill.core.guard.FARTHEST", float("inf"))  # ... or the first step ends the run
    args = [*SMALL[:2], "--methods", "dm", "--seeds", "1", "--networks", "1", "--network", NETWORK]
    args += ["--set", "dm.steps=40", "dm.image_lr=1e38", "--out", tmp_path, "--protocol", "dsa-quick-v1"]
    code, out, err = run(["compare", *args], capsys)
    assert code == 3
    assert f"2 cells (random, dm) in {tmp_path}. A finished one is kept" in err
    assert "[1/2] digits, random, ipc 1, seed 0:" in err
    assert re.search(r"\[2/2\] digits, dm, ipc 1, seed 0: failed: .*finite", err)
    assert "1 of 2 units failed" in err
    assert "Traceback" not in err
    assert "random" in out, "what there is is shown"
    assert "1 cell of 2 have no result" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Name the methods"),
        (["--methods", "dmm"], "'dm'"),
        (["--methods", "dm", "--set", "dm.steps"], "METHOD.NAME=VALUE"),
        (["--methods", "dm", "--set", "steps=3"], "METHOD.NAME=VALUE"),
        (["--methods", "dm", "--budget", "soon"], "60s"),
        (["--methods", "dm", "--data", "./nowhere"], "nowhere"),
        (["--methods", "dm", "--sets", "x"], "one of the two"),
        (["--sets", "./nowhere"], "no distilled set"),
        (["--methods", "dm", "--protocol", "rded-v1"], "come without a teacher"),
        (["--methods", "dm", "--set", "dm.stepz=3"], "stepz"),
        (["--methods", "vl-moments"], "vl-moments"),
    ],
)
def test_bad_input(args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["compare", *args, "--out", tmp_path / "out"], capsys)
    assert code == 2
    assert words in err
    assert "cells (" not in err, "told of before it was refused"
    assert "Traceback" not in err


def test_another_configuration_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["compare", *SMALL, "--networks", "2", "--out", folder], capsys)
    assert code == 2
    assert "networks" in err


def test_values_of_set() -> None:
    given = ("dm.steps=60", "dm.image-lr=1e-2", "dm.init=noise", "dm.clamp=True", 'my.py.augment="none"')
    assert parse_settings(given) == {
        "dm": {"steps": 60, "image_lr": 0.01, "init": "noise", "clamp": True},
        "my.py": {"augment": "none"},
    }
    with pytest.raises(InputError, match="METHOD"):
        parse_settings(("dm=3",))


def test_the_sets_of_a_comparison_over_networks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["compare", "--sets", folder, "--on", NETWORK, "mlp", "--networks", "1", "--out", tmp_path]
    code, _, err = run([*args, "--protocol", "dsa-quick-v1"], capsys)
    assert code == 2
    assert "one size" in err
    code, out, err = run([*args, "--ipc", "1", "--protocol", "dsa-quick-v1"], capsys)
    assert code == 0, err
    assert "Kendall" in out
    record = json.loads((tmp_path / "cross.json").read_text())
    assert record["methods"] == ["random", "dm"]
    cell = json.loads(next((folder / "results").glob("*-dm-ipc1-*")).read_text())
    mine = next(c for c in record["cells"] if (c["method"], c["network"]) == ("dm", NETWORK))
    assert mine["accuracies"][0] == cell["accuracies"], "the network of the comparison gives its numbers"
    assert "| dm |" in (tmp_path / "cross.md").read_text()


class TestResults:
    def test_of_a_comparison_and_an_evaluation(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cell = next((folder / "cells").glob("*-dm-ipc1-*"))
        run(["evaluate", cell, "--networks", 1, "--out", tmp_path / "e.json", "--quiet"], capsys)
        for path in (folder / "results").glob("*.json"):
            (tmp_path / "deep").mkdir(exist_ok=True)
            (tmp_path / "deep" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "strange.json").write_text("{not json")
        code, out, err = run(["results", tmp_path], capsys)
        assert code == 0, err
        assert "strange.json" in err
        code, out, _ = run(["results", tmp_path, "--json"], capsys)
        rows = json.loads(out)
        assert len(rows) == 4 + 2, "four of the comparison, the evaluation and its Random"
        mine = [r for r in rows if r["protocol"] == "dsa-quick-v1" and r["method"] == "dm" and r["ipc"] == 1]
        whole = json.loads((folder / "comparison.json").read_text())["rows"]
        assert mine[0]["measured"]["difference"] == next(
            r["difference"] for r in whole if r["method"] == "dm" and r["ipc"] == 1
        )
        assert mine[0]["reported"] is None
        code, out, _ = run(["results", tmp_path, "--markdown"], capsys)
        assert out.startswith("| data | ipc | method |")
        assert len(out.strip().splitlines()) == 2 + 6

    @pytest.mark.parametrize(
        ("change", "remark"),
        [
            ({}, "same protocol"),
            ({"protocol": "dsa-quick-v1"}, "other protocol: dc-v1"),
            ({"network": {"name": "convnet", "options": {"width": 32}}}, "other network"),
            ({"hyper": {"feature_passes": 5}}, "other settings"),
        ],
    )
    def test_beside_the_published_number(
        self, folder: Path, tmp_path: Path, change: dict, remark: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = json.loads(next((folder / "results").glob("*-dm-ipc1-*")).read_text())
        record |= {"method": "herding", "hyper": {"feature_passes": 40}, "protocol": "dc-v1"}
        record["real"]["name"] = "cifar10"
        record["network"] = {"name": "convnet", "options": {"width": 128}}
        write_json(tmp_path / "cell.json", record | change)
        code, out, err = run(["results", tmp_path, "--json"], capsys)
        assert code == 0, err
        (row,) = json.loads(out)
        assert row["reported"]["accuracy"] == 0.215
        assert row["reported"]["source"]
        assert row["remark"] == remark
        _, table, _ = run(["results", tmp_path, "--markdown"], capsys)
        assert "21.5 ± 1.2" in table
        assert remark in table

    def test_bad_input(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = run(["results", tmp_path / "nowhere"], capsys)
        assert (code, "no folder" in err) == (2, True)
        code, _, err = run(["results", tmp_path], capsys)
        assert (code, "no result" in err) == (2, True)
