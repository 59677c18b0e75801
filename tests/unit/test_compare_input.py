"""compare refuses what cannot be used in one sentence, before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import datastill
from datastill import load_real
from datastill.core.errors import InputError
from datastill.experiments import Comparison, compare, load_comparison

NETWORK = "convnet:width=8,depth=1"
METHODS = ["random"]
SMALL: dict = {"ipc": [1, 2], "seeds": 1, "networks": 1, "network": NETWORK, "protocol": "dsa-quick-v1"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(METHODS, "digits", out=tmp_path_factory.mktemp("compare"), **SMALL)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 3}, "seeds"),
        ({"ipc": [1]}, "ipc"),
        ({"networks": 3}, "networks"),
        ({"protocol": "dc-v1"}, "protocol"),
        ({"network": "convnet:width=4,depth=1"}, "network"),
        ({"budget": 3.0}, "budget"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"precision": "bf16"}, "precision"),
        ({"methods": ["random", "dm"]}, "methods"),
    ],
)
def test_another_configuration_is_refused_by_its_field(done: Comparison, change: dict, named: str) -> None:
    assert done.folder is not None
    before = (done.folder / "plan.json").read_bytes()
    asked = {"methods": METHODS, **SMALL, **change}
    with pytest.raises(InputError, match=rf"(its|names no) {named}[., ]"):
        compare(asked.pop("methods"), "digits", out=done.folder, **asked)
    assert (done.folder / "plan.json").read_bytes() == before


BASE: dict = {"methods": ["random"], "real": "digits", "ipc": 1, "seeds": 1, "networks": 1, "network": NETWORK}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": []}, "Name the methods"),
        ({"methods": ["dmm"]}, "'dmm'.*'dm'"),
        ({"methods": ["dm", "dm"]}, "given twice"),
        ({"methods": [3]}, "by name"),
        ({"ipc": 0}, "ipc must be a whole number of at least 1"),
        ({"ipc": [1, 1]}, "different"),
        ({"ipc": []}, "one or more"),
        ({"ipc": 1000}, "fewer than"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, -1]}, "seeds"),
        ({"networks": 0}, "networks"),
        ({"protocol": "dc-v2"}, "dc-v1"),
        ({"budget": 0.0}, "above 0"),
        ({"settings": {"dm": {"steps": 3}}}, "no method here"),
        ({"methods": ["dm"], "settings": {"dm": {"stepps": 3}}}, "stepps"),
        ({"methods": ["dm"], "settings": {"dm": {"image_lr": "fast"}}}, "dm.image_lr must be a number above 0"),
        ({"methods": ["dm"], "settings": {"dm": {"steps": 2.5}}}, "dm.steps must be a whole number"),
        ({"methods": ["dm"], "recipe": "dm/cifar10-ipc1"}, "not for random"),
        ({"network": "convnett"}, "convnett"),
        ({"device": "warp"}, "warp"),
        ({"workers": 0}, "workers"),
        ({"real": "./nowhere"}, "nowhere"),
        ({"real": ["digits", "digits"]}, "given twice"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_run(tmp_path: Path, change: dict, words: str) -> None:
    asked = {**BASE, **change}
    with pytest.raises(InputError, match=words) as caught:
        compare(asked.pop("methods"), asked.pop("real"), out=tmp_path / "out", **asked)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.json"))


def test_workers_need_what_they_can_load(tmp_path: Path) -> None:
    x, y = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    asked = {**BASE, "workers": 2, "out": tmp_path}
    methods, _ = asked.pop("methods"), asked.pop("real")
    with pytest.raises(InputError, match="workers=1"):
        compare(methods, (x, y), **asked)
    real = load_real("digits")
    with pytest.raises(InputError, match="workers=1"):
        compare(methods, real.subset(torch.arange(500)), **asked)
    with pytest.raises(InputError, match="by its name"):
        compare(methods, "digits", **{**asked, "network": torch.nn.Linear})
    with pytest.raises(InputError, match="no test images; give it a test split"):
        compare(methods, load_real((x, y), holdout=0), **{**asked, "workers": 1})


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    datastill.distill("random", "digits", ipc=1, network=NETWORK, out=tmp_path / "run")
    with pytest.raises(InputError, match="distilled set"):
        compare("random", "digits", ipc=1, seeds=1, networks=1, network=NETWORK, out=tmp_path / "run")
    with pytest.raises(InputError, match="holds no comparison"):
        load_comparison(tmp_path)
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(InputError, match="not the plan"):
        load_comparison(tmp_path)
    with pytest.raises(InputError, match="not the plan"):
        compare("random", "digits", ipc=1, seeds=1, networks=1, network=NETWORK, out=tmp_path)


def test_protocols_that_take_more_than_images_and_labels_are_refused_early(tmp_path: Path) -> None:
    for protocol, told in (("dd-v1", "steps that dd learns"), ("soft-quick-v1", "come without a teacher")):
        with pytest.raises(InputError, match=told):
            compare(["dm"], "digits", ipc=1, protocol=protocol, out=tmp_path / "out")
    assert not (tmp_path / "out" / "plan.json").exists()
