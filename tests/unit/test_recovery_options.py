"""Options of recovery that released code has by accident or by its files: summed perturbations, 8-bit pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datastill
from datastill.core.context import Context
from datastill.core.plan import Callback
from datastill.core.rng import Rng
from datastill.core.space import Space, normalized
from datastill.core.update import Sgd
from datastill.core.wrapped import Quantized
from datastill.sampling.patches import pick_by_loss
from decoupled_data import NETWORK, digits, teacher


def recover(method: str, **hyper: Any) -> datastill.DistilledSet:
    values = {"ipc": 2, "steps": 3, "jitter": 0, "teacher": teacher(), "network": NETWORK, **hyper}
    return datastill.distill(method, digits(), **values)


class Weights(Callback):
    """The weights of each block's network."""

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}

    def after_step(self, context: Context) -> None:
        network: Any = context.surrogate
        self.of[context.block.key] = torch.cat([p.flatten() for p in network.parameters()]).clone()


def climbed(weights: nn.Module, x: Tensor, y: Tensor, steps: int, radius: float) -> None:
    """Normalized ascent in plain code."""
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(weights(x), y), list(weights.parameters()))
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        with torch.no_grad():
            for p, g in zip(weights.parameters(), gradients, strict=True):
                p += radius / steps * g / norm


def test_summed_perturbations_are_those_of_a_loop_that_never_loads_the_teacher_anew() -> None:
    seen, apart = Weights(), Weights()
    options: dict[str, Any] = {"block_classes": 4, "ascent_steps": 2, "radius": 0.05}
    recover("dwa", accumulate=True, callbacks=[seen], **options)
    recover("dwa", callbacks=[apart], **options)
    start = datastill.distill("random", digits(), ipc=2, network=NETWORK).images
    key = 0
    for k in range(2):  # the first image of all classes, then the second; three runs of classes each
        network = teacher().network.requires_grad_(True)
        for classes in ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9)):
            x = torch.stack([start[2 * c + k] for c in classes])
            climbed(network, x, torch.tensor(classes), 2, 0.05)
            expected = torch.cat([p.detach().flatten() for p in network.parameters()])
            assert torch.allclose(seen.of[key], expected, atol=1e-5)
            assert torch.allclose(apart.of[key], expected, atol=1e-5) == (classes[0] == 0)
            key += 1


def test_images_end_as_pixels_of_8_bits_where_that_is_asked_for() -> None:
    space = digits().space
    plain, rounded, cut = (recover("sre2l", quantize=how) for how in ("none", "round", "floor"))
    scaled = 255 * space.decode(plain.images).clamp(0, 1)
    for made, whole in ((rounded, scaled.round()), (cut, scaled.floor())):
        found = 255 * space.decode(made.images)
        assert torch.allclose(found, found.round(), atol=1e-3)
        assert float((found - whole).abs().max()) <= 1 + 1e-3  # a number on an edge may fall to either side
        assert float(((found - whole).abs() < 1e-3).double().mean()) > 0.99
    assert not torch.equal(plain.images, rounded.images)


@pytest.mark.parametrize("space", [Space(), normalized((0.5,), (0.25,))])
def test_rounding_comes_after_the_last_step_and_only_then(space: Space) -> None:
    leaf = space.encode(torch.full((1, 1, 2, 2), 0.5))
    stepper = Quantized(Sgd(0.01), space).bind(leaf)
    stepper.after(torch.ones_like(leaf), 0.0)
    before = leaf.clone()
    stepper.finish()
    assert torch.allclose(255 * space.decode(leaf), (255 * space.decode(before)).round(), atol=1e-4)
    assert not torch.equal(leaf, before)
    assert not hasattr(Quantized(Sgd(0.01), space, "none").bind(leaf), "how")


def test_medium_losses_are_those_in_the_middle() -> None:
    loss = torch.tensor([9.0, 1.0, 5.0, 3.0, 7.0])
    assert pick_by_loss(loss, 3, "medium", Rng(0).generator("x")).tolist() == [3, 2, 4]
    assert pick_by_loss(loss, 5, "medium", Rng(0).generator("x")).tolist() == [1, 3, 2, 4, 0]


def test_sre2l_plus_is_sre2l_from_medium_patches_through_crops() -> None:
    options: dict[str, Any] = {"crop": True, "r_bn": 0.05}
    assert torch.equal(
        recover("sre2l-plus", init="noise", r_bn=0.05).images, recover("sre2l", init="noise", **options).images
    )
    patches = recover("sre2l-plus", steps=1, image_lr=1e-12, r_bn=0.05).images
    chosen = datastill.distill("rded", digits(), ipc=2, teacher=teacher(), network=NETWORK, pick="medium").images
    low, high = digits().space.bounds()
    assert torch.allclose(patches, chosen.maximum(low).minimum(high), atol=1e-5)
