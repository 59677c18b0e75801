"""The ledger's schema, remarks, what is kept out, the page, and the check of results that are sent."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from datastill.cli import main
from datastill.core.cost import commit, versions
from datastill.core.errors import InputError
from datastill.experiments.cells import FORMAT as CELL
from datastill.experiments.leaderboard import write_leaderboard
from datastill.experiments.ledger import Ledger, _add, read_ledger
from datastill.experiments.submitted import TEMPLATE
from datastill.store.files import write_json

pytestmark = pytest.mark.usefixtures("short_protocols")

RESULTS = Path(__file__).parents[2] / "results"


def sent(**changes: Any) -> dict[str, Any]:
    """A filled-in template."""
    return copy.deepcopy(TEMPLATE) | {"commit": "abc1234", "command": "python train.py --seed 0"} | changes


def a_ledger(folder: Path, count: int = 3) -> Path:
    """`count` results by different methods."""
    for k in range(count):
        accuracies = [[0.3 + 0.4 * k / count, 0.31 + 0.4 * k / count]] * 3
        rows = [[a + 0.001 * s for a in row] for s, row in enumerate(accuracies)]
        record = sent(method=f"m{k:03d}", measured={"accuracies": rows}, cost={"seconds": 10.0 + k, "hardware": "h"})
        write_json(folder / f"r{k:03d}.json", record)
    return folder


def test_a_sent_result_says_reported_measured_cost_bytes_commit(tmp_path: Path) -> None:
    write_json(tmp_path / "mine.json", sent())
    first, second = (entry.to_dict() for entry in read_ledger(tmp_path).entries)
    assert (first["method"], second["method"]) == ("random", "dm")
    assert second["measured"]["mean"] == pytest.approx(sum(map(sum, TEMPLATE["measured"]["accuracies"])) / 6)
    difference = second["measured"]["mean"] - first["measured"]["mean"]
    assert second["measured"]["difference"] == pytest.approx(difference)
    assert second["reported"]["accuracy"] == 0.489
    assert (first["reported"]["accuracy"], first["remark"]) == (0.26, "other protocol: dc-v1"), "Random's, of a recipe"
    assert (second["cost"]["distillation_seconds"], second["cost"]["hardware"]) == (5400.0, "NVIDIA RTX A5000")
    assert (second["bytes"], second["commit"], second["unreliable"]) == (1228800, "abc1234", "")
    assert second["files"] == ["mine.json"]


def a_cell(**changes: Any) -> dict[str, Any]:
    """What `compare` writes, in short."""
    cost = {"steps": 1, "distillation_seconds": 1.0, "prepare_seconds": 0.0, "evaluation_seconds": 1.0}
    cell = {"format": CELL, "method": "dm", "data": "digits", "real": {"name": "digits", "fingerprint": "f"}, "ipc": 1}
    cell |= {"seed": 0, "protocol": "dc-v1", "network": {"name": "convnet"}, "hyper": {}, "cost": cost}
    return cell | {"accuracies": [0.1, 0.2], "per_class": [0.1] * 10} | changes


def test_two_files_of_one_setting_with_other_numbers_are_told_of(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", a_cell())
    write_json(tmp_path / "b.json", a_cell())
    assert read_ledger(tmp_path).damaged == []
    write_json(tmp_path / "c.json", a_cell(accuracies=[0.9, 0.95]))
    write_json(tmp_path / "d.json", a_cell(accuracies=[0.3, 0.2], seed=1))
    found = read_ledger(tmp_path)
    assert [text.split(" for ")[0] for text in found.damaged] == ["c.json: other numbers than a.json"]
    assert [entry.row.mean for entry in found.entries] == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_tried": {"0.1": 0.5}, "lr": None},
        {"real": {"name": "digits", "fingerprint": "f", "shape": "abc", "classes": 10}},
        {"real": {"name": "digits", "fingerprint": "f", "shape": [1, 8, 8], "classes": "x"}},
        {"commit": ["abc"]},
        {"hardware": {"cpu": 1}},
        {"reported": {"x": 1}},
    ],
)
def test_a_record_that_cannot_be_a_row_is_kept_out_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "good.json", a_cell())
    write_json(tmp_path / "bad.json", a_cell(method="dc") | changes)
    found = read_ledger(tmp_path)
    assert [entry.to_dict()["method"] for entry in found.entries] == ["dm"]
    assert "bad.json" in found.damaged[0]


def test_a_result_that_is_cut_short_is_damaged_and_not_another_kind_of_file(tmp_path: Path) -> None:
    a_ledger(tmp_path, 2)
    text = (tmp_path / "r001.json").read_text()
    (tmp_path / "r001.json").write_text(text[: len(text) // 2])
    found = read_ledger(tmp_path)
    assert [entry.row.method for entry in found.entries if entry.row.method != "random"] == ["m000"]
    assert "r001.json" in found.damaged[0]


def test_remarks_make_rows_unreliable_and_edit_nothing(tmp_path: Path) -> None:
    a_ledger(tmp_path / "in")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    remark = {"format": "datastill-remark", "version": 1, "about": ["r001.json"], "unreliable": "a wrong rate"}
    write_json(tmp_path / "in" / "remark.json", remark)
    write_json(tmp_path / "elsewhere" / "remark.json", remark | {"about": ["*"]})
    found = read_ledger(tmp_path)
    assert {e.row.method: e.unreliable for e in found.entries if e.unreliable} == {"m001": "a wrong rate"}
    assert not found.others
    assert all(path.read_bytes() == content for path, content in before.items())
    write_json(tmp_path / "own.json", sent(method="own", unreliable="seeds were chosen"))
    told = {e.row.method: e.unreliable for e in read_ledger(tmp_path).entries}
    assert told["own"] == "seeds were chosen"


def test_a_damaged_file_is_named_and_kept_out_and_the_page_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_ledger(tmp_path / "in")
    write_json(tmp_path / "in" / "bad.json", sent(measured={"accuracies": [[67.3]]}, seeds=[0], random=None))
    write_json(tmp_path / "in" / "typo.json", sent() | {"unrelaible": "x"})
    page = tmp_path / "page.html"
    assert main(["results", str(tmp_path / "in"), "--page", str(page)]) == 0
    err = capsys.readouterr().err
    assert "bad.json is damaged: measured.accuracies.0.0 is 67.3" in err
    assert "no unrelaible. Did you mean 'unreliable'?" in err
    text = page.read_text(encoding="utf-8")
    assert "m002" in text
    assert "Kept out" in text
    assert "measured.accuracies.0.0 is 67.3" in text
    assert str(tmp_path) not in text, "no path of this machine is published"
    assert main(["results", str(tmp_path / "in"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6


def test_where_no_file_is_whole_there_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "in" / "bad.json", sent(ipc=0))
    assert main(["results", str(tmp_path / "in"), "--page", str(tmp_path / "page.html")]) == 2
    assert "ipc is 0" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(InputError, match="no result"):
        write_leaderboard(tmp_path / "page.html", Ledger([], [], []))
    a_ledger(tmp_path / "good", 1)
    assert main(["results", str(tmp_path / "good"), "--page", str(tmp_path / "page.txt")]) == 2
    assert "HTML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": [0, 1]}, "one for each set"),
        ({"seeds": [0, 0, 1]}, "one for each set"),
        ({"measured": {"accuracies": [[0.1], [0.1, 0.2], [0.1]]}}, "as many networks"),
        ({"random": {"accuracies": [[0.1, 0.2]]}}, "as many sets and networks"),
        ({"seed": [0, 1, 2]}, "no seed. Did you mean 'seeds'"),
        ({"bytes": -1}, "bytes is -1"),
        ({"version": 2}, "version is 2"),
        ({"reported": {"accuracy": 0.5}}, "reported.source is missing"),
        ({"cost": {"seconds": 1.0, "hardware": "x", "second": 2}}, r"no cost.second. Did you mean 'seconds'"),
        ({"command": "python /home/me/train.py"}, "command names a folder of your machine"),
        ({"commit": TEMPLATE["commit"]}, "still say what the template says"),
    ],
)
def test_the_check_names_what_is_wrong(
    change: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "mine.json", sent() | change)
    assert main(["results", "--check", str(tmp_path / "mine.json")]) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert re.search(said, told)
    assert "'format'" not in told, "not the file itself"


def test_a_mistyped_key_is_named_before_the_one_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = sent()
    result["seed"] = result.pop("seeds")
    write_json(tmp_path / "mine.json", result)
    assert main(["results", "--check", str(tmp_path / "mine.json")]) == 2
    assert "no seed. Did you mean 'seeds'" in capsys.readouterr().err.replace("\n", " ")


def test_the_check_of_good_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "--template"]) == 0
    template = json.loads(capsys.readouterr().out)
    assert template == TEMPLATE
    write_json(tmp_path / "mine.json", sent())
    cell = next((RESULTS / "fashion_mnist").glob("*.json"))
    assert main(["results", "--check", str(tmp_path / "mine.json"), str(cell)]) == 0
    out = capsys.readouterr().out
    assert "mine.json: a result: dm on cifar10, ipc 10; random on cifar10, ipc 10, protocol dc-v1-dsa" in out
    write_json(tmp_path / "other.json", {"a": 1})
    assert main(["results", "--check", str(tmp_path / "other.json")]) == 2
    assert "holds no result" in capsys.readouterr().err
    assert main(["results", "--check", str(tmp_path / "nowhere.json")]) == 2


def test_the_results_of_the_repository_are_whole() -> None:
    """Nothing in them is damaged; remarks are about files that there are; no path of a machine is shown."""
    found = read_ledger(RESULTS)
    assert not found.damaged
    assert all(entry.bytes and entry.commit for entry in found.entries if entry.row.method != "random")
    marked = [entry for entry in found.entries if entry.unreliable]
    assert {entry.row.method for entry in marked} == {"idc", "idc-i"}
    assert len(marked) == 4


def test_rows_of_the_page_are_those_of_the_ledger(tmp_path: Path) -> None:
    found = read_ledger(RESULTS)
    text = write_leaderboard(tmp_path / "page.html", found).read_text(encoding="utf-8")
    assert text.count("<tr data-data=") == len(found.entries)
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://(?!www\.w3)|@import""", text), "nothing from elsewhere"
    evil = Ledger(found.entries[:1], [], ["<script>alert(1)</script>"])
    assert "<script>alert" not in write_leaderboard(tmp_path / "evil.html", evil).read_text(encoding="utf-8")


def test_the_commit_is_that_of_the_checkout() -> None:
    asked = subprocess.run(
        ["git", "-C", str(RESULTS.parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        pytest.skip("no checkout")
    assert commit().split("-")[0] == asked.stdout[:12]
    assert versions()["commit"] == commit()


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
addEventListener("error", (event) => { document.body.dataset.failed = event.message; });
addEventListener("load", () => {
  const press = (k) => document.querySelectorAll("#board thead button")[k].click();
  const names = () => [...document.querySelectorAll("#board tbody tr:not([hidden]) summary")].map((s) => s.textContent);
  const began = performance.now();
  press(4); const best = names()[0]; press(4); const least = names()[0]; press(0); const first = names()[0];
  form.elements.text.value = "m19 cifar10"; form.dispatchEvent(new Event("input"));
  document.body.dataset.took = performance.now() - began;
  document.body.dataset.found = [best, least, first, names().length].join(";");
  document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
});
</script></head>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_two_hundred_results_are_sorted_and_searched_at_once(tmp_path: Path) -> None:
    path = write_leaderboard(tmp_path / "page.html", read_ledger(a_ledger(tmp_path / "in", 200)))
    assert path.stat().st_size < 1_000_000
    path.write_text(path.read_text(encoding="utf-8").replace("</head>", PROBE, 1), encoding="utf-8")
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=400,900 --virtual-time-budget=5000 --dump-dom"
    )
    found = subprocess.run(
        [str(BROWSER), *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    body = re.search(r"<body[^>]*>", found.stdout)
    assert body, found.stderr[-500:]
    assert "data-failed" not in body[0]
    assert 'data-found="m199;random;m000;10"' in body[0]
    assert 'data-wide="false"' in body[0]
    took = re.search(r'data-took="([\d.]+)"', body[0])
    assert took
    assert float(took[1]) < 3000, "milliseconds for three sorts and a search; about 150 on a slow machine"


def test_sets_of_one_evaluation_may_share_a_seed() -> None:
    """Made from noise and from real images, say: neither is left out."""
    cells: dict[int, dict[str, Any]] = {}
    damaged: list[str] = []
    for accuracy in (0.1, 0.2, 0.3):
        _add(cells, {"seed": 0, "file": "evaluation.json", "accuracies": [accuracy]}, damaged)
    assert sorted(cell["accuracies"][0] for cell in cells.values()) == [0.1, 0.2, 0.3]
    assert not damaged
