"""Integrated gradients: what is exact, what they are against, and pictures of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datastill import load_real
from datastill.apps.attribution.attribute import DISTILLED, WRONG, attribute, baselines_of, mean_image
from datastill.apps.attribution.coarse import coarse, families
from datastill.apps.attribution.gradients import completeness, integrated_gradients, score
from datastill.apps.attribution.page import colored
from datastill.apps.attribution.quality import area, curve, undecided
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet
from datastill.models import resolve_network

pytestmark = pytest.mark.usefixtures("short_protocols", "same_weights")


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def smooth() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 20), nn.Tanh(), nn.Linear(20, 5)).double()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=Rng(seed).generator("images"), dtype=torch.float64)


TARGET = torch.tensor([0, 4, 2])


def test_a_linear_network_is_exact_with_one_step() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 5)).double()
    x, baseline = images(3), images(1, 1)
    found = integrated_gradients(network, x, baseline, TARGET, count=1)
    wanted = network[1].weight[TARGET].view(3, 2, 4, 4) * (x - baseline)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert completeness(network, x, baseline, TARGET, found).max() < 1e-10


@pytest.mark.parametrize("kind", ["logit", "log-probability"])
def test_captum_agrees(digits: RealSet, kind: str) -> None:
    """On a ConvNet and real images; it takes one batch of points of the path after the other."""
    captum = pytest.importorskip("captum.attr")
    network = resolve_network("convnet:width=8,depth=2", channels=1, classes=10, size=(8, 8))(3).eval()
    batch, baseline = digits.batch(torch.arange(6)), digits.batch(torch.tensor([100])).x
    scores = score(network, kind)
    found = integrated_gradients(scores, batch.x, baseline, batch.y, count=40)
    theirs = captum.IntegratedGradients(scores).attribute(
        batch.x, baseline, target=batch.y, n_steps=40, method="gausslegendre", internal_batch_size=60
    )
    assert float((found - theirs).abs().max() / theirs.abs().max()) < 1e-4


def test_it_is_the_sum_of_many_small_steps_and_complete() -> None:
    network, x, baseline = smooth(), images(3), images(3, 1)
    found = integrated_gradients(network, x, baseline, TARGET, count=50)
    total = torch.zeros_like(x)
    for k in range(2000):
        between = (baseline + (k + 0.5) / 2000 * (x - baseline)).requires_grad_()
        total += torch.autograd.grad(network(between).gather(1, TARGET[:, None]).sum(), between)[0] / 2000
    assert torch.allclose(found, (x - baseline) * total, atol=1e-6)
    assert completeness(network, x, baseline, TARGET, found).max() < 0.01


def test_a_batch_is_a_loop_and_what_does_not_differ_gets_nothing() -> None:
    network, x, baseline = smooth(), images(3), images(3, 1)
    baseline[:, 0, 1, 2] = x[:, 0, 1, 2]
    found = integrated_gradients(network, x, baseline, TARGET)
    one_by_one = [integrated_gradients(network, *(v[i : i + 1] for v in (x, baseline, TARGET))) for i in range(3)]
    assert torch.allclose(found, torch.cat(one_by_one), atol=1e-12)
    assert (found[:, 0, 1, 2] == 0).all()
    assert (integrated_gradients(network, x, x, TARGET) == 0).all()


def test_two_networks_that_compute_the_same_have_the_same_attributions() -> None:
    network, x = smooth(), images(3)
    twin = nn.Sequential(nn.Flatten(), nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 5)).double()
    with torch.no_grad():  # every hidden unit twice, at half the weight
        for mine, theirs in ((twin[1].weight, network[1].weight), (twin[1].bias, network[1].bias)):
            mine.copy_(torch.cat([theirs, theirs]))
        twin[3].weight.copy_(torch.cat([network[3].weight, network[3].weight], dim=1) / 2)
        twin[3].bias.copy_(network[3].bias)
    one, other = (integrated_gradients(n, x, torch.zeros_like(x), TARGET) for n in (network, twin))
    assert torch.allclose(one, other, atol=1e-12)


def test_what_is_explained_is_no_probability() -> None:
    network, x = smooth(), images(2)
    assert torch.allclose(score(network, "log-probability")(x), network(x).log_softmax(1))
    with pytest.raises(InputError, match="not 'probability'"):
        score(network, "probability")


def test_removing_what_counts_lowers_the_class_faster_than_removing_what_does_not() -> None:
    """Of a network that sees the first channel's first row alone."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 5)).double()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[TARGET, :4] = 5.0
    x, fill = images(3).abs() + 1, torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    right = integrated_gradients(network, x, fill, TARGET, count=1)
    curves = [curve(network, x, TARGET, a, fill, 8, insert=insert) for a in (right, -right) for insert in (False, True)]
    deleted, inserted, deleted_late, inserted_late = (area(one) for one in curves)
    assert deleted < deleted_late
    assert inserted > inserted_late
    assert curves[0][0] == pytest.approx(float(network(x).softmax(1).gather(1, TARGET[:, None]).mean().detach()))
    assert area(torch.tensor([0.0, 1.0, 1.0])) == pytest.approx(0.75)
    assert undecided(lambda x: torch.zeros(len(x), 5), x) == pytest.approx(1.0)


def test_families_cover_the_classes(digits: RealSet) -> None:
    names, of_class = families(digits)
    assert of_class.tolist() == [0] * 5 + [1] * 5
    made = coarse(digits, names, of_class)
    assert made.classes == 2
    assert torch.equal(made.labels, (digits.labels >= 5).long())
    assert made.test is not None
    assert made.test.classes == 2
    for text, said in (
        ("0,1/2", "in none: 3, 4"),
        ("0,1", "two families or more"),
        ("0/0,1", "in two families"),
        ("a/b", "no class 'a'"),
    ):
        with pytest.raises(InputError, match=said):
            families(digits, text)
    with pytest.raises(InputError, match="families of classes that are known"):
        families(load_real((torch.rand(20, 1, 8, 8), torch.arange(20) % 2), holdout=0))


def test_baselines_are_of_the_own_family_and_of_another(digits: RealSet) -> None:
    x, family = digits.batch(torch.arange(4)).x, torch.tensor([0, 1, 1, 0])
    stored = torch.arange(4.0).view(2, 2, 1, 1, 1).expand(2, 2, 1, 8, 8)
    found = baselines_of(digits, x, stored, family, Rng(0).generator("noise"))
    assert found[DISTILLED][0, :, 0, 0, 0].tolist() == [0, 1, 1, 0]
    assert found[WRONG][1, :, 0, 0, 0].tolist() == [3, 2, 2, 3]
    assert torch.allclose(digits.space.decode(found["black"]), torch.zeros(1, 1, 8, 8), atol=1e-6)
    assert torch.allclose(digits.space.decode(found["mean image"]), mean_image(digits), atol=1e-6)
    assert colored(torch.zeros(1, 8, 8)).unique().tolist() == [1.0]


def test_all_of_it_with_several_images_of_a_family(digits: RealSet) -> None:
    """The network knows the digits, the integral is complete, one seed gives one result."""
    settings = {"ipc": 2, "images": 12, "passes": 20, "nodes": 30, "network": "convnet:width=8,depth=2"}
    found = attribute(digits, "random", **settings)
    assert found.accuracy > 0.6
    assert set(found.quality) >= {"black", "mean image", "blurred", "uniform noise", DISTILLED, WRONG}
    assert all(q.gap < 0.05 for q in found.quality.values())
    assert attribute(digits, "random", **settings).to_dict() == found.to_dict()


def test_the_command_writes_numbers_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["attribute", "random", "--data", "digits", "--images", "6", "--nodes", "10", "--passes", "2",
            "--network", "convnet:width=4,depth=1", "--out", str(tmp_path / "a")]  # fmt: skip
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "a" / "attribution.json").read_text())
    assert (tmp_path / "a" / "attribution.html").read_text().count("data:image/png") == 2
    assert main([*args, "--families", "0,1/2"]) == 2
    assert "in none" in capsys.readouterr().err
