"""The method that is taken where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datastill import distill, load_distilled, load_real
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.distillation.job import prepare_job


def images_of(side: int, per_class: int, channels: int = 3) -> RealSet:
    generator = Rng(0).generator("images")
    x = torch.randint(0, 256, (2 * per_class, channels, side, side), generator=generator, dtype=torch.uint8)
    return load_real((x, torch.arange(2).repeat(per_class)), holdout=0)


@pytest.mark.parametrize(
    ("side", "per_class", "ipc", "method", "factor"),
    [
        (8, 40, 1, "dm-fast", 1),
        (32, 10, 1, "dm-fast", 1),
        (16, 40, 1, "stages", 1),
        (28, 40, 1, "stages", 4),
        (64, 40, 3, "stages", 4),
        (64, 40, 4, "stages", 3),
        (64, 40, 10, "stages", 3),
        (64, 40, 11, "stages", 2),
    ],
)
def test_the_rule_is_the_one_on_its_page(side: int, per_class: int, ipc: int, method: str, factor: int) -> None:
    job = prepare_job("auto", images_of(side, per_class), ipc=ipc)
    assert job.method_name == method
    assert getattr(job.own_plan.decoder, "factor", 1) == factor
    if method == "stages":
        given = prepare_job("stages", images_of(side, per_class), ipc=ipc, factor=5)
        assert given.own_plan.decoder.factor == 5  # type: ignore[attr-defined]
        gray = prepare_job("auto", images_of(side, per_class, channels=1), ipc=ipc)
        assert getattr(gray.own_plan.decoder, "factor", 1) == min(factor, 2)
    assert any(note.startswith(f"{method} was chosen: ") for note in job.notes)


@pytest.mark.parametrize(
    ("network", "ipc", "method"),
    [
        ("convnet:width=8,norm=batch", 1, "dm-fast"),
        ("convnet:width=8,norm=batch", 10, "dm-fast"),
        ("convnet:width=8,norm=batch", 11, "stages"),
        ("convnet:width=8,norm=group", 1, "stages"),
    ],
)
def test_few_images_for_batch_norm_are_made_on_another_network(network: str, ipc: int, method: str) -> None:
    job = prepare_job("auto", images_of(32, 40), ipc=ipc, network=network)
    assert job.method_name == method
    told = "convnet:width=8,norm=batch has batch norm"
    assert any(told in note for note in job.notes) == (method == "dm-fast")


def test_the_run_says_what_it_chose_and_its_record_names_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "--data", "digits", "--budget", "1s", "--out", str(tmp_path / "run")]) == 0
    made = load_distilled(tmp_path / "run")
    assert made.manifest["method"] == "dm-fast"
    assert "dm-fast was chosen: images of 8 pixels" in " ".join(made.manifest["notes"])
    assert "dm-fast was chosen" in " ".join(capsys.readouterr().err.split())


def test_values_belong_to_a_method_that_is_named() -> None:
    with pytest.raises(InputError, match="auto has no hyper-parameter 'image_lr'"):
        distill("auto", load_real("digits"), ipc=1, image_lr=1.0)
