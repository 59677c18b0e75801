"""Redundancy, coverage and nearest real images on sets whose right values are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import datastill
from datastill import diagnose
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data.real import RealSet
from datastill.store.artifact import DistilledSet

EACH = 40


@pytest.fixture(scope="module")
def real() -> RealSet:
    """Two classes of 40 random images of 4 x 4."""
    x = torch.rand(2 * EACH, 1, 4, 4, generator=Rng(1).generator("real"))
    return datastill.load_real((x, torch.arange(2 * EACH) % 2), space="raw", holdout=0)


def a_set(real: RealSet, pixels: Tensor, labels: Tensor) -> DistilledSet:
    """A distilled set of these images, as good as any."""
    like = datastill.distill("random", real, ipc=len(labels) // 2, network="convnet:width=2,depth=1")
    return DistilledSet({"images": pixels.clone()}, labels.clone(), like.space, dict(like.manifest))


def test_the_real_set_itself_covers_everything_and_is_all_copies(real: RealSet) -> None:
    order = real.labels.argsort(stable=True)
    found = diagnose(a_set(real, real.pixels(order), real.labels[order]), real)
    assert found.coverage == 1
    assert found.by_class.tolist() == [1, 1]
    assert found.copies == 2 * EACH
    assert found.neighbors.index.tolist() == order.tolist()
    assert found.spread == pytest.approx(1, abs=1e-6)
    assert found.redundancy == pytest.approx(0, abs=1e-6)


def test_far_away_images_cover_nothing(real: RealSet) -> None:
    far = torch.stack([torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.ones(1, 4, 4)])
    far[1, 0, 0, 0] = far[3, 0, 0, 0] = 0.5
    dim = datastill.load_real((0.3 + 0.2 * real.pixels(torch.arange(2 * EACH)), real.labels), space="raw", holdout=0)
    found = diagnose(a_set(dim, far, torch.tensor([0, 0, 1, 1])), dim)
    assert found.coverage == 0
    assert found.copies == 0
    assert float(found.nearness.min()) > 4
    assert 0.4 < found.random_coverage < 0.9


def test_an_image_twice_is_redundant(real: RealSet) -> None:
    index = torch.cat([real.class_index(0)[[0, 0, 1, 1]], real.class_index(1)[[2, 2, 3, 3]]])
    found = diagnose(a_set(real, real.pixels(index), real.labels[index]), real)
    assert found.spread == 0
    assert found.redundancy == 1


def test_a_half_way_set_is_half_as_far_apart(real: RealSet) -> None:
    """Random images drawn half-way to their class's mean: distances between them are half of what they were."""
    index = torch.cat([real.class_index(c)[:20] for c in (0, 1)])
    pixels, y = real.pixels(index), real.labels[index]
    means = torch.stack([real.pixels(real.class_index(c)).mean(0) for c in (0, 1)])
    whole = diagnose(a_set(real, pixels, y), real).spread
    half = diagnose(a_set(real, (pixels + means[y]) / 2, y), real).spread
    assert whole is not None
    assert half == pytest.approx(whole / 2, rel=1e-5)


def test_numbers_against_naive_loops(real: RealSet) -> None:
    """Coverage and apartness of one class, pair by pair."""
    index = torch.cat([real.class_index(c)[:4] for c in (0, 1)])
    pixels = (real.pixels(index) + 0.1).clamp(0, 1)
    found = diagnose(a_set(real, pixels, real.labels[index]), real)
    members = real.class_index(0)
    images, ours = real.pixels(members).flatten(1).double().numpy(), pixels[:4].flatten(1).double().numpy()
    covered = 0
    for i, image in enumerate(images):
        others = sorted(math.dist(image, other) for j, other in enumerate(images) if j != i)
        covered += min(math.dist(image, one) for one in ours) <= others[math.ceil(EACH / 4) - 1]
    assert float(found.by_class[0]) == pytest.approx(covered / EACH)
    nearest = [min(range(EACH), key=lambda j, one=one: math.dist(one, images[j])) for one in ours]  # type: ignore[misc]
    assert found.neighbors.index[:4].tolist() == members[nearest].tolist()
    assert found.neighbors.distance[0] == pytest.approx(math.dist(ours[0], images[nearest[0]]) / np.sqrt(16), rel=1e-5)


def test_images_of_one_stored_image_are_one_subset() -> None:
    """Four tiles of one canvas are near each other by construction: only other canvases count."""
    real = datastill.load_real("digits")
    made = datastill.distill("mosaic", real, ipc=1, network="convnet:width=2,depth=1")
    assert len(made.images) == 40
    assert diagnose(made, real).spread is None
    two = datastill.distill("mosaic", real, ipc=2, network="convnet:width=2,depth=1")
    assert diagnose(two, real).spread is not None


def test_another_way_to_look(real: RealSet) -> None:
    """Where all images look the same, all of them cover and none is apart."""
    index = torch.cat([real.class_index(c)[:4] for c in (0, 1)])
    found = diagnose(a_set(real, real.pixels(index), real.labels[index]), real, look=lambda x: x.flatten(1)[:, :1] * 0)
    assert found.coverage == found.random_coverage == 1


def test_one_image_per_class_has_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datastill.distill("random", "digits", ipc=1, network="convnet:width=2,depth=1", out=tmp_path / "run")
    assert main(["inspect", str(tmp_path / "run"), "--diagnose", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["redundancy"] is None
    assert told["copies"] == len(told["nearest_real"]) == 10
    assert main(["inspect", str(tmp_path / "run"), "--diagnose"]) == 0
    shown = capsys.readouterr().out
    for word in ("one image per class", "any image covers it", "as near as real images are to each other"):
        assert word in shown
    assert main(["inspect", str(tmp_path / "run"), "--data", "digits"]) == 2
    assert "add --diagnose" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(real: RealSet) -> None:
    made = datastill.distill("random", real, ipc=1, network="convnet:width=2,depth=1")
    with pytest.raises(InputError, match="classes"):
        diagnose(made, "digits")
    single = datastill.load_real((torch.rand(2, 1, 4, 4, generator=Rng(0).generator("x")), torch.arange(2)),
                                 space="raw", holdout=0)  # fmt: skip
    with pytest.raises(InputError, match="two real images"):
        diagnose(made, single)


def test_pixels_that_are_not_finite_have_no_distance(real: RealSet) -> None:
    made = datastill.distill("random", real, ipc=2, network="convnet:width=4,depth=1")
    made.codes["images"][0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        diagnose(made, real)


def test_a_class_with_fewer_real_images_than_synthetic_ones_is_not_compared(real: RealSet) -> None:
    """As many random images do not exist there: whatever its images are, the numbers are the other class's."""
    order = torch.cat([torch.arange(0, 2 * EACH, 2), torch.arange(1, 7, 2)])
    few = datastill.load_real((real.pixels(order), real.labels[order]), space="raw", holdout=0)
    made = torch.rand(10, 1, 4, 4, generator=Rng(2).generator("made"))
    labels = torch.arange(2).repeat_interleave(5)
    found = diagnose(a_set(real, made, labels), few)
    other = diagnose(a_set(real, torch.cat([made[:5], torch.full((5, 1, 4, 4), 0.5)]), labels), few)
    assert found.uncompared == other.uncompared == 1
    assert (found.spread, found.coverage, found.random_coverage) == (
        other.spread, other.coverage, other.random_coverage
    )  # fmt: skip
    assert found.coverage == found.by_class[0]
    assert 0 < found.random_coverage < 1
    assert dict(found.rows())["not compared"].startswith("1 class ")
    none = diagnose(a_set(real, made, labels), few.subset(torch.tensor([0, 1, 2, 40, 41, 42])))
    assert none.uncompared == 2
    assert (none.spread, none.redundancy, none.random_coverage) == (None, None, None)
    assert none.to_dict()["coverage_of_random"] is None
    assert "no class has as many" in dict(none.rows())["redundancy"]


def test_many_synthetic_images_are_compared_with_as_many_real_ones(
    real: RealSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastill.report.diagnostics.STAND_FOR", 4)
    found = diagnose(a_set(real, real.pixels(torch.arange(40)), real.labels[:40]), real)
    assert found.uncompared == 0, "twenty of forty, not of the four that would stand for them"
