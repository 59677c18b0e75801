"""What is read back is data: no name in a file imports code, reaches the network, or opens files elsewhere."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import datastill
from datastill import compare, distill, evaluate, load_distilled, load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.registry import get_method, registered
from datastill.evaluation.evaluate import Setup
from datastill.experiments import load_comparison
from datastill.experiments.debias_pictures import write_pictures
from datastill.experiments.ledger import read_ledger
from datastill.experiments.page import write_comparison_report
from datastill.models import is_built_in, resolve_network
from datastill.report.html import write_report
from datastill.store.files import CHECKSUM, member, read_tensors, write_tensors
from datastill.store.rendering import decoder_of
from datastill.surrogates.teachers import load_teacher
from decoupled_data import digits, teacher

SMALL = "convnet:width=4,depth=1"
NET = "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, channels, classes, size):\n"
NET += "        width = channels * size[0] * size[1]\n"
NET += "        super().__init__(nn.Flatten(), nn.BatchNorm1d(width), nn.Linear(width, classes))\n"


class Alarm:
    """What the interpreter was asked to do, as its audit events tell, while it is armed."""

    def __init__(self) -> None:
        self.outside: Path | None = None
        self.heard: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.outside is None:
            return
        names = event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | Path)
        if names and Path(args[0]).is_relative_to(self.outside):
            self.heard.append(f"{event} {args[0]}")
        elif event in ("socket.connect", "socket.getaddrinfo", "os.system", "subprocess.Popen"):
            self.heard.append(f"{event} {args}")
        elif event == "import" and str(args[0]).startswith("evil"):
            self.heard.append(f"import {args[0]}")


ALARM = Alarm()
sys.addaudithook(ALARM)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that nothing may read, with code that nothing may import; working directory and alarm are there."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "evil.py").write_text("raise SystemExit('imported')\n" + NET)
    (place / "secret.json").write_text("{}")
    picture(place / "pictures" / "a" / "secret.png")
    monkeypatch.chdir(place)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: ALARM.heard.append(f"load_dataset {a}"))
    ALARM.heard.clear()
    ALARM.outside = place
    yield place
    ALARM.outside = None
    assert not ALARM.heard


def picture(path: Path, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (8, 8), value)
    image.putpixel((7, 7), 255)  # a set must not be of one value
    image.save(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is read back, made small: a run with teacher and labels, experts, a comparison."""
    root = tmp_path_factory.mktemp("made")
    own = teacher()
    distill("sre2l", digits(), ipc=1, steps=1, teacher=own, out=root / "run")
    assert main(["relabel", str(root / "run"), "--passes", "1", "--quiet"]) == 0
    distill("dm", "digits", ipc=1, steps=1, network=SMALL, out=root / "dm")
    compare(["dm"], "digits", ipc=1, seeds=1, networks=1, network=SMALL, settings=STEPS, out=root / "compare")
    options = ["--data", "digits", "--network", SMALL, "--experts", "1", "--epochs", "2", "--quiet"]
    assert main(["experts", "train", *options, "--out", str(root / "experts")]) == 0
    return root


STEPS = {"dm": {"steps": 1}}


class Reached(Exception):
    """All is read and training would begin."""


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations end where their networks would be trained."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Reached

    monkeypatch.setattr(Setup, "run", stop)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all strings in a JSON value."""
    if isinstance(node, str):
        yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from leaves(value, (*path, key))


def unsealed(file: Path) -> Any:
    """A record without the hash of itself, as its author can make it."""
    record = json.loads(file.read_text())
    record.pop(CHECKSUM, None)
    if "files" in record:
        record["files"].pop("manifest.json", None)
    return record


def planted(node: Any, path: tuple[Any, ...], word: str) -> Any:
    """A copy of a JSON value with a word at that place."""
    copy = json.loads(json.dumps(node))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = word
    return copy


def words(outside: Path) -> list[str]:
    return [
        "evil.py",
        f"{outside}/evil.py:Net",
        "evil:Net",
        "somebody/set",
        "timm/hf-hub:somebody/net",
        str(outside / "secret"),
        "../../../outside/secret",
    ]


def quietly(*calls: Callable[[], object]) -> None:
    """Calls that may refuse what they are given, in whatever way; what they may not do, the alarm hears."""
    for call in calls:
        with contextlib.suppress(Exception):
            call()


def command(*args: object) -> Callable[[], object]:
    return lambda: main([str(a) for a in args])


def scored(run: Path) -> Callable[[], object]:
    def score() -> None:
        with contextlib.suppress(Reached):
            evaluate(run, digits(), networks=1)

    return score


def readers_of_run(run: Path, out: Path) -> list[Callable[[], object]]:
    return [
        command("inspect", run),
        command("evaluate", run, "--networks", 1, "--quiet", "--no-random"),
        command("teacher", "inspect", run / "teacher"),
        lambda: load_distilled(run).export(out / "tensors", "tensors"),
        lambda: write_report(out / "report.html", load_distilled(run)),
    ]


def readers_of_comparison(folder: Path, out: Path) -> list[Callable[[], object]]:
    options = {"ipc": 1, "seeds": 1, "networks": 1, "network": SMALL, "settings": STEPS}
    return [
        lambda: write_comparison_report(out / "page.html", load_comparison(folder)),
        lambda: [load_comparison(folder).cell_folder(r, s) for r in load_comparison(folder).rows for s in r.seeds],
        lambda: compare(["dm"], digits(), out=folder, **options),  # type: ignore[arg-type]
        lambda: read_ledger(folder),
    ]


def plant_everywhere(made: Path, tmp_path: Path, file: str, readers: Any, outside: Path, every: int) -> int:
    """Plant words in every string of a file, `every`-th word at each, and read it in all ways; how many."""
    top = tmp_path / "read" / Path(file).parts[0]
    shutil.copytree(made / Path(file).parts[0], top)
    target = next((tmp_path / "read").glob(file))
    record = unsealed(target)
    target.write_text(json.dumps(record))
    assert readers(top, tmp_path / "out")[0]() != 2, "unsealed, it is read"
    count = 0
    for k, path in enumerate(leaves(record)):
        for word in words(outside)[k % every :: every]:
            target.write_text(json.dumps(planted(record, path, word)))
            quietly(*readers(top, tmp_path / "out"))
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            assert not ALARM.heard, (path, word, ALARM.heard)
            count += 1
    return count


FILES = {
    "run/manifest.json": readers_of_run,
    "run/teacher/teacher.json": lambda run, out: [command("teacher", "inspect", run / "teacher"), scored(run)],
    "run/labels/bank.json": lambda run, out: [scored(run)],
    "compare/plan.json": readers_of_comparison,
    "compare/results/*.json": readers_of_comparison,
    "experts/meta.json": lambda folder, out: [command("experts", "inspect", folder, "--verify")],
    "experts/expert_00000.json": lambda folder, out: [command("experts", "inspect", folder, "--verify")],
    "dm/config.json": lambda folder, out: [
        lambda: distill("dm", digits(), ipc=1, steps=1, network=SMALL, out=folder, resume=True)
    ],
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("untrained")
def test_no_string_of_a_file_does_anything(made: Path, tmp_path: Path, outside: Path, file: str) -> None:
    assert plant_everywhere(made, tmp_path, file, FILES[file], outside, len(words(outside))) > 2


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.usefixtures("untrained")
def test_no_word_in_any_string_of_a_file_does_anything(made: Path, tmp_path: Path, outside: Path, file: str) -> None:
    # Two or three of the seven words in every string: all seven took ten minutes for one manifest.
    assert plant_everywhere(made, tmp_path, file, FILES[file], outside, 3) > 8


def test_no_metadata_of_a_checkpoint_does_anything(made: Path, tmp_path: Path, outside: Path) -> None:
    shutil.copytree(made / "dm", tmp_path / "dm")
    target = next((tmp_path / "dm" / "checkpoints").glob("*.safetensors"))
    tensors, meta = read_tensors(target)
    told = json.loads(meta["meta"])
    for k, path in enumerate(leaves(told)):
        word = words(outside)[k % 7]
        write_tensors(target, tensors, {**meta, "meta": json.dumps(planted(told, path, word))})
        quietly(lambda: distill("dm", digits(), ipc=1, steps=1, network=SMALL, out=tmp_path / "dm", resume=True))
        assert not ALARM.heard, (path, word)


def test_no_string_of_a_cached_record_does_anything(tmp_path: Path, outside: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DATASTILL_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        for k in range(4):
            picture(tmp_path / "data" / name / f"{k}.png", k)
    load_real(tmp_path / "data")
    (target,) = (tmp_path / "cache" / "real").glob("*.json")
    record = json.loads(target.read_text())
    found = list(leaves(record))
    assert len(found) >= 8
    for path in found:
        target.write_text(json.dumps(planted(record, path, str(outside / "pictures" / "a" / "secret.png"))))
        quietly(lambda: load_real(tmp_path / "data"))
        assert not ALARM.heard, path


# What each file names, one by one: refused in a sentence that says which name and how to accept it.


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**unsealed(file), **values}))


def recorded(run: Path, key: str, **values: Any) -> None:
    record = json.loads((run / "manifest.json").read_text())
    change(run / "manifest.json", **{key: {**record[key], **values}})


@pytest.mark.parametrize("spec", ["evil.py:Net", "evil:Net", "os:getcwd", "timm/hf-hub:a/b", "timm/resnet18:a=b"])
def test_a_recorded_network_is_built_in_or_given(run: Path, outside: Path, spec: str) -> None:
    recorded(run, "network", spec=spec)
    with pytest.raises(InputError, match=r"not built in.*--network"):
        evaluate(run, digits(), networks=1, labels="hard")
    change(run / "teacher" / "teacher.json", network=spec)
    with pytest.raises(InputError, match=r"not built in.*--teacher-network"):
        evaluate(run, digits(), networks=1, network=SMALL)
    with pytest.raises(InputError, match="not built in"):
        distill("sre2l", digits(), ipc=1, steps=1, teacher=str(run / "teacher"))


def test_libraries_resolve_by_name_with_numbers_alone() -> None:
    assert all(map(is_built_in, ("convnet:norm=batch", "timm/resnet10t", "torchvision/resnet18:progress=false")))
    assert not any(
        map(is_built_in, ("timm/resnet10t:checkpoint_path=x", "timm/a/b", "timm/hf-hub:a", "os:abort", None))
    )
    with pytest.raises(InputError, match="fresh weights"):
        resolve_network("timm/resnet10t:checkpoint_path=1", channels=3, classes=2, size=32)


def test_a_recorded_method_is_a_label() -> None:
    assert registered("evil.py") is None
    assert registered("dm") is get_method("dm")


@pytest.mark.parametrize("name", ["__init__", "_cut", "os", "evil", "pixels.os", "../methods/dm", ""])
def test_decoders_are_those_of_the_folder(outside: Path, name: str) -> None:
    with pytest.raises(InputError, match="decoder"):
        decoder_of({"decoder": name})


@pytest.mark.parametrize("name", ["../x", "/x", "..", "", "a/../b", "a/b", "a\0", None, 3])
def test_names_stay_in_their_folder(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError, match="outside its folder"):
        member(tmp_path, name)
    assert member(tmp_path, "sets/a", 2) == tmp_path / "sets" / "a"


def test_a_study_shows_its_own_sets_only(tmp_path: Path, outside: Path) -> None:
    with pytest.raises(InputError, match="outside its folder"):
        write_pictures([{"set": "../outside"}], [], tmp_path / "study")


def test_words_of_a_plan_are_the_callers(made: Path, tmp_path: Path, outside: Path) -> None:
    """A plan gives back the numbers that a budget was settled to, and no path."""
    folder = Path(shutil.copytree(made / "compare", tmp_path / "compare"))
    plan = json.loads((folder / "plan.json").read_text())
    for settled in plan["settled"].values():
        settled["hyper"]["init"] = str(outside)
    change(folder / "plan.json", settled=plan["settled"])
    with pytest.raises(InputError, match="init"):
        compare(["dm"], digits(), ipc=1, seeds=1, networks=1, network=SMALL, settings=STEPS, out=folder)


@pytest.mark.usefixtures("untrained")
class TestSources:
    """The real data that a set names."""

    def test_the_hub_is_not_asked(self, run: Path, outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for source in ("somebody/set", "somebody/set:config=x", "cmnist:base=somebody/set"):
            recorded(run, "data", source=source)
            assert main(["evaluate", str(run), "--quiet"]) == 2
            assert "--data somebody/set" in capsys.readouterr().err

    def test_other_images_are_refused(self, run: Path, tmp_path: Path) -> None:
        for name in map(str, range(10)):
            for k in range(4):
                picture(tmp_path / "private" / name / f"{k}.png", k)
        recorded(run, "data", source=str(tmp_path / "private"))
        with pytest.raises(InputError, match=r"not hold the images.*--data"):
            evaluate(run)

    @pytest.mark.parametrize("source", ["/", "~", "bg-fmnist:backgrounds=/", "{above}"])
    def test_all_of_a_disk_is_no_data(self, run: Path, tmp_path: Path, source: str) -> None:
        recorded(run, "data", source=source.format(above=tmp_path))
        with pytest.raises(InputError, match="more than data"):
            evaluate(run)

    def test_the_usual_way_needs_no_word(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Distill from a folder, score without --data; a colon in its name is no option."""
        for name in "ab":
            for k in range(8):
                picture(tmp_path / "my:photos" / name / f"{k}.png", 30 * k)
        distill("random", load_real(tmp_path / "my:photos", holdout=0.25), ipc=1, network=SMALL, out=tmp_path / "run")
        with pytest.raises(Reached):
            main(["evaluate", str(tmp_path / "run")])
        assert "my:photos, which the set names" in capsys.readouterr().err
        picture(tmp_path / "my:photos" / "a" / "9.png")
        with pytest.raises(InputError, match="--data"):
            evaluate(tmp_path / "run")


def test_a_set_of_a_users_network_goes_all_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspected, read and exported without a word; scored, labeled and recovered from once its network is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(NET)
    ways = ["--data", "digits", "--network", "own.py:Net", "--quiet"]
    assert main(["teacher", "train", *ways, "--passes", "12", "--lr", "0.02", "--out", "t"]) == 0
    assert main(["teacher", "inspect", "t"]) == 2
    assert main(["teacher", "inspect", "t", "--network", "own.py:Net"]) == 0
    made = ["distill", "rded", *ways, "--teacher", "t", "--ipc", "1", "--candidates", "4"]
    assert main([*made, "--out", "run"]) == 0
    assert main(["inspect", "run"]) == 0
    assert main(["export", "run", "images", "--no-score", "--quiet"]) == 0
    score = ["evaluate", "run", "--networks", "1", "--quiet"]
    assert main(score) == 2
    assert main([*score, "--network", SMALL]) == 2, "the teacher's is not named"
    assert main([*score, "--network", "own.py:Net"]) == 0
    assert main([*score, "--network", SMALL, "--teacher-network", "own.py:Net"]) == 0
    assert main(["relabel", "run", "--passes", "1", "--quiet"]) == 2
    assert main(["relabel", "run", "--passes", "1", "--quiet", "--teacher-network", "own.py:Net"]) == 0


def test_a_module_that_is_given_takes_the_place_of_a_name(tmp_path: Path, outside: Path) -> None:
    """And the name, which nothing vouches for, is not kept: other processes would build it."""
    own = teacher()
    own.save(tmp_path / "t")
    change(tmp_path / "t" / "teacher.json", network="evil:Net")
    read = load_teacher(tmp_path / "t", teacher().network)
    assert read.spec is None
    assert read.id == own.id


class TestPaths:
    """Links and paths in data."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        for name in "ab":
            for k in range(4):
                picture(tmp_path / "data" / name / f"{k}.png", 20 * k)
        return tmp_path / "data"

    @pytest.mark.parametrize(
        ("link", "target"),
        [("a/all", "/"), ("a/x.png", "pictures/a/secret.png"), ("c", "pictures/a"), ("a/deep", "pictures")],
    )
    def test_links_out_of_the_data_are_refused(self, data: Path, outside: Path, link: str, target: str) -> None:
        (data / link).symlink_to(outside / target)
        with pytest.raises(InputError, match=rf"1 link leads out of .*{link}.*--follow-links"):
            load_real(data)

    def test_they_are_followed_where_the_caller_says_so(self, data: Path, tmp_path: Path) -> None:
        picture(tmp_path / "elsewhere" / "x.png")
        (data / "a" / "more").symlink_to(tmp_path / "elsewhere")
        real = load_real(data, follow_links=True, holdout=0)
        assert len(real) == 9
        assert real.options["follow_links"] is True

    def test_links_within_the_data_are_fine(self, data: Path, tmp_path: Path) -> None:
        (data / "a" / "again.png").symlink_to(data / "a" / "0.png")
        (data / "a" / "loop").symlink_to(data / "a")
        (tmp_path / "link").symlink_to(data)
        assert len(load_real(tmp_path / "link", holdout=0)) == 9

    def test_a_snapshot_of_the_hub_links_to_its_blobs(self, tmp_path: Path) -> None:
        for k, name in enumerate("ab"):
            blob = picture(tmp_path / "datasets--x" / "blobs" / f"{name}.png", 90 * k)
            link = tmp_path / "datasets--x" / "snapshots" / "123" / name / "0.png"
            link.parent.mkdir(parents=True)
            link.symlink_to(blob)
        assert len(load_real(tmp_path / "datasets--x" / "snapshots" / "123", holdout=0)) == 2

    @pytest.mark.parametrize("column", ["image", "label"])
    def test_rows_name_files_inside_only(self, tmp_path: Path, outside: Path, column: str) -> None:
        """A label column may claim to be pictures too, which its reader would open."""
        import datasets
        import pyarrow
        from pyarrow import parquet

        secret = {"bytes": None, "path": str(outside / "pictures" / "a" / "secret.png")}
        inside = [{"bytes": None, "path": "own.png"}, {"bytes": picture(tmp_path / "d" / "own.png").read_bytes()}]
        columns = {"image": [secret, secret, *inside], "label": [0, 0, 1, 1]}
        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        if column == "label":
            columns, features["label"] = {"image": inside, "label": [secret, secret]}, datasets.Image()
        table = pyarrow.Table.from_pydict(columns, schema=datasets.Features(features).arrow_schema)
        parquet.write_table(table, tmp_path / "d" / "train.parquet")
        with pytest.raises(InputError, match="2 rows.*secret" if column == "image" else "label"):
            load_real(tmp_path / "d", holdout=0)

    def test_rows_that_name_files_inside_are_read(self, tmp_path: Path) -> None:
        import datasets
        import pyarrow
        from pyarrow import parquet

        for k in range(2):
            picture(tmp_path / "d" / "pictures" / f"{k}.png", 50 * k)
        columns = {"image": [{"bytes": None, "path": f"pictures/{k}.png"} for k in range(2)], "label": [0, 1]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        parquet.write_table(
            pyarrow.Table.from_pydict(columns, schema=features.arrow_schema), tmp_path / "d" / "train.parquet"
        )
        real = load_real(tmp_path / "d", holdout=0)
        assert torch.equal(real.pixels(torch.arange(2))[:, 0, 0, 0], torch.tensor([0.0, 50 / 255]))


def test_the_alarm_is_heard(outside: Path) -> None:
    (outside / "secret.json").read_text()
    with contextlib.suppress(BaseException):
        __import__("evil")
    with pytest.raises(InputError):
        get_method(str(outside / "nothing.py"))
    assert len(ALARM.heard) >= 2
    ALARM.heard.clear()
    assert datastill.__version__
