"""Batch-norm statistics: values, gradients, and that nothing is left on the network (checks ST)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from datastill.core.errors import InputError
from datastill.core.rng import isolated
from datastill.engines.statistics import StatRecorder, channel_moments, norm_layers, recalibrate


def small(width: int = 4) -> nn.Sequential:
    """Three convolutions with batch norm whose buffers are not those of a fresh network."""
    with isolated(0):
        net = nn.Sequential()
        for k, channels in enumerate((2, width, width)):
            net.append(nn.Conv2d(channels, width, 3, padding=1))
            norm = nn.BatchNorm2d(width)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            net.append(norm)
            net.append(nn.ReLU(inplace=k == 1))
        net.append(nn.Flatten())
        net.append(nn.Linear(width * 36, 3))
    return net.double().requires_grad_(False).eval()


def images(n: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distance(net: nn.Module, x: torch.Tensor, first: float = 10.0, power: int = 1):
    with StatRecorder.of(net) as recorder:
        net(x)
    return recorder.distance(first, power)


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5), (4, 3, 5, 6)])
def test_moments_and_their_gradient_are_those_of_autograd(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    over = [d for d in range(x.ndim) if d != 1]
    mean, variance = channel_moments(x)
    plain_mean = x.mean(over)
    plain_variance = (x - x.mean(over, keepdim=True)).square().mean(over)
    torch.testing.assert_close(mean, plain_mean)
    torch.testing.assert_close(variance, plain_variance)
    weights = torch.arange(1.0, 4.0, dtype=torch.float64)
    mine = torch.autograd.grad((mean * weights + variance * weights.flip(0)).sum(), x, retain_graph=True)[0]
    theirs = torch.autograd.grad((plain_mean * weights + plain_variance * weights.flip(0)).sum(), x)[0]
    torch.testing.assert_close(mine, theirs)


def test_own_statistics_in_the_buffers_give_zero_and_a_finite_gradient():
    net, x = small(), images().requires_grad_()
    for _ in range(3):  # each layer's input depends on the layers before it: settle them one after the other
        with StatRecorder.of(net) as recorder:
            net(x.detach())
        for layer, (mean, variance) in zip(norm_layers(net), recorder.moments, strict=True):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
    means, variances = distance(net, x)
    assert float((means + variances).detach()) < 1e-6
    (gradient,) = torch.autograd.grad(means + variances, x)
    assert torch.isfinite(gradient).all()


def test_a_moved_buffer_counts_once_and_ten_times_in_the_first_layer():
    net, x = small(), images()
    layers = norm_layers(net)
    with StatRecorder.of(net) as recorder:
        net(x)
    for k, factor in ((1, 1.0), (0, 10.0)):
        mean = recorder.moments[k][0]
        target = layers[k].running_mean.clone()
        layers[k].running_mean.copy_(mean)
        zero = recorder.distance(10.0)[0]
        layers[k].running_mean[1] += 0.25
        moved = recorder.distance(10.0)[0]
        assert float(moved - zero) == pytest.approx(factor * 0.25)
        layers[k].running_mean.copy_(target)


@pytest.mark.parametrize("power", [1, 2])
def test_distance_agrees_with_numpy(power):
    net, x = small(), images()
    seen, total_mean, total_variance = x, 0.0, 0.0
    first = True
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            a = seen.numpy()
            mean = a.mean((0, 2, 3))
            variance = ((a - mean[None, :, None, None]) ** 2).mean((0, 2, 3))
            scale = 10.0 if first else 1.0
            total_mean += scale * np.sqrt(((mean - module.running_mean.numpy()) ** 2).sum()) ** power
            total_variance += scale * np.sqrt(((variance - module.running_var.numpy()) ** 2).sum()) ** power
            first = False
        seen = module(seen.clone())
    means, variances = distance(net, x, power=power)
    assert float(means) == pytest.approx(total_mean, rel=1e-12)
    assert float(variances) == pytest.approx(total_variance, rel=1e-12)


def test_hooks_go_away_also_when_something_fails():
    net, x = small(), images()
    with StatRecorder.of(net):
        net(x)
    with pytest.raises(RuntimeError), StatRecorder.of(net):
        net(x[:, :1])
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    once = distance(net, x)
    assert distance(net, x) == once


def test_network_is_untouched_by_recording():
    net, x = small(), images()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    distance(net, x.requires_grad_())[0].backward()
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_network_without_batch_norm_is_told_so():
    with pytest.raises(InputError, match="no batch norm"):
        norm_layers(nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(2)))


def test_recalibration_is_the_mean_over_batches_and_restores_the_momentum():
    net = small()
    parts = [images(4, 1), images(4, 2)]
    first = norm_layers(net)[0]
    first.momentum = 0.3
    recalibrate(net, parts)
    outputs = [net[0](part) for part in parts]
    expected = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(first.running_mean, expected)
    assert first.momentum == 0.3
    assert not first.training
