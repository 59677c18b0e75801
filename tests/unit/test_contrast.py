"""dm-fast for networks with batch norm: a ConvNet stands in, and images keep the contrast of real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datastill import distill, load_distilled, load_real
from datastill.core.errors import InputError
from datastill.core.plan import Task
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.decoders.contrast import Contrast
from datastill.methods.dm_fast import DMFast
from datastill.models import resolve_network
from datastill.store.rendering import decoder_of

NORMED = "convnet:width=8,depth=2,norm=batch"


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=Rng(0).generator("x"))


def colors() -> RealSet:
    x = torch.randint(0, 256, (40, 3, 8, 8), generator=Rng(1).generator("x"), dtype=torch.uint8)
    x[:20, 1] //= 4
    return load_real((x, torch.arange(2).repeat_interleave(20)), holdout=0)


def test_images_get_the_means_and_the_spread_of_their_class() -> None:
    """Against a loop over images; the order of pixels stays."""
    real, y = colors(), torch.tensor([1, 0, 0])
    images = 5 * random(3, 3, 8, 8) + 2
    before = images.clone()
    Contrast.of(real).restore(images, y)
    for image, old, c in zip(images, before, y.tolist(), strict=True):
        same = [real.batch(torch.tensor([i])).x[0] for i in real.class_index(c).tolist()]
        means = torch.stack([s.mean((1, 2)) for s in same]).mean(0)
        spread = sum(float((s - s.mean((1, 2), keepdim=True)).square().mean().sqrt()) for s in same) / len(same)
        assert torch.allclose(image.mean((1, 2)), means, atol=1e-5)
        assert float((image - means[:, None, None]).square().mean().sqrt()) == pytest.approx(spread, rel=1e-4)
        assert torch.equal(image.flatten(1).argsort(1), old.flatten(1).argsort(1))
    again = images.clone()
    Contrast.of(real).restore(again, y)
    assert torch.allclose(again, images, atol=1e-5)


def test_brightness_and_contrast_are_what_is_taken_away() -> None:
    real, y, images = colors(), torch.tensor([0, 1]), random(2, 3, 8, 8)
    other = 3 * images + torch.tensor([1.0, -2.0, 0.5])[:, None, None]
    for x in (images, other):
        Contrast.of(real).restore(x, y)
    assert torch.allclose(images, other, atol=1e-5)


def test_a_flat_image_stays_finite() -> None:
    images = torch.zeros(1, 3, 8, 8)
    Contrast.of(colors()).restore(images, torch.tensor([0]))
    assert images.isfinite().all()


@pytest.mark.parametrize(
    ("network", "width", "matched"),
    [
        (NORMED, 16, "convnet:width=16,depth=2,padding=1"),
        ("resnet18:norm=batch", 16, "convnet:width=16,depth=2,padding=1"),
        (NORMED, 0, NORMED),
        ("convnet:width=8,depth=2", 4, "convnet:width=4,depth=2"),
        ("resnet18:norm=group", 16, "resnet18:norm=group"),
    ],
)
def test_what_is_matched_on(digits: RealSet, network: str, width: int, matched: str) -> None:
    """Networks without batch norm are used as before."""
    factory = resolve_network(network, channels=1, classes=10, size=(8, 8))
    method, task = DMFast(steps=1, width=width), Task(digits, 1, factory, 0)
    plan = method.build(task)
    expected = resolve_network(matched, channels=1, classes=10, size=(8, 8))
    assert plan.network is not None
    assert plan.network.describe() == expected.describe()
    of_statistics = 16 if expected.couples_samples else 0
    assert method.macs_per_step(task) == expected.macs * (8 + of_statistics + 3) * 10
    stands_in = factory.couples_samples and width > 0
    assert (plan.decoder.contrast is not None) == stands_in  # type: ignore[attr-defined]


def test_the_run_keeps_contrast_and_records_the_network_that_was_named(digits: RealSet) -> None:
    made = distill("dm-fast", digits, ipc=2, network=NORMED, steps=30)
    free = distill("dm-fast", digits, ipc=2, network="convnet:width=32,depth=2,padding=1", steps=30)
    assert made.manifest["network"]["spec"] == NORMED
    means, spread = moments(made.images)
    kept = Contrast.of(digits)
    assert torch.allclose(means, kept.means[made.targets, 0], atol=1e-4)
    assert torch.allclose(spread, kept.spread[made.targets], rtol=1e-3)
    assert float((moments(free.images)[1] / kept.spread[free.targets]).mean()) > 1.05, (
        "contrast drifts where it is not kept: 1.08"
    )


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.mean((1, 2, 3)), images.std((1, 2, 3), unbiased=False)


def test_a_run_says_what_stands_in() -> None:
    made = distill("dm-fast", "digits", ipc=1, steps=1, network="convnet:norm=batch,width=8,depth=2", compile="off")
    assert any("has batch norm" in note and "brightness and contrast" in note for note in made.manifest["notes"])
    plain = distill("dm-fast", "digits", ipc=1, steps=1, network="convnet:width=8,depth=2", compile="off")
    assert not any("batch norm" in note for note in plain.manifest["notes"])


def test_a_set_tells_that_its_contrast_is_that_of_real_images(digits: RealSet, tmp_path: Path) -> None:
    """And is read back without real images; a plain set tells nothing of it."""
    asked = {"ipc": 1, "steps": 2, "real_batch": 8, "network": NORMED}
    made = distill("dm-fast", digits, **asked, out=tmp_path / "x")
    assert made.manifest["decoder"] == {"decoder": "pixels", "clamp": False, "contrast": "real"}
    assert torch.equal(load_distilled(tmp_path / "x").images, made.images)
    assert json.loads((tmp_path / "x" / "config.json").read_text())["decoder"]["contrast"] == "real"
    assert "contrast" not in distill("random", digits, ipc=1).manifest["decoder"]
    with pytest.raises(InputError, match="contrast of real images or none, not 3"):
        decoder_of({"decoder": "pixels", "clamp": False, "contrast": 3})
