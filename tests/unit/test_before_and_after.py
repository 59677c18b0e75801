"""What is refused before the work, what is printed whatever becomes of files after it, and names shown as they are."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datastill import distill, evaluate, export, load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.experiments.debias_study import DebiasStudy
from datastill.report.words import code, markdown, without_paths
from datastill.store.artifact import DistilledSet

pytestmark = pytest.mark.usefixtures("short_protocols")

TINY = "convnet:width=4,depth=1"
NAMES = ["[/red]", "[bold]x", "a|b", "<b>c", ":smile:", "`d`"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made") / "set"
    distill("random", "digits", ipc=1, network=TINY, out=made)
    return made


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache below a file: nobody can write it, root neither."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path / "file" / "cache"))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 200 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_cannot_be_written_costs_a_warning(folder: Path) -> None:
    asked = {"networks": 1, "network": TINY, "protocol": "dc-v1", "random": False}
    with pytest.warns(UserWarning, match="whole set's accuracy is not cached"):
        result = evaluate(folder, "digits", ceiling=True, **asked)
    assert result.ceiling is not None
    with pytest.warns(UserWarning, match="weights are not cached"):
        made = distill("random", "digits", ipc=1, debias="kde:width=4,epochs=0")
    assert made.manifest["debias"]["how"] == "kde"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_result_is_printed_though_its_file_cannot_be_written(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], full_disk: None, more: list[str]
) -> None:
    """The table, or the record; then the sentence on the file, and nothing half-written."""
    asked = ["--networks", "1", "--network", TINY, "--protocol", "dc-v1", "--no-random", *more]
    said: list[str] = []

    def keep(*parts: object, **_: object) -> None:
        said.extend(map(str, parts))

    with pytest.MonkeyPatch.context() as patched:  # what is captured would be files that may not grow
        patched.setattr("builtins.print", keep)
        patched.setattr("datastill.cli.progress.Console.print", lambda self, *parts, **_: keep(*parts))
        code = main(["evaluate", str(folder), *asked, "--out", str(tmp_path / "x.json")])
    assert code == 2
    assert any(("accuracies" if more else "Table object") in part for part in said), said
    assert "Cannot write" in said[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "nope"}, "no protocol 'nope'"),
        ({"hyper": {"nope": 3}}, "hyper-parameter 'nope'"),
        ({"hyper": {"random": {"nope": 3}}}, "hyper-parameter 'nope'"),
        ({"hyper": {"dm": {"steps": 3}}}, "'dm', which is no method here"),
        ({"hyper": {"image_lr": 3}, "methods": ("random", "herding")}, "hyper-parameter 'image_lr'"),
        ({"networks": 0}, "networks"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_a_study_refuses_before_it_begins(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DebiasStudy(**{"methods": ("random",), "debias": ("none",), **change}).fitting(load_real("digits"))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("compare --methods random --on mlp", "--on"),
        ("compare --methods random --seeds 2 --seed-list 4", "--seeds"),
        ("compare --sets x --budget 5s", "--budget"),
        ("evaluate x --size 9", "--size"),
        ("export x y --no-score --networks 1", "--networks"),
        ("export x y --to tensors --network mlp", "--network"),
    ],
)
def test_options_that_another_makes_void_are_refused(
    words: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert f"{option} changes nothing" in capsys.readouterr().err


def test_values_that_another_makes_void_are_told(tmp_path: Path) -> None:
    real = load_real("digits")
    made = distill(
        "rded", real, ipc=1, network=f"{TINY},norm=batch", squeeze_passes=1, candidates=5, out=tmp_path / "a"
    )
    teacher = tmp_path / "a" / "teacher"
    given = {"teacher": str(teacher), "squeeze_lr": 0.2, "candidates": 5}
    again = distill("rded", real, ipc=1, network=f"{TINY},norm=batch", **given)
    told = "squeeze_lr changed nothing, since teacher was given"
    assert told in again.manifest["notes"]
    assert not [note for note in made.manifest["notes"] if "changed nothing" in note]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DistilledSet]:
    """A set whose classes and folder bear names that are markup somewhere."""
    generator = Rng(0).generator("images")
    x = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    real = load_real((x, [NAMES[i % 6] for i in range(60)]), class_names=sorted(NAMES))
    folder = tmp_path_factory.mktemp("odd") / "[green]a|<i>b"
    return folder, distill("random", real, ipc=1, network=TINY, out=folder)


def test_names_are_shown_as_they_are(odd: tuple[Path, DistilledSet], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    from datastill.cli.progress import Display

    folder, made = odd
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in NAMES), told
    display, table = Display(False), Table(title="[blue]title")
    for name in NAMES:
        table.add_column(name, no_wrap=True)
    table.add_row(*NAMES)
    display.table(table)
    display.say(f"Written to {folder}.")
    display.update("[red]task", 1, 2, {"[x]": 1.0})
    said = capsys.readouterr()
    assert all(said.out.count(name) == 2 for name in NAMES), said.out
    assert "[blue]title" in said.out
    assert "[green]a|<i>b" in said.err
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert markdown(name) in card
    assert "<b>" not in card
    assert markdown("a|b <c> [d]") == r"a\|b &lt;c&gt; \[d\]"
    assert code("a|`b`\n") == "a/'b'"
    from datastill.report import write_report

    page = write_report(folder.parent / "report.html", made).read_text(encoding="utf-8")
    assert "<b>c" not in page
    assert "&lt;b&gt;c" in page


def test_exported_cards_name_no_place_of_the_machine(folder: Path, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos here" / name).mkdir(parents=True)
        from PIL import Image

        for i in range(4):
            Image.new("L", (8, 8), 60 * i).save(tmp_path / "photos here" / name / f"{i}.png")
    made = distill("random", str(tmp_path / "photos here"), ipc=1, network=TINY, out=tmp_path / "run")
    assert str(tmp_path) in json.dumps(made.manifest)
    for form in ("imagefolder", "parquet", "tensors"):
        export(made, tmp_path / form, form)
        card = (tmp_path / form / "README.md").read_text(encoding="utf-8")
        assert str(tmp_path) not in card
        assert "path/to/photos here" in card
    assert without_paths("first /home/me/a/b.png of 3/4") == "first path/to/b.png of 3/4"
    assert without_paths("dm/cifar10-ipc1") == "dm/cifar10-ipc1"
    assert without_paths("https://a.org/b/c") == "https://a.org/b/c"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("../client-bob/net.py:Net", "path/to/net.py:Net"),
        ("on ../../x/net.py and 3/4", "on path/to/net.py and 3/4"),
        ("file:///mnt/x/y.png", "path/to/y.png"),
        (r"\\host\share\y.png", "path/to/y.png"),
        ({"/mnt/x/y": 1}, {"path/to/y": 1}),
        ("a/../b ...", "a/../b ..."),
    ],
)
def test_places_of_other_forms_are_left_out_too(told: object, shown: object) -> None:
    assert without_paths(told) == shown
