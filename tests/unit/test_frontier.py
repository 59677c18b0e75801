"""Accuracy against the time of a set: what is compared, and what is made of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from datastill.cli import main
from datastill.core.errors import InputError
from datastill.experiments.frontier import Frontier, Point, _refused, every_method, frontier
from datastill.experiments.sources import real_sets

pytestmark = pytest.mark.usefixtures("short_protocols")


@pytest.mark.slow
def test_a_method_at_two_budgets_beside_its_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "frontier",
        "--data",
        "digits",
        "--methods",
        "dm-fast",
        "--ipc",
        "1",
        "--budgets",
        "1s",
        "2s",
        "--seeds",
        "1",
    ]
    words += ["--networks", "1", "--network", "convnet:width=4,depth=1", "--out", str(tmp_path / "f"), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["lines"]) == {"random", "mosaic", "herding"}
    assert [(p["method"], p["budget"]) for p in told["points"]] == [("dm-fast", 1.0), ("dm-fast", 2.0)]
    assert all(0 < p["mean"] < 1 and p["seconds"] > 0 for p in told["points"])
    assert json.loads((tmp_path / "f" / "frontier.json").read_text()) == told
    for name in ("frontier.md", "frontier.svg", "frontier.png"):
        assert (tmp_path / "f" / name).stat().st_size > 100
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("results/*.json")}
    assert main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "f").rglob("results/*.json")} == before, "finished cells stay"


def test_the_frontier_is_what_no_cheaper_point_reaches_and_published_numbers_have_their_source() -> None:
    points = [
        Point("dm", 10, 10.0, 0.5, math.nan), Point("idc", 10, 12.0, 0.4, math.nan), Point("idc", 60, 60.0, 0.6, 0.01)
    ]  # fmt: skip
    made = Frontier("cifar10", 10, "dc-v1", {"random": 0.3}, points, {"idc": (0.675, "README of IDC")})
    assert [(p.method, p.budget) for p in made.best] == [("dm", 10), ("idc", 60)]
    table = made.table()
    assert "| random | 30.0 | 30.0 | – |" in table
    assert "| idc | 40.0 (12 s) | 60.0 ± 1.0 (60 s) | 67.5 |" in table
    assert "- idc: README of IDC" in table
    assert made.figure().startswith(b"<?xml")


def test_what_stands_for_another_method_is_not_among_all() -> None:
    assert "auto" not in every_method()
    assert {"dm", "stages"} <= set(every_method())
    assert "vl-mtt" in every_method("pairs")
    assert "vl-mtt" not in every_method()


@pytest.mark.parametrize(("names", "budgets", "words"), [(["dm"], [], "budget"), (["random"], [1.0], "takes time")])
def test_nothing_to_compare_is_refused(names: list[str], budgets: list[float], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        frontier(names, "digits", ipc=1, budgets=budgets, out=tmp_path)


def test_what_does_not_suit_is_told_before_anything_is_run_and_is_not_among_all(tmp_path: Path) -> None:
    asked = {"seeds": 1, "networks": 1, "network": "convnet:width=4,depth=1"}
    with pytest.raises(InputError, match="batch norm"):
        frontier(["dm-fast", "sre2l"], "digits", ipc=1, budgets=[1.0], out=tmp_path / "f", **asked)
    assert not (tmp_path / "f").exists()
    left = _refused(every_method(), real_sets("digits"), 1, tmp_path / "f", asked)
    assert {"sre2l", "g-vbsm", "kip"} <= set(left)
    assert not {"dm", "mtt", "stages", "rded", "cim"} & set(left)
    made = Frontier("digits", 1, "dc-v1", {}, [Point("dm", 1, 1.0, 0.5, math.nan)], {}, {"kip": "regression"})
    assert "- kip: regression" in made.table()
    assert made.to_dict()["left_out"] == {"kip": "regression"}


def test_settings_reach_the_baselines_and_the_methods_that_they_are_of(tmp_path: Path) -> None:
    asked = {"seeds": 1, "networks": 1, "network": "convnet:width=4,depth=1", "out": tmp_path / "f"}
    settings = {"dm-fast": {"image_lr": 3.0}, "herding": {"feature_passes": 1}}
    made = frontier(["dm-fast"], "digits", ipc=1, budgets=[1.0], settings=settings, **asked)
    assert [p.method for p in made.points] == ["dm-fast"]
    cells = [json.loads(path.read_text()) for path in (tmp_path / "f").rglob("results/*.json")]
    hyper = {cell["method"]: cell["hyper"] for cell in cells}
    assert hyper["dm-fast"]["image_lr"] == 3.0
    assert hyper["herding"]["feature_passes"] == 1
    with pytest.raises(InputError, match="no method here"):
        frontier(["dm-fast"], "digits", ipc=1, budgets=[1.0], settings={"mtt": {"span": 2}}, **asked)
    with pytest.raises(InputError, match="stands for every method"):
        frontier(["all", "dm"], "digits", ipc=1, budgets=[1.0], **asked)
