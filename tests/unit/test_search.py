"""Architecture search on proxies: the grid, ranks, resuming, the command."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from datastill import load_real
from datastill.apps.search.grid import grid
from datastill.apps.search.ranks import agreement
from datastill.apps.search.run import Search, search
from datastill.apps.search.trainings import EARLY, WHOLE
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.data import RealSet
from datastill.models import resolve_network

pytestmark = pytest.mark.usefixtures("short_protocols")


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def test_the_grid_is_the_published_one() -> None:
    whole = grid("whole", (32, 32))
    assert len(whole) == len(set(whole)) == 720
    assert len(set(grid("mini", (8, 8)))) == 24
    assert grid("whole", (28, 28)) == whole
    some = grid("whole", (32, 32), sample=12, seed=3)
    assert len(set(some)) == 12
    assert some == sorted(some, key=whole.index)
    assert some == grid("whole", (32, 32), sample=12, seed=3) != grid("whole", (32, 32), sample=12, seed=4)


@pytest.mark.parametrize("name", ["convnet:width=32,depth=1,norm=none,activation=sigmoid,pool=none",
                                  "convnet:width=64,depth=3,norm=instance,activation=relu,pool=avg",
                                  "convnet:width=32,depth=2,norm=batch,activation=leaky,pool=max"])  # fmt: skip
def test_networks_are_what_their_names_say(name: str) -> None:
    """Parameters by hand: convolutions, two for each channel of a norm, the linear layer on what pooling leaves."""
    options = dict(part.split("=") for part in name.removeprefix("convnet:").split(","))
    w, d = int(options["width"]), int(options["depth"])
    norm = 0 if options["norm"] == "none" else 2 * w
    side = 32 if options["pool"] == "none" else 32 // 2**d
    wanted = (3 * 9 * w + w + norm) + (d - 1) * (w * 9 * w + w + norm) + w * side * side * 10 + 10
    network = resolve_network(name, channels=3, classes=10, size=(32, 32))(0)
    assert sum(p.numel() for p in network.parameters()) == wanted
    assert name in grid("whole", (32, 32))


def test_heavy_networks_are_left_out_before_the_draw() -> None:
    def heavy(name: str) -> int:
        return resolve_network(name, channels=3, classes=10, size=(32, 32)).macs

    every = grid("mini", (32, 32))
    light = grid("mini", (32, 32), heaviest=1.0)
    assert light == [name for name in every if heavy(name) <= 1e6]
    assert 0 < len(light) < len(every)
    assert set(grid("mini", (32, 32), sample=4, heaviest=1.0)) <= set(light)
    with pytest.raises(InputError, match="0 networks of at most"):
        grid("mini", (32, 32), heaviest=0.001)


def test_grids_that_do_not_fit_are_refused() -> None:
    for kind, size, sample, said in (
        ("whole", (8, 8), 0, "less than a pixel"),
        ("mini", (8, 8), 30, "24 networks, and 30"),
        ("all", (32, 32), 0, "no grid 'all'"),
    ):
        with pytest.raises(InputError, match=said):
            grid(kind, size, sample)


def test_ranks() -> None:
    values = [0.1, 0.4, 0.3, 0.9, 0.5, 0.2]
    same, opposite = agreement(values, values), agreement([-v for v in values], values)
    assert (same.overlap, same.chosen, same.chosen_accuracy) == (1, 3, 0.9)
    assert (same.spearman, same.kendall) == pytest.approx((1, 1))
    assert (opposite.spearman, opposite.kendall, opposite.overlap) == pytest.approx((-1, -1, 0))
    ties = [0.1, 0.4, 0.4, 0.4, 0.5, 0.1]
    assert agreement(ties, values).spearman == pytest.approx(stats.spearmanr(ties, values).statistic)
    assert agreement(ties, values).kendall == pytest.approx(stats.kendalltau(ties, values).statistic)
    constant = agreement([0.1] * 6, values)
    assert math.isnan(constant.spearman)
    assert math.isnan(constant.kendall)
    assert constant.chosen == 0


def settings(**more: Any) -> dict[str, Any]:
    asked = Search(sample=3, ipc=2, passes=3, whole_passes=1)
    return {"asked": asked, "methods": ["random"], "network": "convnet:width=8,depth=2", **more}


def test_a_search_that_was_stopped_goes_on_to_the_same_accuracies(digits: RealSet, tmp_path: Path) -> None:
    whole = search(digits, **settings())

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        search(digits, out=tmp_path, told=stop, **settings())
    assert len(json.loads((tmp_path / "search.json").read_text())["cells"]) == 5
    again = search(digits, out=tmp_path, **settings())
    for proxy in ("random", EARLY, WHOLE):
        assert again.accuracies(proxy) == whole.accuracies(proxy)
    with pytest.raises(InputError, match="holds a run with ipc = 2, not 3"):
        search(digits, out=tmp_path, **settings(asked=Search(sample=3, ipc=3, passes=3, whole_passes=1)))


def test_processes_change_no_accuracy_and_a_proxy_is_made_once(digits: RealSet, tmp_path: Path) -> None:
    """Two processes and one agree; a proxy that is there is read, not made again: another set in its place counts."""
    few = Search(sample=2, ipc=2, passes=3, whole_passes=1, images=300)
    one = search(digits, out=tmp_path / "one", **settings(asked=few))
    two = search(digits, out=tmp_path / "two", workers=2, **settings(asked=few))
    assert {k: c["accuracy"] for k, c in one.cells.items()} == {k: c["accuracy"] for k, c in two.cells.items()}
    other = search(digits, out=tmp_path / "other", seed=1, **settings(asked=few))
    (tmp_path / "three").mkdir()
    (tmp_path / "other" / "proxies").rename(tmp_path / "three" / "proxies")
    three = search(digits, out=tmp_path / "three", **settings(asked=few))
    assert three.accuracies("random") not in (one.accuracies("random"), other.accuracies("random"))
    assert three.accuracies(WHOLE) == one.accuracies(WHOLE)
    with pytest.raises(InputError, match="take fewer"):
        search(digits, **settings(asked=Search(images=10**6)))


def test_the_command_writes_numbers_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["nas", "random", "--data", "digits", "--sample", "3", "--ipc", "1", "--passes", "2", "--whole-passes", "1",
            "--out", str(tmp_path / "n")]  # fmt: skip
    assert main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == json.loads((tmp_path / "n" / "search.json").read_text())["cells"]
    assert "image/svg+xml" in (tmp_path / "n" / "search.html").read_text()
    assert main([*args, "--quiet"]) == 0
    assert "stopping" in capsys.readouterr().out


def test_a_refusal_leaves_a_folder_that_can_be_used(digits: RealSet, tmp_path: Path) -> None:
    out = tmp_path / "n"
    few = Search(sample=2, ipc=10**6, passes=1, whole_passes=1)
    with pytest.raises(InputError, match="fewer than --ipc"):
        search(digits, out=out, **settings(asked=few))
    assert not out.exists()
    search(digits, out=out, **settings(asked=dataclasses.replace(few, ipc=1)))


def test_what_cannot_be_compared_is_refused(digits: RealSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'random' is named twice"):
        search(digits, out=tmp_path / "n", **settings(methods=["random", "random"]))
    with pytest.raises(InputError, match="take two or more"):
        search(digits, out=tmp_path / "n", **settings(asked=Search(sample=1)))
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("cell", ["oops", {"accuracy": 0.5}, {"accuracy": 7.0, "seconds": 1.0}])
def test_an_accuracy_that_was_edited_is_refused(digits: RealSet, tmp_path: Path, cell: Any) -> None:
    few = settings(asked=Search(sample=2, ipc=1, passes=1, whole_passes=1))
    search(digits, out=tmp_path, **few)
    kept = json.loads((tmp_path / "search.json").read_text())
    kept["cells"][next(iter(kept["cells"]))] = cell
    (tmp_path / "search.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match="is damaged"):
        search(digits, out=tmp_path, **few)


METHOD = """
from dataclasses import dataclass
from datastill.core.registry import method
from datastill.methods.random import Random

@method("NAME", paper="", family="coreset")
@dataclass(frozen=True, kw_only=True)
class Mine(Random):
    "Takes random images."
"""


def test_two_files_of_methods_have_a_proxy_each(
    digits: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for path, name in (("a/mine.py", "proxy-one"), ("a-mine.py", "proxy-two")):
        Path(path).write_text(METHOD.replace("NAME", name))
    few = settings(asked=Search(sample=2, ipc=1, passes=1, whole_passes=1), methods=["a/mine.py", "a-mine.py"])
    search(digits, out=Path("n"), **few)
    made = [json.loads((place / "manifest.json").read_text()) for place in Path("n/proxies").iterdir()]
    assert sorted(one["method"] for one in made) == ["proxy-one", "proxy-two"]


@pytest.mark.slow
def test_a_distilled_set_ranks_networks_and_shuffled_labels_do_not(digits: RealSet) -> None:
    """Half of the mini grid: Spearman above .3 for DM (.9 when it was written), and above that of labels at random."""
    shared = {"network": "convnet:width=16,depth=2"}
    found = search(
        digits, ["dm"], Search(sample=12, ipc=10, passes=30, whole_passes=5),
        settings={"dm": {"steps": 50, "real_batch": 32}}, **shared,
    )  # fmt: skip
    shuffled = digits.labels[torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))]
    control = search(
        dataclasses.replace(digits, labels=shuffled), ["dm"], Search(sample=12, ipc=10, passes=30, whole_passes=1),
        settings={"dm": {"steps": 5, "real_batch": 32}}, **shared,
    )  # fmt: skip
    spearman = agreement(control.accuracies("dm"), found.accuracies(WHOLE)).spearman
    assert found.agreement("dm").spearman > 0.3
    assert math.isnan(spearman) or found.agreement("dm").spearman > spearman


def test_learned_labels_are_refused_before_anything_is_distilled(digits: RealSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Sets of kip are trained on with labels that are no classes"):
        search(digits, ["kip"], Search(sample=2, ipc=2), out=tmp_path / "n")
    assert not (tmp_path / "n" / "search.json").exists()
