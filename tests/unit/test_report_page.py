"""The report: how to make a set again, the card, the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from datastill import distill, evaluate, load_distilled, load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.space import normalized
from datastill.evaluation.scores import Arm, Evaluation
from datastill.report import Snapshots, card, write_card_and_preview, write_report, write_run
from datastill.report.pictures import comparison, png, preview
from datastill.report.reproduce import command, evaluate_call, python_call
from datastill.store.artifact import DistilledSet

pytestmark = pytest.mark.usefixtures("short_protocols")

STEPS = 20


def made(
    names: list[str], channels: int = 1, ipc: int = 1, size: int = 8, soft: bool = False, **changes: object
) -> DistilledSet:
    """A distilled set out of thin air."""
    count = len(names) * ipc
    images = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(len(names)).repeat_interleave(ipc)
    manifest = {
        "method": "dm", "family": "distribution", "ipc": ipc, "seed": 0, "labels": "hard",
        "hyper": {"steps": 3, "init": "real"}, "recipe": {"asked": "auto", "published": None},
        "classes": {"names": names, "label_ids": list(range(len(names)))}, "shape": [channels, size, size],
        "space": {"kind": "normalised", "mean": [0.5] * channels, "std": [0.3] * channels, "source": "given"},
        "decoder": {"decoder": "pixels", "clamp": False},
        "data": {"name": "toys", "source": "/toys", "options": {}, "images": 500, "test_images": 100, "notes": []},
        "cost": {"steps": 3, "seconds": 1.5, "skipped_steps": 0}, "notes": [],
    }  # fmt: skip
    space = normalized((0.5,) * channels, (0.3,) * channels)
    y = torch.nn.functional.one_hot(labels, len(names)).float() if soft else labels
    return DistilledSet({"images": images}, y, space, {**manifest, **changes})


def scored(classes: int, gain: float = 0.2, sets: int = 3, networks: int = 2) -> Evaluation:
    """An evaluation out of thin air."""
    noise = torch.linspace(-0.01, 0.01, sets * networks).view(sets, networks).double()
    per_class = torch.full((classes,), 0.5).double()
    per_class[-1] = float("nan")
    return Evaluation(
        distilled=Arm("dm", 0.5 + gain + noise, per_class + gain, [2.0, 1.0, 0.1], 3.0),
        random=Arm("random", 0.5 - noise, per_class, [2.0, 1.5, 0.5], 3.0),
        ceiling=None,
        protocol="dc-v1",
        network={"name": "convnet", "options": {"width": 32}},
        data={"name": "toys", "test_images": 100},
        cost={"seconds": 3.0},
        notes=["a note of the evaluation"],
    )


class Page(HTMLParser):
    """Addresses, tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.images = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += tag == "img"
        wanted = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
        self.addresses += [value or "" for name, value in attrs if name in wanted]

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.addresses
    assert all(a.startswith("data:") for a in page.addresses), "an address leaves the file"
    assert not re.search(r"@import|url\((?!data:)", path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def digits():
    return load_real("digits")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A short run with its snapshots."""
    snapshots = Snapshots()
    folder = tmp_path_factory.mktemp("run")
    one = distill("dm", digits, ipc=1, steps=STEPS, real_batch=8, out=folder / "a", callbacks=[snapshots])
    return one, snapshots, folder / "a"


# Reproduce


def test_the_python_call_makes_the_same_set_again(run):
    one, _, _ = run
    space: dict[str, object] = {}
    exec(python_call(one.manifest), space)
    again = space["distilled"]
    assert torch.equal(again.images, one.images)
    assert again.manifest["hyper"] == one.manifest["hyper"]


def test_the_command_says_every_hyper_parameter_or_nothing(run):
    one, _, _ = run
    words = command(one.manifest)
    assert words.startswith("datastill distill dm --data digits --ipc 1 --seed 0 --network convnet")
    assert f"--steps {STEPS} --real-batch 8" in words
    assert "--no-clamp" in words
    assert command({**one.manifest, "data": {**one.manifest["data"], "source": ""}}) is None
    given = {**one.manifest, "hyper": {"init": "tensor 12ab"}}
    assert command(given) is None
    assert "init was a tensor of yours" in python_call(given)
    own = {**one.manifest, "network": {"name": "Mine", "spec": None}}
    assert command(own) is None
    assert "the network was yours" in python_call(own)
    spaced = {**one.manifest, "data": {**one.manifest["data"], "source": "/my data", "options": {"size": [32, 32]}}}
    assert "--data '/my data' --size 32 " in command(spaced)
    assert 'load_real("/my data", size=[32, 32])' in python_call(spaced)
    assert '["path/of/this/folder", "path/of/set/2", ' in evaluate_call(scored(3).to_dict())


# Card and preview


@pytest.mark.parametrize("soft", [False, True])
def test_preview_and_comparison_stand_side_by_side(soft):
    one = made(["a", "b<script>", "ü" * 60], channels=3, ipc=2, soft=soft)
    left, both = preview(one), comparison(one, (one.pixels, one.targets, one.class_names), ("random", "dm"))
    assert both.width > 1.5 * left.width - 40
    assert both.size == comparison(one, one, ("random", "dm")).size
    assert png(left).startswith(b"\x89PNG")


def test_the_card_says_what_it_is_and_has_sound_front_matter():
    import yaml

    one = made(["cat|dog", "<script>", "line\nbreak"], ipc=400)
    text = card(one, scored(3))
    _, front, body = text.split("---\n", 2)
    record = yaml.safe_load(front)
    assert record["size_categories"] == ["1K<n<10K"]
    assert "dataset-distillation" in record["tags"]
    assert record["license"] == "other"
    for needed in (
        "Beats Random: +20.0", "| dm | 70.0 ±", "| random | 50.0 ±", "load_distilled(", " steps in ", "dc-v1",
        "cat\\|dog, &lt;script&gt;, line break", "license", "mean 0.5 and std 0.3", "500 training",
    ):  # fmt: skip
        assert needed in body
    assert "<script>" not in body
    assert "Results" not in card(one)
    assert card(made(["a", "b"], family="coreset")).count("selected real images") == 1


def test_card_and_preview_lie_beside_the_set_and_a_second_writing_replaces_them(tmp_path):
    one = made(["a", "b"])
    one.manifest.update(network={"name": "convnet"}, student={"protocol": "dc-v1"})
    one.manifest["data"]["fingerprint"] = "0"
    one.manifest["cost"].update(hardware="", device="cpu", versions={"datastill": "0", "torch": "0"})
    one.save(tmp_path)
    write_card_and_preview(one, tmp_path)
    text, picture = write_card_and_preview(one, tmp_path, scored(2))
    assert "Beats Random" in text.read_text()
    with Image.open(picture) as stored:
        assert stored.size == preview(one).size
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md", "manifest.json", "preview.png", "synthetic.safetensors",
    ]  # fmt: skip
    load_distilled(tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="file of that name"):
        write_card_and_preview(one, file)


# The page


def test_a_run_becomes_one_page_with_everything_on_it(run, digits):
    one, snapshots, folder = run
    evaluation = evaluate(one, digits, networks=2, protocol="dsa-quick-v1")
    path = write_run(folder, one, real=digits, evaluation=evaluation, snapshots=snapshots, command="datastill x & y")
    assert path == folder / "report.html"
    for name in ("README.md", "preview.png", "comparison.png", "animation.gif"):
        assert (folder / name).stat().st_size > 0
    page = parsed(path)
    # 12 moments, 10 classes of three images, two charts
    assert page.images == len(snapshots.timeline) + 30 + 2
    for needed in (
        evaluation.verdict, "dm on digits", "nearest real", "image_momentum", "SGD momentum of the pixels",
        "datastill x & y", "load_real(\"digits\")", "dsa-quick-v1", "seeded stratified split", "Peak memory",
    ):  # fmt: skip
        assert needed in page.text
    assert page.text.count("no test images") == 0


def test_class_names_and_commands_are_escaped(tmp_path):
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=1>', "a & b"]
    one = made(hostile, notes=["<b>note</b>"], method="d<i>m")
    path = write_report(tmp_path / "r.html", [one], scored(3), command="</pre><script>1</script>", losses=[3.0, 2.0])
    page = parsed(path)
    assert page.tags.count("script") == 1
    assert "i" not in [t for t in page.tags if t == "b"]
    assert "<b>note</b>" not in path.read_text()
    assert "<script>alert(1)</script>" in page.text
    assert "no test images" in page.text


@pytest.mark.parametrize(("channels", "classes", "ipc"), [(1, 2, 12), (3, 100, 1), (2, 3, 1)])
def test_any_shape_makes_a_page(tmp_path, channels, classes, ipc):
    names = [f"class {i}" for i in range(classes)]
    sets = [made(names, channels, ipc), made(names, channels, ipc, seed=5)]
    page = parsed(write_report(tmp_path, sets, scored(classes, gain=-0.2)))
    assert (tmp_path / "report.html").exists()
    assert "Worse than Random" in page.text
    assert page.images == classes * min(ipc, 10) + 1 + 1
    assert ("The other 80 classes" in page.text) == (classes == 100)
    assert ("and 2 more" in page.text) == (ipc == 12)
    assert "The set from seed 5" in page.text


def test_a_set_that_was_not_scored_says_so_and_real_images_must_fit(tmp_path, digits):
    one = made(["a", "b"])
    assert "Not scored yet" in parsed(write_report(tmp_path / "r.html", one)).text
    with pytest.raises(InputError, match="not what the set was made from"):
        write_report(tmp_path / "s.html", one, real=digits)
    with pytest.raises(InputError, match="at least one"):
        write_report(tmp_path / "s.html", [])
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const seen = [];
window.addEventListener("error", (event) => seen.push("error " + event.message));
window.addEventListener("load", () => {
  const slider = document.querySelector("[data-reel] input");
  const lit = () => [...document.querySelectorAll(".frame")].map((f) => getComputedStyle(f).display != "none");
  const note = () => seen.push(lit().indexOf(true) + " of " + lit().filter(Boolean).length + " "
    + document.querySelector("[data-reel] output").textContent);
  note();
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  note();
  document.querySelector("[data-play]").click();
  setTimeout(() => { note(); document.body.dataset.seen = seen.join("; ");
    document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth; }, 60000);
});
</script></head>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_in_a_browser_the_slider_works_without_an_error_and_a_phone_shows_the_whole_width(run, tmp_path):
    snapshots = run[1]
    names = [f"a rather long name of class {i}" for i in range(10)]
    wide = made(names, channels=3, ipc=12, size=32)
    path = write_report(
        tmp_path / "r.html", wide, scored(10), snapshots=snapshots, losses=[2.0, 1.0], command="x" * 300
    )
    path.write_text(path.read_text(encoding="utf-8").replace("</head>", PROBE, 1), encoding="utf-8")
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=500,900 --virtual-time-budget=90000 --dump-dom"
    )
    found = subprocess.run(
        [str(BROWSER), *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    last = len(snapshots.timeline) - 1
    seen = re.search(r'data-seen="([^"]*)"', found.stdout)
    assert seen, found.stderr[-500:]
    assert seen.group(1) == f"{last} of 1 step {STEPS}; 0 of 1 start; {last} of 1 step {STEPS}"
    assert 'data-wide="false"' in found.stdout


TOY = """
from datastill.report.section import Code, Items, Paragraph, Reading, Section, Shown, Table

class Brightness(Section):
    name, order = "brightness", 35

    def shown(self, reading: Reading) -> Shown:
        rows = [(name, f"{value:.2f}") for name, value in zip(reading.first.class_names, (0.25, 0.5))]
        parts = [Paragraph("<b> of *pixels*"), Table(["class", "mean"], rows), Items(["one", "two"]), Code("x = 1")]
        return Shown("How bright", parts)

SECTION = Brightness()
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """One file in the folder of sections."""
    import sys

    from datastill.report import section, sections

    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "brightness.py").write_text(TOY)
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path / "more")])
    monkeypatch.setattr(section, "_REGISTERED", {})
    yield
    sys.modules.pop("datastill.report.sections.brightness", None)


@pytest.mark.usefixtures("toy")
def test_a_section_is_one_file(tmp_path):
    one = made(["cat", "dog"])
    text = write_report(tmp_path / "r.html", [one], scored(2), losses=[2.0, 1.0]).read_text()
    found = re.findall(r'<section id="(\w+)">', text)
    assert found == ["scores", "images", "brightness", "curves", "made", "again"]
    assert "<h2>How bright</h2>" in text
    assert "<p>&lt;b&gt; of *pixels*</p>" in text
    assert '<th scope="row">dog</th><td class="n">0.50</td>' in text
    words = card(one, scored(2))
    heads = re.findall(r"^## (.*)$", words, re.M)
    assert heads == ["Results", "How bright", "Load it", "How it was made", "Make it again", "Data", "License"]
    for needed in (
        "&lt;b&gt; of \\*pixels\\*",
        "| class | mean |\n| --- | ---: |\n| cat | 0.25 |",
        "- one\n- two",
        "```\nx = 1\n```",
    ):
        assert needed in words


@pytest.mark.usefixtures("toy")
def test_a_section_stands_in_the_terminal_too(tmp_path, capsys):
    folder = tmp_path / "run"
    distill("random", "digits", ipc=1, network="convnet:width=4,depth=1", out=folder)
    assert main(["evaluate", str(folder), "--networks", "1", "--protocol", "dc-v1"]) == 0
    told = capsys.readouterr().out
    assert "How bright\n<b> of *pixels*\n" in told
    assert "0.25" in told


def test_two_sections_of_one_name_are_refused(monkeypatch):
    from datastill.report import section

    class Other(section.Section):
        name, order = "scores", 1

    monkeypatch.setattr(section, "_REGISTERED", {})
    assert [one.name for one in section.sections()][:2] == ["scores", "retrieval"]
    with pytest.raises(InputError, match="another section 'scores'"):
        section.register_section(Other())
