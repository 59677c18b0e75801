"""The notebooks of the gallery run as they are, and show what they are to show."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill.augment.trace import TraceSpec
from datastill.core.errors import InputError
from datastill.labels.bank import LabelBank
from datastill.labels.labeler import Labeler
from datastill.models import resolve_network
from datastill.report.progress import Progress

pytestmark = pytest.mark.usefixtures("short_protocols")

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page for page in (ROOT / "docs" / "gallery").glob("*.md") if page.stem != "index")
SOURCES = sorted((ROOT / "src").rglob("*.py"))
#: The least number of pictures (figures, and sets that show themselves), and of bars, on a page.
SHOWN = {"own_images": (5, 1), "compare": (1, 1), "debias": (4, 0), "decoupled": (1, 1), "add_a_method": (1, 1)}


def executed(page: Path) -> list[dict[str, Any]]:
    """What the cells of a page gave: data by type, in order; those of `make docs` where nothing has changed since."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    myst_nb = pytest.importorskip("myst_nb.core.read")
    from myst_parser.config.main import MdParserConfig

    built = ROOT / "docs" / "_build" / "jupyter_execute" / "gallery" / f"{page.stem}.ipynb"
    if built.is_file() and built.stat().st_mtime > max(f.stat().st_mtime for f in (page, *SOURCES)):
        notebook = nbformat.read(built, as_version=4)
    else:
        notebook = myst_nb.read_myst_markdown_notebook(page.read_text(encoding="utf-8"), MdParserConfig())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return [out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_runs_and_shows_its_pictures(page: Path) -> None:
    given = executed(page)
    html = "\n".join(data.get("text/html", "") for data in given)
    pictures = sum("image/png" in data for data in given) + html.count("data:image/png;base64,")
    least, bars = SHOWN[page.stem]
    assert pictures >= least
    assert len(re.findall(r"<progress [^>]*value='([\d.]+)' max='\1'>", html)) >= bars, "a bar that is done stays"
    assert not [data for data in given if data.get("text/plain", "").startswith("<Figure") and "image/png" not in data]


def test_every_page_of_the_gallery_is_tested() -> None:
    assert {page.stem for page in PAGES} == set(SHOWN)


def test_progress_shows_steps_units_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    made = datastill.distill("dm", "digits", ipc=1, network="mlp", steps=3, real_batch=8, progress=progress)
    datastill.evaluate(made, "digits", networks=1, protocol="dsa-quick-v1", random=False, progress=progress)
    html = progress._repr_html_()
    assert "value='3' max='3'" in html
    assert "distilling" in html
    assert html.count("<progress") == 2
    progress("<b>", 1, 4)
    assert "&lt;b&gt;" in progress._repr_html_()
    assert "left" in progress._repr_html_()
    assert capsys.readouterr().err == "", "nothing is written where neither a notebook nor a terminal would show it"


def test_kinds_of_plots() -> None:
    real = datastill.load_real("digits")
    bars = real.plot("classes").axes[0]
    assert sorted(patch.get_width() for patch in bars.patches) == sorted(real.counts.tolist())
    made = datastill.distill("random", real, ipc=1, network="mlp")
    found = datastill.evaluate(made, real, networks=1, protocol="dsa-quick-v1")
    lines = found.plot("curves").axes[0].lines
    assert [line.get_label() for line in lines] == ["distilled", "Random"]
    assert all(torch.isfinite(torch.tensor(line.get_ydata())).all() for line in lines)
    with pytest.raises(InputError, match="curves"):
        found.plot("curvs")


def test_a_bank_is_replayed(tmp_path: Path) -> None:
    """In any order, the batches that the bank holds."""
    made = datastill.distill("random", "digits", ipc=2, network="mlp", out=tmp_path / "set")
    with pytest.raises(InputError, match="relabel"):
        made.as_dataloader(labels="bank")
    teacher = resolve_network("mlp", channels=1, classes=10, size=8)(0)
    views = TraceSpec(crop="resized", min_scale=0.5, flip=False, mix="cutmix")
    labels, space = tmp_path / "set" / "labels", made.space
    bank = LabelBank.make(labels, made.images, Labeler([teacher]), views, epochs=2, batch=5, seed=1, space=space)
    made = datastill.load_distilled(tmp_path / "set")
    batches = list(made.as_dataloader(labels="bank", seed=3))
    kept = {x.sum().item(): y for _, x, y in bank.dataset(made.images)}
    assert len(batches) == 2 * bank.batches
    for images, logits in batches:
        assert torch.equal(kept[images.sum().item()], logits)
    with pytest.raises(InputError, match="leave out batch_size"):
        made.as_dataloader(8, labels="bank")


@pytest.mark.slow
def test_the_lightning_example_trains(tmp_path: Path) -> None:
    """In a process of its own: Lightning changes global state. The page's own test passes over a `py` block."""
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    page = (ROOT / "docs" / "reference" / "own_code.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```py\n(import lightning.*?)```", page, re.DOTALL)
    before = "from datastill.core.torchvision import import_torchvision\nimport_torchvision()\n"
    before += "import datastill, torch\nfrom datastill.models import resolve_network\n"
    before += 'made = datastill.distill("random", "digits", ipc=5, network="mlp")\n'
    after = "\nassert trainer.global_step == 5 * 4\n"
    code = before + example + after
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert ended.returncode == 0, ended.stderr[-2000:]
