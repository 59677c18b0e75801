"""Classes that arrive in steps: their order, what is remembered, what is learned from it; sets that are extended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datastill import distill, load_distilled, load_real
from datastill.apps.continual.run import Stream, Streamed, continual
from datastill.apps.continual.stream import class_order, in_steps, of_classes
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.data import RealSet
from datastill.store.extend import extended
from datastill.store.folders import held

pytestmark = pytest.mark.usefixtures("short_protocols")

NETWORK = "convnet:width=8,depth=2"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def test_orders_are_the_published_ones() -> None:
    assert class_order(10, 0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert sorted(class_order(100, 4)) == list(range(100))
    assert class_order(100, 0) == np.random.RandomState(0).permutation(100).tolist()


def test_steps_cover_the_order_and_the_first_are_larger() -> None:
    assert in_steps(range(10), 4) == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    with pytest.raises(InputError, match="3 classes, which cannot arrive in 4 steps"):
        in_steps(range(3), 4)


def test_some_classes_of_a_set(digits: RealSet) -> None:
    part = of_classes(digits, [7, 2])
    assert part.class_names == ("7", "2")
    assert part.space == digits.space
    assert part.test is not None
    assert digits.test is not None
    first = (digits.labels == 2).nonzero()[0]
    assert torch.equal(part.batch((part.labels == 1).nonzero()[0]).x, digits.batch(first).x)
    assert len(part.test) == int(((digits.test.labels == 7) | (digits.test.labels == 2)).sum())


class TestExtended:
    def of(self, digits: RealSet, classes: list[int], ipc: int = 2, seed: int = 0, method: str = "random") -> Any:
        return distill(method, of_classes(digits, classes), ipc=ipc, seed=seed, network=NETWORK)

    def test_by_other_classes(self, digits: RealSet, tmp_path: Path) -> None:
        one, more = self.of(digits, [7, 2]), self.of(digits, [5])
        made = extended(one, more)
        assert made.class_names == ("7", "2", "5")
        assert torch.equal(made.images[:4], one.images)
        assert torch.equal(made.images[4:], more.images)
        assert made.hard_labels.tolist() == [0, 0, 1, 1, 2, 2]
        made.save(tmp_path / "made")
        again = load_distilled(tmp_path / "made")
        assert torch.equal(again.images, made.images)
        assert again.class_names == made.class_names
        assert "extended by 1 more classes, by random" in again.record.notes

    def test_by_more_images_of_the_same(self, digits: RealSet, tmp_path: Path) -> None:
        one, more = self.of(digits, [7, 2]), self.of(digits, [7, 2], ipc=1, seed=1)
        made = extended(one, more)
        assert made.ipc == 3
        assert made.hard_labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert torch.equal(made.images[[0, 1, 3, 4]], one.images)
        assert torch.equal(made.images[[2, 5]], more.images)
        made.save(tmp_path / "made")
        assert load_distilled(tmp_path / "made").ipc == 3

    def test_what_does_not_fit_is_refused(self, digits: RealSet) -> None:
        one = self.of(digits, [7, 2])
        tiles = distill("mosaic", of_classes(digits, [5]), ipc=2, network=NETWORK, factor=2)
        other = load_real("digits", space="raw")
        for more, said in (
            (self.of(digits, [2, 5]), "share some classes"),
            (self.of(digits, [5], ipc=3), "2 and 3 images of each class"),
            (tiles, "in different ways"),
            (self.of(other, [5]), "other Spaces"),
        ):
            with pytest.raises(InputError, match=said):
                extended(one, more)


def settings(**more: Any) -> dict[str, Any]:
    return {"network": NETWORK, "settings": {"dm": {"steps": 20, "real_batch": 32}}, **more}


def test_memory_stays_and_grows(digits: RealSet, tmp_path: Path) -> None:
    stream = Stream(steps=3, ipc=2, networks=1, protocol="dsa-quick-v1")
    found = continual(digits, ["random", "dm"], stream, out=tmp_path, **settings())
    order = class_order(10, 0)
    assert [found.cells[f"dm|0|{t}"]["seen"] for t in range(3)] == [order[:4], order[:7], order]
    memories = [load_distilled(tmp_path / "memories" / f"dm-0-{t}") for t in range(3)]
    for t, classes in enumerate((4, 7, 10)):
        assert len(memories[t].images) == 2 * classes
        assert torch.equal(memories[t].images, memories[2].images[: 2 * classes])
    again = continual(digits, ["random", "dm"], stream, **settings())
    assert [again.means(m) for m in ("random", "dm")] == [found.means(m) for m in ("random", "dm")]


def test_a_stream_that_was_stopped_goes_on_to_the_same_numbers(digits: RealSet, tmp_path: Path) -> None:
    stream = Stream(steps=3, ipc=1, networks=1, protocol="dsa-quick-v1")
    whole = continual(digits, ["dm"], stream, out=tmp_path / "whole", **settings())

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        continual(digits, ["dm"], stream, out=tmp_path / "parts", told=stop, **settings())
    parts = continual(digits, ["dm"], stream, out=tmp_path / "parts", **settings())
    assert parts.means("dm") == whole.means("dm")
    with pytest.raises(InputError, match="holds a run with ipc = 1, not 2"):
        continual(digits, ["dm"], Stream(steps=3, ipc=2, networks=1), out=tmp_path / "parts", **settings())


def test_bad_input_is_refused_before_anything_is_distilled(digits: RealSet) -> None:
    for methods, stream, said in (
        (["random"], Stream(steps=11), "cannot arrive in 11 steps"),
        (["nosuch"], Stream(), "nosuch"),
        (["random", "random"], Stream(), "named twice"),
        (["random"], Stream(protocol="nosuch"), "nosuch"),
    ):
        with pytest.raises(InputError, match=said):
            continual(digits, methods, stream)


def test_a_folder_is_for_one_run_at_a_time(digits: RealSet, tmp_path: Path) -> None:
    stream = Stream(steps=1, ipc=1, networks=1, protocol="dsa-quick-v1")
    with held(tmp_path), pytest.raises(InputError, match="is in use"):
        continual(digits, ["random"], stream, out=tmp_path, network=NETWORK)
    continual(digits, ["random"], stream, out=tmp_path, network=NETWORK)


@pytest.mark.parametrize("damage", [{"accuracies": []}, {"accuracies": [1.5]}, {"seconds": "long"}])
def test_a_result_that_was_edited_is_refused(digits: RealSet, tmp_path: Path, damage: dict[str, Any]) -> None:
    stream = Stream(steps=1, ipc=1, networks=1, protocol="dsa-quick-v1")
    found = continual(digits, ["random"], stream, out=tmp_path, network=NETWORK).to_dict()
    found["cells"]["random|0|0"] |= damage
    (tmp_path / "continual.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="is damaged"):
        continual(digits, ["random"], stream, out=tmp_path, network=NETWORK)


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes, size):
        super().__init__()
        self.body = nn.Flatten()
        self.head = nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, x):
        return self.head(self.body(x))
"""


def test_a_run_with_other_code_does_not_go_on(digits: RealSet, tmp_path: Path) -> None:
    """The cells of a network would stand beside those of another one of its name."""
    stream, mine = Stream(steps=1, ipc=1, networks=1, protocol="dsa-quick-v1"), tmp_path / "stream_net.py"
    mine.write_text(CODE)
    first = continual(digits, ["random"], stream, out=tmp_path / "c", network=f"{mine}:Net")
    again = continual(digits, ["random"], stream, out=tmp_path / "c", network=f"{mine}:Net")
    assert again.to_dict() == first.to_dict()
    mine.write_text(CODE.replace("self.body(x)", "-self.body(x)"))
    with pytest.raises(InputError, match=r"other code in stream_net\.py"):
        continual(digits, ["random"], stream, out=tmp_path / "c", network=f"{mine}:Net")


def test_the_verdict_compares_nothing_with_itself() -> None:
    cells = {"a|b.py|0|0": {"accuracies": [0.5], "seen": [0], "seconds": 3.0},
             "random|0|0": {"accuracies": [0.75], "seen": [0], "seconds": 0.0}}  # fmt: skip
    found = Streamed(cells, {"steps": 1, "orders": 1, "methods": ["a|b.py", "random"]})
    assert found.verdict == "After the last step random is highest with 75.0 %."
    assert found.rows()[0] == ["a|b.py", "50.0", "3"]


def test_the_command_writes_numbers_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["continual", "random", "--data", "digits", "--steps", "2", "--ipc", "1", "--networks", "1", "--out",
            str(tmp_path / "c"), "--network", NETWORK]  # fmt: skip
    assert main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "c" / "continual.json").read_text())
    assert "image/svg+xml" in (tmp_path / "c" / "continual.html").read_text()
    assert main([*args, "--quiet"]) == 0
    assert "10 classes" in capsys.readouterr().out


@pytest.mark.slow
def test_distilled_memory_beats_random(digits: RealSet) -> None:
    """By three points over two orders, five steps of two classes."""
    found = continual(
        digits, ["random", "dm"], Stream(steps=5, ipc=5, orders=2, networks=2, protocol="dsa-quick-v1"),
        settings={"dm": {"steps": 100, "real_batch": 32}}, network="convnet:width=32,depth=2",
    )  # fmt: skip
    assert found.means("dm")[-1] - found.means("random")[-1] >= 0.03


@pytest.mark.parametrize("method", ["kip", "sre2l"])
def test_labels_of_one_step_alone_are_refused_before_the_first(digits: RealSet, tmp_path: Path, method: str) -> None:
    """Learned labels, and a teacher that has seen two classes: neither can label the memory of all."""
    with pytest.raises(InputError, match="know the classes of one step alone"):
        continual(digits, [method], Stream(steps=5, ipc=2, networks=1), out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_set_with_a_teacher_is_not_extended(digits: RealSet) -> None:
    asked = {"ipc": 1, "network": "convnet:width=8,depth=2,norm=batch", "candidates": 20, "squeeze_passes": 12}
    with_teacher = distill("rded", digits, **asked)
    with pytest.raises(InputError, match="teacher's labels are not extended"):
        extended(with_teacher, with_teacher)
