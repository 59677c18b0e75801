"""Second derivatives of every ConvNet variant against finite differences, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradgradcheck

from datastill.core.rng import isolated
from datastill.models import ConvNet, functional
from datastill.models.layers import ACTIVATIONS, NORMS, POOLS


@pytest.mark.parametrize(("norm", "pool", "activation"), list(itertools.product(NORMS, POOLS, ACTIVATIONS)))
def test_gradient_of_the_gradient(norm, pool, activation):
    with isolated(0):
        net = ConvNet(1, 3, (4, 4), width=4, depth=2, norm=norm, pool=pool, activation=activation, padding=1).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    names = ["body.conv1.weight", "head.weight"]
    weights = dict(net.named_parameters())

    def logits(pixels: torch.Tensor, *leaves: torch.Tensor) -> torch.Tensor:
        return functional(net, dict(zip(names, leaves)), pixels)

    leaves = [weights[n] for n in names]
    with isolated(2):  # the fast check projects on random directions
        assert gradgradcheck(logits, (x, *leaves), fast_mode=True)


@pytest.mark.parametrize("norm", NORMS)
def test_gradient_matching_loss_has_a_finite_gradient_in_the_pixels(norm):
    with isolated(0):
        net = ConvNet(3, 5, (16, 16), width=8, norm=norm, pool="max")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 16, 16, generator=generator, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(net(x), torch.arange(4))
    gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    sum((g**2).sum() for g in gradients).backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).any()
