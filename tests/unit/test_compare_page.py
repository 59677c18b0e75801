"""The page of a comparison: whole, self-contained, escaped, and no wider than a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from datastill.core.errors import InputError
from datastill.experiments import Comparison, compare
from datastill.experiments.figures import limits
from datastill.experiments.page import write_comparison_report
from datastill.experiments.tables import headlines

pytestmark = pytest.mark.usefixtures("short_protocols")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(
        ["dm", "herding"], "digits", ipc=[1, 3], seeds=2, networks=2, network="convnet:width=8,depth=1",
        protocol="dsa-quick-v1", settings={"dm": {"steps": 20, "real_batch": 8}, "herding": {"feature_passes": 1}},
        out=tmp_path_factory.mktemp("page"),
    )  # fmt: skip


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def slower(cells: Mapping[int, Mapping[str, Any]], seconds: float) -> dict[int, dict[str, Any]]:
    """The cells, with a time to distill that no machine changes."""
    return {
        seed: {**cell, "cost": {**cell["cost"], "distillation_seconds": seconds, "prepare_seconds": 0.0}}
        for seed, cell in cells.items()
    }


def made(folder: Path, comparison: Comparison) -> tuple[str, Page]:
    text = write_comparison_report(folder / "report.html", comparison).read_text(encoding="utf-8")
    return text, Page(text)


def test_everything_is_on_one_page_that_needs_nothing_else(done: Comparison, tmp_path: Path) -> None:
    rows = [replace(row, cells=slower(row.cells, 7.0 if row.method == "herding" else 0.5)) for row in done.rows]
    done = replace(done, rows=rows)
    text, page = made(tmp_path, done)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    assert "script" not in page.tags
    assert len(text) < 4_000_000
    # one strip per method at one image per class, one per class and method at three
    assert len(page.images) == 3 + 3 * 10
    assert all(image["alt"] and image["width"] and image["height"] for image in page.images)
    assert page.tags.count("svg") == 2, "over images per class, and over time"
    for row in done.rows:
        assert f"{100 * row.mean:.1f} ± {100 * row.interval:.1f}" in page.text
    for needed in (
        "2 methods and Random on digits", "feature_passes", "SGD momentum of the pixels", "Peak memory", "leads with",
        "datastill compare --data digits", "from datastill import compare", "dsa-quick-v1", "seed 1", "fingerprint",
    ):  # fmt: skip
        assert needed in page.text, needed
    assert page.tags.count("title") == 1 + 2 * 6, "the page's, and one for every point of the charts"


def test_text_is_escaped(done: Comparison, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    cells = {seed: {**cell, "notes": [hostile]} for seed, cell in done.rows[1].cells.items()}
    for cell in cells.values():
        cell["real"] = {**cell["real"], "class_names": [f'"><img src=x onerror={k}>' for k in range(10)]}
    rows = [replace(row, cells=cells) if k == 1 else row for k, row in enumerate(done.rows)]
    text, page = made(tmp_path, replace(done, rows=rows, command=f"datastill {hostile}"))
    assert "script" not in page.tags
    assert "x" not in page.addresses
    assert hostile in page.text
    assert hostile not in text


def test_a_page_without_the_runs_and_without_some_cells(done: Comparison, tmp_path: Path) -> None:
    rows = [row for row in done.rows if row.ipc == 1 and row.method != "random"]
    rows = [replace(row, baseline={}) for row in rows]
    _, page = made(tmp_path, replace(done, rows=rows, folder=None, missing=["digits, random, ipc 1, seed 0"]))
    assert not page.images
    assert "Random has no result" in page.text
    assert "1 cell without a result" in page.text
    with pytest.raises(InputError, match="nothing to report"):
        write_comparison_report(tmp_path, replace(done, rows=[]))


def test_headlines_say_who_leads_and_how_surely(done: Comparison) -> None:
    for (outcome, what, text), (key, rows) in zip(headlines(done), done.groups().items()):
        best = max(rows, key=lambda row: row.mean)
        assert what == f"{key[0]}, ipc {key[1]}"
        assert text.startswith(f"{best.method} leads with {100 * best.mean:.1f}")
        assert (outcome == "win") == (best.difference > best.difference_interval)
    only = replace(done, rows=[row for row in done.rows if row.method == "random"][:1])
    assert headlines(only)[0][0] == "open"


def test_limits_hold_every_interval(done: Comparison) -> None:
    low, high = limits(done.rows)
    assert 0 <= low < high <= 1
    for row in done.rows:
        assert low <= max(0.0, row.mean - row.interval)
        assert min(1.0, row.mean + row.interval) <= high + 1e-9


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const seen = [];
addEventListener("error", (event) => seen.push(event.message));
addEventListener("load", () => { document.body.dataset.seen = seen.join("; ") || "nothing";
  document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
  document.body.dataset.broken = [...document.images].filter((i) => !i.naturalWidth).length; });
</script></head>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_in_a_browser_it_has_no_error_and_fits_a_phone(done: Comparison, tmp_path: Path) -> None:
    path = write_comparison_report(tmp_path / "r.html", done)
    path.write_text(path.read_text(encoding="utf-8").replace("</head>", PROBE, 1), encoding="utf-8")
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=500,900 --virtual-time-budget=5000 --dump-dom"
    )
    found = subprocess.run(
        [str(BROWSER), *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert re.search(r'data-seen="nothing"', found.stdout), found.stderr[-500:]
    assert 'data-wide="false"' in found.stdout
    assert 'data-broken="0"' in found.stdout
