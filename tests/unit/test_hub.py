"""Sets on the Hugging Face Hub, against a stand-in of its HTTP interface: what is pushed is what is pulled."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants as known
import numpy as np
import pytest
import torch
import yaml

from datastill import distill, evaluate, load_distilled, pull_from_hub, push_to_hub
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.space import normalized
from datastill.evaluation.protocols import Protocol
from datastill.evaluation.recorded import read_evaluation
from datastill.evaluation.soft import relabel
from datastill.exchange.export import export
from datastill.store.artifact import MANIFEST, TENSORS, DistilledSet
from datastill.store.files import write_json
from datastill.store.manifest import checksum_of
from datastill.store.opening import sha256_of
from decoupled_data import digits, teacher
from hub_server import TOKEN, Hub, point_to, serving

NAME = "me/digits-dm-ipc2"
NETWORK = "convnet:width=8,depth=1"
QUICK = Protocol("test-v1", "a test", passes=15, drop_after=8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, with a token for it and an empty cache."""
    with serving() as served:
        point_to(served.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its scores."""
    folder = tmp_path_factory.mktemp("runs") / "x"
    made = distill("dm", digits(), ipc=2, network=NETWORK, steps=3, out=folder)
    found = evaluate(made, digits(), networks=2, protocol=QUICK)
    write_json(folder / "evaluation.json", {**found.to_dict(), "command": f"datastill evaluate {folder}"})
    return folder


def files_of(hub: Hub, name: str = NAME) -> dict[str, bytes]:
    return hub.repositories[name].head[1]


def small(ipc: int = 1, channels: int = 3, side: int = 4, classes: int = 2, source: str = "") -> DistilledSet:
    pixels = torch.rand(classes * ipc, channels, side, side, generator=torch.Generator().manual_seed(0))
    space = normalized((0.4,) * channels, (0.25,) * channels)
    names = [f"c{k}" for k in range(classes)]
    manifest = {
        "method": "dm", "family": "distribution", "ipc": ipc, "seed": 0, "labels": "hard", "hyper": {}, "network": None,
        "classes": {"names": names, "label_ids": list(range(classes))}, "shape": [channels, side, side],
        "space": space.to_dict(), "decoder": {"decoder": "pixels", "clamp": False},
        "recipe": {"asked": "auto", "published": None}, "student": {"protocol": "dc-v1"}, "notes": [],
        "data": {"name": "toys", "source": source, "options": {}, "images": 9, "fingerprint": "", "notes": []},
        "cost": {"steps": 1, "seconds": 1.0, "hardware": "", "device": "cpu", "versions": {}},
    }  # fmt: skip
    labels = torch.arange(classes).repeat_interleave(ipc)
    return DistilledSet({"images": space.encode(pixels)}, labels, space, manifest)


def test_push_delete_pull_evaluate_gives_equal_numbers(hub: Hub, run: Path, tmp_path: Path) -> None:
    local = tmp_path / "run"
    shutil.copytree(run, local)
    before = evaluate(local, digits(), networks=2, protocol=QUICK)
    hashes = {name: sha256_of(local / name) for name in (TENSORS, MANIFEST)}
    assert main(["push", str(local), NAME, "--quiet"]) == 0
    shutil.rmtree(local)
    assert main(["pull", NAME, "--out", str(tmp_path / "back"), "--quiet"]) == 0
    assert {name: sha256_of(tmp_path / "back" / name) for name in hashes} == hashes
    after = evaluate(tmp_path / "back", digits(), networks=2, protocol=QUICK)
    at_once = evaluate(f"hub:{NAME}", digits(), networks=2, protocol=QUICK)
    for found in (after, at_once):
        assert torch.equal(found.distilled.accuracies, before.distilled.accuracies)
        assert torch.equal(found.differences, before.differences)
    assert "data/train-00000-of-00001.parquet" not in hub.fetched()


def test_it_opens_with_plain_datasets(hub: Hub, run: Path, tmp_path: Path) -> None:
    one = load_distilled(run)
    one.push_to_hub(NAME)
    export(one, tmp_path / "local", "hub")
    expected = (one.pixels[:, 0] * 255).round().to(torch.uint8).numpy()
    for place in (NAME, str(tmp_path / "local")):
        data = datasets.load_dataset(place, split="train", cache_dir=str(tmp_path / "hf"))
        assert data.features["label"].names == list(one.class_names)
        assert data["label"] == one.targets.tolist()
        assert (np.stack([np.asarray(image) for image in data["image"]]) == expected).all()
    assert torch.equal(load_distilled(tmp_path / "local").images, one.images)


def test_the_card_has_numbers_protocol_bytes_picture_and_license(hub: Hub, run: Path) -> None:
    one, scored = load_distilled(run), json.loads((run / "evaluation.json").read_text())
    one.push_to_hub(NAME, license="CC-BY-4.0")
    files = files_of(hub)
    _, front, text = files["README.md"].decode().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["license"] == "cc-by-4.0"
    assert said["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert f"{100 * scored['distilled']['mean']:.1f}" in text
    for part in ("Protocol `test-v1`", f'load_distilled("hub:{NAME}")', f'load_dataset("{NAME}"', "5.28 kB in all"):
        assert part in text
    assert "(preview.png)" in text
    assert files["preview.png"].startswith(b"\x89PNG")
    assert "under: CC-BY-4.0" in text
    one.push_to_hub(NAME, overwrite=True)
    _, front, text = files_of(hub)["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "unknown"
    assert "is unknown" in text
    one.push_to_hub(NAME, overwrite=True, license="ask Mr. Smith")
    front = yaml.safe_load(files_of(hub)["README.md"].decode().split("---\n", 2)[1])
    assert (front["license"], front["license_name"]) == ("other", "ask-mr-smith")


def test_no_place_of_the_makers_machine_is_published(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    home = tmp_path / "home of Jane Roe"
    one = small(source=str(home / "my photos"))
    one.manifest["notes"] = [f"3 files of {home}/my photos/a were left out", "see /opt/secret/place/x.png"]
    one.manifest["network"] = {"name": "Net", "options": {}, "spec": f"{home}/net.py:Net"}
    one.save(home / "runs" / "x")
    saved = load_distilled(home / "runs" / "x")
    write_json(home / "runs" / "x" / "evaluation.json", {**scores(), "command": f"datastill evaluate {home}/x"})
    assert main(["push", str(saved.folder), NAME]) == 0
    everything = b"\n".join(files_of(hub).values())
    for part in (b"Jane Roe", b"Roe", bytes(tmp_path), b"/opt/secret"):
        assert part not in everything, part
    assert "left out of evaluation.json, manifest.json" in capsys.readouterr().err
    back = load_distilled(f"hub:{NAME}")
    assert back.record.data.source == "path/to/my photos"
    assert torch.equal(back.images, one.images)
    assert files_of(hub)[TENSORS] == (saved.folder / TENSORS).read_bytes()
    with pytest.raises(InputError, match=r"without the place of its real data .*--data PATH"):
        evaluate(back)


def scores() -> dict[str, Any]:
    arm = {"name": "dm", "accuracies": [[0.5, 0.75]], "per_class": [0.5, None], "seconds": 1.5}
    return {"protocol": "dc-v1", "network": {}, "data": {}, "cost": {}, "distilled": arm}


def near(one: Any, other: Any) -> bool:
    """Equal but for what the file rounds."""
    if isinstance(one, dict):
        return all(near(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return one == (pytest.approx(other, abs=2e-5) if isinstance(other, float) else other)


def test_scores_are_read_back(run: Path, tmp_path: Path) -> None:
    told = json.loads((run / "evaluation.json").read_text())
    again = read_evaluation(run / "evaluation.json").to_dict()
    assert list(told) == [*again, "command"]
    assert near(again, told)
    bad = copy.deepcopy(told)
    bad["distilled"]["accuracies"][0][0] = 1.5
    write_json(tmp_path / "bad.json", bad)
    with pytest.raises(InputError, match=r"distilled\.accuracies"):
        read_evaluation(tmp_path / "bad.json")


def test_a_teacher_and_a_label_bank_travel_along(hub: Hub, tmp_path: Path) -> None:
    one = small(2, channels=1, side=8, classes=10)
    one.manifest["classes"] = {"names": list(digits().class_names), "label_ids": list(range(10))}
    one.manifest["data"] = digits().describe()
    one.manifest["student"] = {"protocol": "soft-quick-v1", "labels": "teacher"}
    one.companions = {"teacher": teacher()}
    one.manifest["companions"] = {"teacher": one.companions["teacher"].describe()}
    one.save(tmp_path / "x")
    relabel(load_distilled(tmp_path / "x"), digits(), passes=1)
    push_to_hub(load_distilled(tmp_path / "x"), NAME)
    pull_from_hub(NAME, tmp_path / "back")
    for name in ("teacher/teacher.safetensors", "teacher/teacher.json", "labels/bank.json", "labels/index.npy"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "x" / name).read_bytes()
    with pytest.raises(InputError, match="datastill pull me/digits"):
        relabel(load_distilled(f"hub:{NAME}"), digits(), passes=1)
    assert main(["relabel", f"hub:{NAME}", "--quiet"]) == 2


def test_a_set_in_memory_is_published_as_it_would_be_saved(hub: Hub, tmp_path: Path) -> None:
    one = small()
    done = push_to_hub(one, NAME)
    assert one.folder is None
    one.save(tmp_path / "x")
    assert files_of(hub)[TENSORS] == (tmp_path / "x" / TENSORS).read_bytes()
    assert done.bytes[TENSORS] == len(files_of(hub)[TENSORS])
    assert load_distilled(f"hub:{NAME}@{done.commit}").name == one.name
    one.codes = {"images": one.codes["images"] + 1}
    with pytest.raises(InputError, match="changed since it was saved"):
        push_to_hub(one, NAME, overwrite=True)


def test_one_commit_replaces_a_set_and_what_it_had(hub: Hub, tmp_path: Path) -> None:
    push_to_hub(small(), NAME)
    hub.put(NAME, {**files_of(hub), "labels/bank.json": b"{}"})
    commits = len(hub.repositories[NAME].commits)
    push_to_hub(small(3), NAME, overwrite=True)
    assert len(hub.repositories[NAME].commits) == commits + 1
    assert "labels/bank.json" not in files_of(hub)
    assert load_distilled(f"hub:{NAME}").ipc == 3


def test_names_that_are_taken(hub: Hub, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    push_to_hub(small(), NAME)
    with pytest.raises(InputError, match="already; choose another name, or add --overwrite"):
        push_to_hub(small(3), NAME)
    hub.put("me/other", {"data.csv": b"1,2"})
    hub.put("me/package", {MANIFEST: b'{"name": "a web page"}'})
    for name in ("me/other", "me/package"):
        with pytest.raises(InputError, match="holds something that is no distilled set, and stays"):
            push_to_hub(small(), name, overwrite=True)
        assert len(hub.repositories[name].commits) == 1
    hub.put("me/empty", {".gitattributes": b""})
    push_to_hub(small(), "me/empty")
    assert load_distilled("hub:me/empty").ipc == 1


@pytest.mark.parametrize(
    "name", ["x", "a/b/c", "../x", "me/..", "me/ü", "-a/b", "a/b--c", "a/x.git", "a" * 200 + "/b", ""]
)
def test_names_that_cannot_be(hub: Hub, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a set on the Hub"):
        push_to_hub(small(), name)
    with pytest.raises(InputError, match="is no name of a set on the Hub"):
        load_distilled(f"hub:{name}")
    assert not hub.asked


def test_tokens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(InputError, match=r"refuses your token .* \(403\); sign in with `hf auth login`"):
        push_to_hub(small(), NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push_to_hub(small(), NAME, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token of the Hub on this machine"):
        push_to_hub(small(), NAME, overwrite=True)
    with pytest.raises(InputError, match="no data set or model me/digits-dm-ipc2 that you may read"):
        load_distilled(f"hub:{NAME}")


def test_a_public_place_is_not_taken_for_a_private_set(hub: Hub) -> None:
    push_to_hub(small(), NAME)
    before = len(hub.repositories[NAME].commits)
    with pytest.raises(InputError, match="is public already; make it private there"):
        push_to_hub(small(3), NAME, private=True, overwrite=True)
    assert len(hub.repositories[NAME].commits) == before


def test_without_a_network(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(load_distilled(run), NAME)
    kept = load_distilled(f"hub:{NAME}")
    point_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.warns(UserWarning, match="does not answer: hub:me/.* is a copy from before, "):
        copy = load_distilled(f"hub:{NAME}")
    assert torch.equal(copy.images, kept.images)
    assert kept.told == ""
    with pytest.warns(UserWarning, match="copy"):
        scored = evaluate(f"hub:{NAME}", digits(), networks=1, protocol=QUICK)
    assert copy.told in scored.to_dict()["notes"], "a score says what it is of"
    with pytest.warns(UserWarning, match="copy"):
        pull_from_hub(NAME, tmp_path / "pulled")
    with pytest.raises(InputError, match=r"The Hub \(http://127.0.0.1:9\) does not answer, and there is no copy"):
        load_distilled("hub:me/another")
    with pytest.raises(InputError, match="does not answer; check the connection"):
        push_to_hub(small(), NAME, overwrite=True)
    monkeypatch.setattr(known, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="switched off"):
        load_distilled("hub:me/another")


def test_a_push_that_fails_leaves_no_half_of_a_set(hub: Hub, tmp_path: Path) -> None:
    hub.broken["/commit/"] = 507
    with pytest.raises(InputError, match=r"The Hub answered 507 .*broken on purpose"):
        push_to_hub(small(), NAME)
    assert set(files_of(hub)) == {".gitattributes"}
    hub.broken.clear()
    push_to_hub(small(), NAME)
    hub.broken["/resolve/"] = 404
    with pytest.raises(InputError):
        pull_from_hub(NAME, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_repositories_that_hold_no_set_of_ours(hub: Hub, tmp_path: Path) -> None:
    hub.put("me/csv", {"data.csv": b"1,2"})
    with pytest.raises(InputError, match="hub:me/csv is no distilled set of datastill"):
        load_distilled("hub:me/csv")
    with pytest.raises(InputError, match="no data set or model me/nothing that you may read"):
        load_distilled("hub:me/nothing")
    push_to_hub(small(), NAME)
    files = files_of(hub)
    newer = {**json.loads(files[MANIFEST]), "version": 2}
    hub.put(NAME, {**files, MANIFEST: json.dumps(newer).encode()})
    with pytest.raises(InputError, match="of version 2; this datastill reads version 1: update datastill"):
        load_distilled(f"hub:{NAME}")
    with pytest.raises(InputError, match="has no such state"):
        load_distilled(f"hub:{NAME}@v1")


def test_a_hostile_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only files of a set are fetched, none that is too large, and what was fetched is checked as any folder is."""
    push_to_hub(small(), NAME)
    files = files_of(hub)
    others = ("../x.json", "setup.py", "teacher/evil.py", "labels/x.pkl", "a/b/c.json", "teacher-1/manifest.json")
    hub.put(NAME, {**files, **dict.fromkeys(others, b"1/0"), "teacher/teacher.json": b"{}"})
    hub.asked.clear()
    load_distilled(f"hub:{NAME}")
    assert hub.fetched() == [MANIFEST, TENSORS, "teacher/teacher.json"]
    hub.put(NAME, {**files, TENSORS: files[TENSORS][:-4] + b"\1\2\3\4"})
    with pytest.raises(InputError, match="not what was written"):
        pull_from_hub(NAME, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    told = json.loads(files[MANIFEST])
    told["files"]["../../x"] = "0" * 64
    told["files"][MANIFEST] = checksum_of(told)
    hub.put(NAME, {**files, MANIFEST: json.dumps(told).encode()})
    with pytest.raises(InputError, match="points outside its folder"):
        load_distilled(f"hub:{NAME}")
    monkeypatch.setattr("datastill.store.hub.MOST_BYTES", 1000)
    hub.asked.clear()
    hub.put(NAME, files)
    with pytest.raises(InputError, match="at most 0 MB are fetched"):
        load_distilled(f"hub:{NAME}")
    assert not hub.fetched()


def test_commands_take_the_name_of_a_set_on_the_hub(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_evaluation(run / "evaluation.json")
    push_to_hub(load_distilled(run), NAME)
    assert main(["inspect", f"hub:{NAME}"]) == 0
    assert "dm on digits" in capsys.readouterr().out
    assert main(["export", f"hub:{NAME}", str(tmp_path / "png"), "--no-score", "--quiet"]) == 0
    monkeypatch.setattr("datastill.evaluation.evaluate", lambda sets, real, **_: found)
    arguments = ["evaluate", f"hub:{NAME}"]
    assert main(arguments) == 0
    assert "--out names a JSON file" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "e.json"), "--quiet"]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["protocol"] == "test-v1"
    assert main(["privacy", f"hub:{NAME}", "--quiet"]) == 2
    assert "datastill pull me/" in capsys.readouterr().err
    assert main(["push", f"hub:{NAME}", "you/again", "--quiet"]) == 0
    assert files_of(hub, "you/again")[TENSORS] == files_of(hub)[TENSORS]


def test_a_link_in_a_set_publishes_nothing_of_this_machine(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    small().save(tmp_path / "x")
    (tmp_path / "x" / "labels").mkdir()
    (tmp_path / "x" / "labels" / "bank.json").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="a link that leads out of the set"):
        push_to_hub(load_distilled(tmp_path / "x"), NAME)
    assert NAME not in hub.repositories


def test_images_that_are_no_pictures_and_pairs(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Images of 2 channels"):
        push_to_hub(small(channels=2), NAME)
    assert NAME not in hub.repositories
    one = small(3, classes=1)
    one.labels = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    more = {"labels": "soft", "label_kind": "pairs", "captions": ["a", "b", "c"]}
    pairs = replace(one, manifest={**one.manifest, **more}, extra={"classes": torch.zeros(3, dtype=torch.long)})
    push_to_hub(pairs, NAME)
    data = datasets.load_dataset(NAME, split="train", cache_dir=str(tmp_path / "hf"))
    assert data["caption"] == ["a", "b", "c"]
    assert torch.allclose(torch.tensor(data["pairs"][:]), one.labels)
    assert torch.equal(load_distilled(f"hub:{NAME}").labels, one.labels)
