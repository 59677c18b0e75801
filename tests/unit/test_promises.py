"""Promises that a reader with fresh eyes found broken once: each is held from here on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import datastill
from datastill import distill, evaluate, load_real
from datastill.core.context import Context
from datastill.core.errors import InputError, Interrupted
from datastill.core.plan import Callback
from datastill.data import RealSet
from datastill.evaluation.check import Check

SMALL = {"network": "convnet:width=4,depth=1", "steps": 4, "real_batch": 8}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


class Standardized(torch.nn.Module):
    """Standardizes features over the batch, without any norm layer that would tell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(64, 8)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.body(x.flatten(1))
        return self.head((f - f.mean(0)) / (f.std(0) + 1e-3))


class Dropping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(64, 16)
        self.head = torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.dropout(self.body(x.flatten(1)).relu(), 0.5, self.training))


def test_a_network_that_couples_samples_in_its_own_way_sees_whole_batches(
    digits: RealSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ipc": 2, "network": Standardized, "steps": 3, "real_batch": 8}
    whole = distill("dm", digits, **settings).images
    monkeypatch.setattr(Context, "chunk", 4)
    assert torch.equal(whole, distill("dm", digits, **settings).images)


def test_dropout_is_seeded_too(digits: RealSet) -> None:
    settings = {"ipc": 1, "network": Dropping, "steps": 3, "real_batch": 8}
    torch_state = torch.get_rng_state()
    one, two = (distill("dm", digits, **settings).images for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, distill("dm", digits, seed=1, **settings).images)
    assert torch.equal(torch_state, torch.get_rng_state())


def test_only_sets_of_one_kind_are_pooled(digits: RealSet) -> None:
    one = distill("random", digits, ipc=1)
    with pytest.raises(InputError, match="more than once"):
        evaluate([one, one], digits)
    with pytest.raises(InputError, match="images per class"):
        evaluate([one, distill("random", digits, ipc=2)], digits)
    with pytest.raises(InputError, match="method"):
        evaluate([one, distill("dm", digits, ipc=1, **SMALL)], digits)
    with pytest.raises(InputError, match="space"):
        evaluate([one, distill("random", load_real("digits", space="raw"), ipc=1)], digits)


@pytest.mark.parametrize("seed", [1.5, "a", True])
def test_seeds_are_whole_numbers(digits: RealSet, seed: object) -> None:
    with pytest.raises(InputError, match="seed"):
        distill("random", digits, ipc=1, seed=seed)


@pytest.mark.parametrize(
    "values",
    [{"image_lr": float("inf")}, {"image_lr": "x"}, {"image_momentum": -3.0}, {"image_momentum": float("nan")}],
)
def test_values_out_of_range_leave_nothing_behind(digits: RealSet, tmp_path: Path, values: dict) -> None:
    with pytest.raises(InputError, match="image_"):
        distill("dm", digits, ipc=1, out=tmp_path / "run", **{**SMALL, **values})
    assert not (tmp_path / "run").exists()


def test_a_budget_and_steps_exclude_each_other(digits: RealSet) -> None:
    with pytest.raises(InputError, match="budget"):
        distill("dm", digits, ipc=1, budget=1.0, **SMALL)


def test_a_folder_of_the_users_is_not_overwritten(digits: RealSet, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        distill("random", digits, ipc=1, out=tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not empty"):
        distill("random", digits, ipc=1, out="")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_run_inside_its_data_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / name / f"{i}.png")
    with pytest.raises(InputError, match="inside the data"):
        distill("random", str(tmp_path), ipc=1, out=tmp_path / "runs" / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ant", "bee"]


def test_a_resumed_run_may_watch_more(digits: RealSet, tmp_path: Path) -> None:
    class Stop(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 2:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        distill("dm", digits, ipc=1, out=tmp_path / "run", callbacks=[Stop()], **SMALL)
    check = Check(2, images=50)
    distill("dm", digits, ipc=1, out=tmp_path / "run", resume=True, callbacks=[check], **SMALL)
    assert [step for step, _ in check.accuracies] == [4]


def test_the_error_is_importable() -> None:
    assert datastill.InputError is InputError
