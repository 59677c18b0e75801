"""What the documentation says is so: its code runs, its links resolve, its lists are whole, its messages are real."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model  # noqa: F401 - a page imports it, which draws from Python's own generator
from PIL import Image

import datastill
from datastill.cli import COMMANDS, main
from datastill.cli.options import DataOptions
from datastill.core import registry
from datastill.core.context import Context
from datastill.core.recipes import recipes
from datastill.evaluation.protocols import Protocol
from datastill.models.resolve import ZOO
from datastill.training.soft import SOFT_RECIPES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
METHODS = sorted(name for name, info in registry.methods().items() if not isinstance(info.cls(), registry.Chooses))
HEADINGS = ["What it matches", "Cost", "How ours differs, and why", "Published numbers", "Ours"]

#: How code of the documentation is made short enough to be tested, everywhere alike. Only sizes change, and each
#: rule must be of use. What runs is otherwise what stands on the page.
SHORTER = [
    (r"datastill demo", "datastill demo --sets 2 --networks 1 --steps 3 --quiet"),
    (r"(datastill distill (?:dm|moments\.py))(.*?)(?: --steps \d+)?(?= --out)", r"\1 --steps 3 --real-batch 8\2"),
    (r"(datastill (?:estimate|distill) dm (?!--steps).*)", r"\1 --steps 3 --real-batch 8"),
    (r"(datastill distill --data photos --ipc \d+)", r"\1 --budget 1s"),
    (r"distill\(\"auto\", real, ipc=(\d+)", r'distill("auto", real, ipc=\1, budget=1.0'),
    (r"(datastill evaluate .*)", r"\1 --networks 1"),
    (r"(datastill export .*)", r"\1 --networks 1"),
    (r"(distill\(\"(?:dm|moments\.py)\", real, ipc=\d+)(, steps=\d+)?", r"\1, steps=3, real_batch=8"),
    (r"(evaluate\(distilled, real)", r"\1, networks=2"),
]


@dataclasses.dataclass(frozen=True)
class Code:
    """A fenced block: language, text, and the file that its caption names."""

    language: str
    text: str
    caption: str = ""


def fences(page: Path) -> list[Code]:
    """The code blocks of a page: plain fences and MyST's `code-block` directives."""
    found = re.findall(r"^(`{3,})([^\n`]*)\n(.*?)^\1 *$", page.read_text(encoding="utf-8"), re.S | re.M)
    blocks = []
    for _, info, text in found:
        directive = re.fullmatch(r"\{code-block\}\s*(\w+)", info.strip())
        if directive is None:
            blocks.append(Code(info.strip(), text))
            continue
        options = re.match(r"((?::\w+:.*\n)*)\n*", text)
        caption = re.search(r":caption: *(.*)", options.group(1))
        blocks.append(Code(directive.group(1), text[options.end() :], caption.group(1).strip() if caption else ""))
    return blocks


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^(`{3,})[^\n]*\n.*?^\1 *$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", page.read_text(encoding="utf-8"), re.S | re.M)
    assert found, f"{page} has no heading {heading!r}"
    return found.group(2)


def rows(text: str) -> list[list[str]]:
    """The cells of the Markdown tables in a text, headers and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [i for i, row in enumerate(cells) if all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def page_of(method: str) -> Path:
    return DOCS / "methods" / f"{method.replace('-', '_')}.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runnable(page: Path) -> list[Code]:
    return [block for block in fences(page) if block.language in ("python", "bash")]


def folder_of_photos(root: Path, per_class: int, side: int = 8) -> Path:
    """Three classes of small color images."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(("apple", "pear", "plum")):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 120, (side, side, 3)) + 60 * np.eye(3, dtype=int)[c]
            Image.fromarray(pixels.astype(np.uint8)).save(root / "photos" / name / f"{i:03}.png")
    return root / "photos"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and no trace of the methods and modules that are made in it."""
    known, modules = dict(registry._REGISTRY), set(sys.modules)
    for toy in ("moments", "brightest"):  # a reader may have put them into the library, as the page says
        registry._REGISTRY.pop(toy, None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    registry._REGISTRY.clear()
    registry._REGISTRY.update(known)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def shortened(text: str, used: set[int]) -> str:
    for k, (pattern, replacement) in enumerate(SHORTER):
        text, count = re.subn(pattern, replacement, text)
        if count:
            used.add(k)
    return text


#: Pages whose code takes more than four seconds.
LONG = {
    "docs/backdoor.md",
    "docs/continual.md",
    "docs/debias.md",
    "docs/reference/codes.md",
    "docs/reference/compare.md",
    "docs/tutorials/your_own_images.md",
}


def marked(page: Path) -> Any:
    """The page, among the slow tests where it is long."""
    return pytest.param(page, marks=pytest.mark.slow) if name_of(page) in LONG else page


@pytest.mark.usefixtures("short_protocols_of_class")
class TestCode:
    """Every `python` and `bash` block runs, in the page's order; `sh` and `text` are not for running."""

    @pytest.mark.parametrize("page", [marked(p) for p in PAGES if runnable(p)], ids=name_of)
    def test_runs(
        self, page: Path, workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blocks = runnable(page)
        writes_photos = any("photos" in block.text and ".save(" in block.text for block in blocks)
        if not writes_photos:
            folder_of_photos(workplace, per_class=20)
        namespace: dict[str, object] = {"__name__": "docs"}
        for block in blocks:
            if block.caption.startswith("test_"):
                self.run_test_file(block, workplace, monkeypatch)
            elif block.caption:
                Path(block.caption).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                exec(compile(shortened(block.text, set()), name_of(page), "exec"), namespace)
            else:
                for line in block.text.splitlines():
                    words = shlex.split(shortened(line.split(" #")[0].rstrip(), set()), comments=True)
                    assert words[0] == "datastill", f"{line!r}: bash blocks hold commands of datastill alone"
                    assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"

    @staticmethod
    def run_test_file(block: Code, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A test file of a page, with the page's method file where the library would have it."""
        stem = block.caption.removeprefix("test_").removesuffix(".py")
        registry._REGISTRY.pop(stem, None)
        name = f"datastill.methods.{stem}"
        spec = importlib.util.spec_from_file_location(name, workplace / f"{stem}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        namespace: dict[str, object] = {}
        exec(compile(block.text, block.caption, "exec"), namespace)
        tests = [made for name, made in namespace.items() if name.startswith("test_")]
        assert tests
        for test in tests:
            test()  # type: ignore[operator]

    def test_every_rule_that_shortens_is_used(self) -> None:
        used: set[int] = set()
        for page in PAGES:
            for block in runnable(page):
                shortened(block.text, used)
        assert used == set(range(len(SHORTER)))

    def test_the_readme_is_six_lines_of_python(self) -> None:
        (block,) = [b for b in fences(ROOT / "README.md") if b.language == "python"]
        assert len([line for line in block.text.splitlines() if line.strip()]) <= 6

    @pytest.mark.parametrize("name", ["moments", "brightest"])
    def test_a_method_of_the_page_keeps_the_contract(self, name: str, workplace: Path) -> None:
        """The file of the page alone, as a fresh reader saves it: what the contract tests ask of every method."""
        page = DOCS / "tutorials" / "add_a_method.md"
        (block,) = [b for b in fences(page) if b.caption == f"{name}.py"]
        Path(f"{name}.py").write_text(block.text, encoding="utf-8")
        code = (
            "import sys; from datastill.core.registry import get_method; "
            f"get_method('{name}.py'); print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=workplace)
        assert done.stdout.strip() == "False", "the file imports torch when it is listed"
        info = registry.get_method(f"{name}.py")
        fields = [f.name for f in dataclasses.fields(info.cls)]
        assert info.name == name
        assert info.cost
        assert info.summary.endswith(".")
        assert all(registry.field_docs(info.cls).get(field) for field in fields)
        small = {k: v for k, v in {"steps": 3, "real_batch": 8}.items() if k in fields}
        real = datastill.load_real("digits")
        sets = [
            datastill.distill(f"{name}.py", real, ipc=2, seed=seed, network="convnet:width=8,depth=1", **small)
            for seed in (0, 0, 1)
        ]
        assert sets[0].images.shape == (20, 1, 8, 8)
        assert sets[0].images.isfinite().all()
        assert (sets[0].images == sets[1].images).all()
        assert (sets[0].images != sets[2].images).any()


#: Networks that do not fit: a fixed number of outputs, an argument that the data cannot give.
MISFITS = {
    "ten.py": "def Net(size): return nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 10))",
    "needs.py": "def Net(channels, hidden): return nn.Sequential(nn.Flatten(), nn.Linear(9, hidden))",
}


class TestMessages:
    """The messages in the tutorial's table are what the command says, to the letter ("…" stands for anything)."""

    def test_are_real(self, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = section(DOCS / "tutorials" / "your_own_images.md", "When something goes wrong")
        told = [html.unescape(row[0]) for row in rows(text)]
        real = [self.said(capsys, workplace, trigger) for trigger in self.triggers()]
        assert len(told) == len(real)
        for sentence in told:
            pattern = ".*".join(re.escape(part) for part in sentence.split("…"))
            assert [said for said in real if re.fullmatch(pattern, said, re.S)], f"{sentence!r} is not among {real}"

    @staticmethod
    def said(capsys: pytest.CaptureFixture[str], here: Path, words: str) -> str:
        capsys.readouterr()
        assert main(shlex.split(words)) == 2, words
        last = capsys.readouterr().err.split("datastill: ")[-1].strip()
        return last.replace(f"{here}/", "")

    def triggers(self) -> Iterator[str]:
        """Commands that fail, each after what makes it fail."""
        estimate = "estimate dm --data photos"
        here = Path()
        good = folder_of_photos(here, per_class=5)
        shutil.copytree(good, "kept")
        first, second = good / "apple" / "000.png", good / "apple" / "001.png"
        whole = second.read_bytes()
        yield "estimate dm --data ./photoz"
        (here / "flat").mkdir()
        for i in range(3):
            shutil.copy(first, here / "flat" / f"{i}.png")
        yield "estimate dm --data flat"
        shutil.rmtree(good / "plum")
        (good / "plum").mkdir()
        yield estimate
        shutil.rmtree(good / "plum")
        shutil.copytree("kept/plum", good / "plum")
        second.write_bytes(whole[: len(whole) * 2 // 3])
        yield estimate
        Image.new("RGB", (40, 30)).save(second)
        Image.new("RGB", (32, 32)).save(first)
        yield estimate
        shutil.copy("kept/apple/000.png", first)
        Image.new("L", (8, 8)).save(second)
        yield estimate
        Image.new("RGBA", (8, 8)).save(second)
        yield estimate
        second.write_bytes(whole)
        for other in ("pear", "plum"):
            shutil.rmtree(good / other)
        yield estimate
        for other in ("pear", "plum"):
            shutil.copytree(f"kept/{other}", good / other)
        yield f"{estimate} --ipc 9"
        yield "estimate dmm --data photos"
        yield f"{estimate} --network convnett"
        for file, text in MISFITS.items():
            Path(file).write_text(f"from torch import nn\n\n{text}\n", encoding="utf-8")
            yield f"{estimate} --network {file}:Net"
        (here / "runs" / "photos").mkdir(parents=True)
        (here / "runs" / "photos" / "config.json").write_text("{}", encoding="utf-8")
        yield "distill random --data photos --out runs/photos"
        shutil.rmtree(here / "runs")
        assert main(["distill", "random", "--data", "photos", "--out", "runs/photos", "--quiet"]) == 0
        yield "distill random --data photos --out runs/photos"


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_resolve(self, page: Path) -> None:
        links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))
        for link in links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page}: {link}"
            if anchor:
                assert anchor in anchors(target), f"{page}: {link}"

    def test_every_page_is_in_a_table_of_contents(self) -> None:
        listed = {DOCS / "index.md"}
        for page in PAGES[2:]:
            for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
                for entry in tree.splitlines():
                    if entry and not entry.startswith(":"):
                        listed |= set(page.parent.glob(f"{entry}.md"))
        assert listed == set(PAGES[2:])

    def test_nothing_is_left_to_do(self) -> None:
        for page in PAGES:
            assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b", page.read_text(encoding="utf-8")), page


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them, and its explicit targets."""
    text = prose(page)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\((\w+)\)=$", text, re.M))


@pytest.mark.parametrize("name", METHODS)
class TestMethodPages:
    def test_has_the_form(self, name: str) -> None:
        page = page_of(name)
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {name}: ")
        assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
        assert "$$" in section(page, "What it matches"), "no equation"
        assert "](../results.md)" in section(page, "Ours")

    def test_published_numbers_are_those_of_the_recipes(self, name: str) -> None:
        known = {}
        for recipe in recipes(name):
            if recipe.accuracy is not None:
                number = f"{100 * recipe.accuracy:.1f}" + (f" ± {100 * recipe.std:.1f}" if recipe.std else "")
                known[recipe.dataset, recipe.ipc] = number
        text = section(page_of(name), "Published numbers")
        header = next((line for line in text.splitlines() if line.startswith("| images per class")), "")
        columns = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header.strip("|").split("|")][1:]
        told = {(column, int(row[0])): cell for row in rows(text) for column, cell in zip(columns, row[1:]) if cell}
        assert told == {(re.sub(r"[^a-z0-9]", "", data), ipc): number for (data, ipc), number in known.items()}
        if known:
            assert "Source" in text


class TestReference:
    def test_protocols(self) -> None:
        told = {
            row[0].strip("`"): row[1:]
            for row in rows((DOCS / "reference" / "protocols.md").read_text(encoding="utf-8"))
        }
        known = datastill.protocols()
        assert told.keys() == known.keys()
        for name, protocol in known.items():
            if protocol.soft:
                recipe = SOFT_RECIPES[protocol.soft]
                rate = f"{protocol.lr:g}, {recipe.curve}"
                assert told[name][:3] == [str(protocol.passes), rate, str(protocol.batch)]
                assert told[name][3].lower() == recipe.optimizer
                continue
            if type(protocol) is not Protocol:
                continue  # trains by no schedule of SGD: see test_protocols_are_as_published
            drops = protocol.drops or ((protocol.drop_after, 0.1),)
            after = f"× {drops[0][1]:g} after {' and '.join(str(p + 1) for p, _ in drops)}"
            assert told[name][:3] == [str(protocol.passes), after, str(protocol.batch)]
            assert (told[name][3] == "none") == (protocol.augment == "none")

    def test_networks(self) -> None:
        text = (DOCS / "reference" / "networks.md").read_text(encoding="utf-8")
        for name, kind in ZOO.items():
            assert f"`{name}`" in text
            for p in inspect.signature(kind).parameters.values():
                assert p.kind is not p.KEYWORD_ONLY or f"`{p.name}`" in text, f"{name} {p.name}"

    def test_data_options(self) -> None:
        text = (DOCS / "reference" / "data.md").read_text(encoding="utf-8")
        for name in list(inspect.signature(datastill.load_real).parameters)[1:]:
            assert f"{name}=" in text, name
        for field in dataclasses.fields(DataOptions):
            assert f"--{field.name.replace('_', '-')}" in text, field.name

    def test_artifact(self, tmp_path: Path) -> None:
        """Every file that a run leaves and every key of its manifest."""
        text = (DOCS / "reference" / "artifact.md").read_text(encoding="utf-8")
        steps = ["--steps", "3", "--real-batch", "8", "--ipc", "1", "--quiet"]
        assert main(["distill", "dm", *steps, "--out", str(tmp_path / "dm")]) == 0
        assert main(["evaluate", str(tmp_path / "dm"), "--networks", "1", "--quiet"]) == 0
        datastill.distill("herding", "digits", ipc=1, feature_passes=1, out=tmp_path / "herding")
        for key in datastill.load_distilled(tmp_path / "dm").manifest:
            assert f"`{key}`" in text, key
        for run in ("dm", "herding"):
            for path in (tmp_path / run).iterdir():
                assert f"`{path.name}{'/' * path.is_dir()}`" in text, path.name

    def test_what_an_objective_sees(self) -> None:
        text = (DOCS / "tutorials" / "add_a_method.md").read_text(encoding="utf-8")
        known = {f.name for f in dataclasses.fields(Context)} | set(dir(Context))
        assert set(re.findall(r"\bcontext\.(\w+)", text.replace("core.context", ""))) <= known

    def test_architecture_names_what_exists(self) -> None:
        source = ROOT / "src" / "datastill"
        page = DOCS / "architecture.md"
        paths = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", prose(page))
        assert len(paths) > 20
        for path in paths:
            assert (source / path).exists() or (ROOT / path).exists(), path
        tree = next(b.text for b in fences(page) if b.text.startswith("src/datastill/"))
        listed = re.findall(r"^  (\S+)", tree, re.M)
        for name in listed:
            assert (source / name).exists(), name

    def test_commands_that_are_named_exist(self) -> None:
        for page in PAGES:
            for command in re.findall(r"`datastill ([a-z]+)", page.read_text(encoding="utf-8")):
                assert command in COMMANDS, f"{page}: {command}"

    def test_citation_and_changelog_are_of_this_version(self) -> None:
        yaml = pytest.importorskip("yaml")
        record = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        assert record["cff-version"] == "1.2.0"
        assert record["version"] == datastill.__version__
        assert record["license"] == "Apache-2.0"
        assert record["authors"] == [{"name": "The datastill developers"}]
        assert {"message", "title", "type"} <= record.keys()
        assert datastill.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
