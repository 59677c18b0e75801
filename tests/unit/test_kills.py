"""Kills at file operations of every command that writes: run again, it ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datastill import distill, load_distilled, load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.evaluation import protocols
from datastill.exchange import import_released
from datastill.exchange.export import export
from datastill.labels.bank import LabelBank
from datastill.store import unfinished
from datastill.surrogates.teachers import load_teacher

pytestmark = [
    pytest.mark.usefixtures("short_protocols"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

#: Kills of a command with many file operations, spread evenly over them; None, with DATASTILL_EVERY_KILL in the
#: environment, kills at every one, which takes many minutes. Four are in the fast suite.
MORE = None if os.environ.get("DATASTILL_EVERY_KILL") else 12
FEW = pytest.mark.parametrize("kills", [4, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled set of the digits."""
    folder = tmp_path_factory.mktemp("made") / "set"
    distill("random", "digits", ipc=1, out=folder)
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the digits with its teacher beside it."""
    folder = tmp_path_factory.mktemp("taught")
    network = "convnet:norm=batch,width=8,depth=1"
    words = ["teacher", "train", "--network", network, "--passes", "1", "--out", str(folder / "teacher"), "--quiet"]
    assert main(words) == 0
    distill("sre2l", "digits", ipc=1, steps=2, teacher=str(folder / "teacher"), out=folder / "set")
    return folder / "set"


def photos(root: Path) -> None:
    """Two classes of eight pictures each."""
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = torch.randint(0, 256, (8, 8), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")


def tree(folder: Path) -> dict[str, str]:
    """Every file, with a hash of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def names(folder: Path) -> list[str]:
    """Every file."""
    return sorted(tree(folder))


def accuracies(path: Path) -> Any:
    """Those of an evaluation."""
    return json.loads(path.read_text())["distilled"]["accuracies"]


@contextmanager
def counted(then: Callable[[int], None]) -> Iterator[None]:
    """Tell of every change of the file system, with its number, before it is made."""
    count = 0

    def telling(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            nonlocal count
            count += 1
            then(count)
            return real(*args, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "open"):
            patch.setattr(os, name, telling(getattr(os, name)))
        patch.setattr(unfinished.tempfile, "mkstemp", telling(tempfile.mkstemp))
        yield


def killed_at(n: int, action: Callable[[], object]) -> int:
    """Run in a forked process that dies at its n-th change of the file system; its exit code, 9 where it died."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        with counted(lambda count: os._exit(9) if count == n else None):
            action()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.__stderr__)
        os._exit(1)


def check_kills(
    tmp_path: Path,
    action: Callable[[Path], object],
    same: Callable[[Path], object] = tree,
    begin: Callable[[Path], object] = lambda _: None,
    kills: int | None = None,
) -> int:
    """Kill an action at its file operations: run again it ends as if nothing had happened, and nothing is left.

    Args:
        same: what must be equal in the end.
        begin: makes what the action works on.
        kills: at so many operations, spread evenly; None takes every one.

    Returns:
        The operations.
    """
    total = 0

    def count(n: int) -> None:
        nonlocal total
        total = n

    whole = tmp_path / "whole" / "out"
    begin(whole)
    with counted(count):
        action(whole)
    wanted = same(whole)
    assert total < 1000
    chosen = range(1, total + 1) if kills is None else torch.linspace(1, total, min(kills, total)).long().tolist()
    died = 0
    for n in chosen:
        place = tmp_path / f"kill-{n}"
        begin(place / "out")
        ended = killed_at(n, partial(action, place / "out"))
        assert ended in (0, 9), n
        died += ended == 9
        action(place / "out")
        assert same(place / "out") == wanted, n
        left = list(place.rglob(".*"))
        assert not left, (n, left)
        shutil.rmtree(place)
    assert died > len(chosen) / 2
    return total


class TestKills:
    @FEW
    @pytest.mark.parametrize("format", ["tensors", "imagefolder"])
    def test_export(self, made, tmp_path, format, kills) -> None:
        one = load_distilled(made)

        def write(out: Path) -> None:
            try:
                export(one, out, format)
            except InputError:  # killed after it had its name: it is there, and whole
                assert (out / "README.md").is_file()

        assert check_kills(tmp_path, write, kills=kills) > 3

    @FEW
    def test_import_of_several(self, tmp_path, kills) -> None:
        x, y = torch.linspace(0, 1, 640).view(10, 1, 8, 8), torch.arange(10)
        torch.save({"data": [[x, y], [x + 1, y]], "accs_all_exps": {}}, tmp_path / "res.pt")
        real = load_real("digits")

        def bring(out: Path) -> None:
            import_released(tmp_path / "res.pt", data=real, space="raw", select="all", out=out)

        def same(out: Path) -> object:
            return {name: sha for name, sha in tree(out).items() if not name.endswith("manifest.json")}

        assert check_kills(tmp_path, bring, same, kills=kills) > 5

    @FEW
    def test_distill(self, tmp_path, kills) -> None:
        real = load_real("digits")

        def run(out: Path) -> None:
            distill("random", real, ipc=1, out=out, resume=(out / "config.json").is_file())

        def same(out: Path) -> object:
            return sorted(tree(out)), load_distilled(out).images.tolist()

        assert check_kills(tmp_path, run, same, kills=kills) > 5

    @FEW
    @pytest.mark.parametrize(
        "words",
        [
            ["teacher", "train", "--network", "convnet:norm=batch,width=8,depth=1", "--passes", "1"],
            ["experts", "train", "--network", "convnet:width=8,depth=1", "--experts", "1", "--epochs", "1"],
            ["compare", "--methods", "random", "--seeds", "1", "--networks", "1", "--network", "mlp"],
        ],
        ids=lambda words: words[0],
    )
    def test_commands(self, tmp_path, words, kills) -> None:
        def run(out: Path) -> None:
            code = main([*words, "--quiet", "--json", "--out", str(out)])
            assert code == 0 or (words[0] == "teacher" and (out / "teacher.json").is_file())

        def same(out: Path) -> object:
            return sorted(p.name for p in out.rglob("*") if p.is_file()), {
                str(p.relative_to(out)): sha
                for p, sha in ((out / name, sha) for name, sha in tree(out).items())
                if p.suffix == ".bin" or (p.suffix == ".safetensors" and p.parent.name != "checkpoints")
            }

        assert check_kills(tmp_path, run, same, kills=kills) > 5

    @FEW
    @pytest.mark.parametrize("what", ["set", "teacher", "experts"])
    def test_imports(self, taught, tmp_path, what, kills) -> None:
        network = "convnet:norm=batch,width=8,depth=1"
        module = load_teacher(taught.parent / "teacher").network
        torch.save(module.state_dict(), tmp_path / "teacher.pt")
        expert = [[value.detach() + epoch for value in module.parameters()] for epoch in range(2)]
        torch.save([expert], tmp_path / "experts.pt")
        x, y = torch.linspace(0, 1, 640).view(10, 1, 8, 8), torch.arange(10)
        torch.save({"data": [[x, y]], "accs_all_exps": {}}, tmp_path / "set.pt")
        words = {
            "set": ["import", str(tmp_path / "set.pt"), "--space", "raw"],
            "teacher": ["teacher", "import", str(tmp_path / "teacher.pt"), "--network", network],
            "experts": ["experts", "import", str(tmp_path / "experts.pt"), "--space", "raw", "--network", network],
        }

        def bring(out: Path) -> None:
            code = main([*words[what], "--data", "digits", "--quiet", "--json", "--out", str(out)])
            assert code == 0 or any(out.glob("*.json")), "it had its name when it was killed"

        def same(out: Path) -> object:
            return names(out), [sha for name, sha in tree(out).items() if not name.endswith(".json")]

        assert check_kills(tmp_path, bring, same, kills=kills) > 3

    @FEW
    def test_data(self, tmp_path, monkeypatch, kills) -> None:
        photos(tmp_path / "photos")

        def look(out: Path) -> None:
            monkeypatch.setenv("DATASTILL_CACHE", str(out.parent / "cache"))
            assert main(["data", str(tmp_path / "photos"), "--json", "--out", f"{out}.png"]) == 0

        assert check_kills(tmp_path, look, lambda out: tree(out.parent), kills=kills) > 1

    @FEW
    def test_weigh(self, tmp_path, monkeypatch, kills) -> None:
        """The weights that are kept in the cache too."""
        photos(tmp_path / "photos")

        def weigh(out: Path) -> None:
            monkeypatch.setenv("DATASTILL_CACHE", str(out.parent / "cache"))
            words = ["weigh", "--data", str(tmp_path / "photos"), "--debias", "kde:epochs=1,variance=0.1"]
            assert main([*words, "--quiet", "--json", "--out", str(out)]) == 0

        def same(out: Path) -> object:
            return names(out.parent), tree(out)["weights.csv"], tree(out)["crowd_and_odd.png"]

        assert check_kills(tmp_path, weigh, same, kills=kills) > 5

    @FEW
    def test_study(self, tmp_path, monkeypatch, kills) -> None:
        words = ["study", "debias", "--dataset", "cmnist:base=digits,train=60,test=60", "--methods", "random"]
        words += ["--debias", "none"]
        words += ["--seeds", "1", "--networks", "1", "--network", "mlp", "--ipc", "1", "--quiet", "--json"]

        def study(out: Path) -> None:
            monkeypatch.setenv("DATASTILL_CACHE", str(out.parent / "cache"))
            assert main([*words, "--out", str(out)]) == 0

        def same(out: Path) -> object:
            cells = json.loads((out / "study.json").read_text())["cells"]
            return names(out.parent), [cell["accuracies"] for cell in cells]

        assert check_kills(tmp_path, study, same, kills=kills) > 5

    @FEW
    def test_demo(self, tmp_path, monkeypatch, kills) -> None:
        """With one pass of training, and without the curves, which write nothing."""
        quick = replace(protocols.get_protocol("dc-v1"), passes=1)
        monkeypatch.setitem(protocols._REGISTERED, quick.name, quick)
        monkeypatch.setattr("datastill.report.sections.curves.SECTION.page", lambda _: None)

        def demo(out: Path) -> None:
            words = ["demo", "--sets", "1", "--networks", "1", "--steps", "2", "--quiet", "--json"]
            assert main([*words, "--out", str(out)]) == 0

        def same(out: Path) -> object:
            return names(out), load_distilled(out / "set-0").images.tolist(), accuracies(out / "evaluation.json")

        assert check_kills(tmp_path, demo, same, kills=kills) > 20

    @FEW
    def test_relabel(self, taught, tmp_path, kills) -> None:
        def relabel(out: Path) -> None:
            code = main(["relabel", str(out), "--data", "digits", "--passes", "1", "--quiet", "--json"])
            if code:  # killed after it had its name: it is there, and whole
                LabelBank.open(out / "labels")

        assert check_kills(tmp_path, relabel, begin=partial(shutil.copytree, taught), kills=kills) > 3

    @FEW
    @pytest.mark.parametrize("beside", [True, False], ids=["beside", "out"])
    def test_evaluate(self, made, tmp_path, beside, kills) -> None:
        def score(out: Path) -> None:
            words = ["evaluate", str(out), "--data", "digits", "--networks", "1", "--network", "mlp", "--no-random"]
            words += [] if beside else ["--out", str(out.parent / "scores" / "evaluation.json")]
            assert main([*words, "--quiet", "--json"]) == 0

        def same(out: Path) -> object:
            result = out / "evaluation.json" if beside else out.parent / "scores" / "evaluation.json"
            return names(out.parent), accuracies(result), load_distilled(out).images.tolist()

        assert check_kills(tmp_path, score, same, partial(shutil.copytree, made), kills) > (5 if beside else 2)
