"""Gradients at single images: labels by rule, images by search, what is refused, what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datastill import load_real
from datastill.apps.leakage.attack import Attack, gradient_of
from datastill.apps.leakage.labels import label_of, last_layer
from datastill.apps.leakage.leak import leak
from datastill.apps.leakage.measures import mse, psnr, ssim
from datastill.apps.leakage.network import AttackNet, attacked_network
from datastill.cli import main
from datastill.core.errors import InputError
from datastill.core.rng import Rng
from datastill.data import RealSet

pytestmark = pytest.mark.usefixtures("same_weights")


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_every_label_is_read_off_the_last_layer(classes: int, biased: bool, signed: bool) -> None:
    """Of random layers and features. Two classes, no bias and features of both signs leave nothing to decide by."""
    if (classes, biased, signed) == (2, False, True):
        return
    for trial in range(50):
        generator = Rng(trial).generator("layer")
        h = torch.randn(1, 12, generator=generator)
        h = h if signed else h.abs()
        layer = nn.Linear(12, classes, bias=biased)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(classes, 12, generator=generator))
        for label in {0, classes - 1, trial % classes}:
            gradient = gradient_of(layer, h, torch.tensor([label]))
            weight, bias = last_layer(gradient, classes)
            assert label_of(weight, bias) == label
            assert bias is None or int(bias.argmin()) == label


def test_the_last_layer_is_found_among_others(digits: RealSet) -> None:
    network = AttackNet(1, 10, (8, 8)).double()
    gradient = gradient_of(network, digits.batch(torch.tensor([5])).x.double(), digits.labels[5:6])
    weight, bias = last_layer(gradient, 10)
    assert weight is gradient["head.weight"]
    assert bias is gradient["head.bias"]


def test_a_gradient_of_two_examples_is_refused() -> None:
    with pytest.raises(InputError, match="of one example, and this one is of 2"):
        gradient_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("distance", ["mse", "row-cosine"])
def test_the_distance_is_0_at_the_image_itself_and_the_search_leads_there(digits: RealSet, distance: str) -> None:
    network = AttackNet(1, 10, (8, 8)).double()
    x, y = digits.batch(torch.tensor([3])).x.double(), digits.labels[3:4]
    gradient = gradient_of(network, x, y)
    before = {name: p.clone() for name, p in network.named_parameters()}
    attack = Attack(distance=distance, iterations=120)
    found = attack.recover(network, gradient, (1, 8, 8), 10, Rng(0).generator("noise"))
    assert found.label == int(y)
    assert found.losses[-1] < 1e-4 * found.losses[0]
    if distance == "mse":  # a direction alone leaves more images
        assert mse(digits.space.decode(found.image[None].float()), digits.pixels(torch.tensor([3]))) < 1e-3
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in network.named_parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())


def test_a_search_that_fails_starts_again(digits: RealSet) -> None:
    """From other noise, at most so often, where the numbers are not finite."""
    network = AttackNet(1, 10, (8, 8)).double()
    gradient = gradient_of(network, digits.batch(torch.tensor([3])).x.double(), digits.labels[3:4])
    gradient["body.0.weight"] = gradient["body.0.weight"] * float("nan")
    found = Attack(iterations=3, restarts=2).recover(network, gradient, (1, 8, 8), 10, Rng(0).generator("noise"))
    assert found.restarts <= 2
    assert torch.isfinite(found.image).all()


def test_dlg_learns_the_label_too_and_never_better(digits: RealSet) -> None:
    both = [leak(digits, Attack(kind, iterations=30), images=2) for kind in ("idlg", "dlg")]
    assert both[0].labels_found == 1.0
    assert both[1].labels_found <= both[0].labels_found
    assert [one.index for one in both[0].images] == [one.index for one in both[1].images]
    again = leak(digits, Attack("idlg", iterations=30), images=2)
    assert again.to_dict() == both[0].to_dict()


def test_flat_activations_are_told(digits: RealSet) -> None:
    with pytest.warns(UserWarning, match="second derivative is zero"):
        attacked_network(digits, "convnet:width=4,depth=1", 0)


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Window by window, as it is written."""
    found = []
    for i in range(a.shape[0] - 6):
        for j in range(a.shape[1] - 6):
            p, q = a[i : i + 7, j : j + 7].ravel(), b[i : i + 7, j : j + 7].ravel()
            cov = np.cov(p, q)
            top = (2 * p.mean() * q.mean() + 0.01**2) * (2 * cov[0, 1] + 0.03**2)
            found.append(top / ((p.mean() ** 2 + q.mean() ** 2 + 0.01**2) * (cov[0, 0] + cov[1, 1] + 0.03**2)))
    return float(np.mean(found))


def test_measures() -> None:
    a, b = (torch.rand(1, 12, 10, generator=Rng(i).generator("x"), dtype=torch.float64) for i in range(2))
    assert ssim(a, b) == pytest.approx(naive_ssim(a[0].numpy(), b[0].numpy()), abs=1e-10)
    assert ssim(a, a) == pytest.approx(1.0)
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr(a, a) == float("inf")


def test_the_command_writes_numbers_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "leak"
    args = ["leak", "--data", "digits", "--images", "2", "--iterations", "20", "--out", str(out)]
    assert main([*args, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "leakage.json").read_text())
    assert told["labels_found"] == 1.0
    assert "data:image/png" in (out / "leakage.html").read_text()
    assert main([*args, "--quiet"]) == 0  # into its own folder again
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert main([*args[:-1], str(tmp_path / "other")]) == 2


@pytest.mark.slow
def test_images_of_mnist_are_recovered(real_data: Path) -> None:
    """At least four of five, to a mean squared error below .001 (five in seven seconds each when it was written)."""
    found = leak(load_real("mnist"), images=5)
    assert found.labels_found == 1.0
    assert found.recovered >= 0.8
