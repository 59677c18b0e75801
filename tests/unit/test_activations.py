"""The taps of activation functions, in the library's networks and in those of users."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.models import resolve_network
from datastill.models.activations import activations


def found(network: Any, channels: int = 3, size: tuple[int, int] = (32, 32)) -> list[tuple[str, bool]]:
    factory = resolve_network(network, channels=channels, classes=10, size=size)
    return [(layer.name, layer.spatial) for layer in activations(factory)]


@pytest.mark.parametrize(
    ("network", "maps", "vectors"),
    [
        ("convnet:depth=3", 3, 0),
        ("convnet:depth=2,activation=swish", 2, 0),
        ("lenet", 2, 2),
        ("mlp", 0, 2),
        ("vgg11", 8, 0),
    ],
)
def test_networks_of_the_library(network: str, maps: int, vectors: int) -> None:
    assert found(network) == [(f"relu{k + 1}", k < maps) for k in range(maps + vectors)]


def test_a_map_of_one_pixel_is_not_spatial() -> None:
    def network() -> nn.Module:
        pooled = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pooled, nn.ReLU(), nn.Flatten(), nn.Linear(4, 10))

    assert found(network) == [("1", True), ("3", False)]


class Shared(nn.Module):
    """One activation that runs twice, another between, and one after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.one, self.two = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 5, 3, 2)
        self.gelu, self.last, self.unused = nn.GELU(), nn.Sigmoid(), nn.Tanh()
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gelu(self.two(self.relu(self.one(x))))
        return self.last(self.head(self.relu(x.mean((2, 3)))))


class Functions(nn.Module):
    """No activation is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 5, 3, 2)
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.two(F.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


def test_users_networks() -> None:
    assert found(Shared) == [("gelu", True), ("relu", False)]
    assert found(Functions) == [("one", True), ("two", True)]
    assert found(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))) == []


def test_taps_exist_and_no_hook_stays() -> None:
    factory = resolve_network(Shared, channels=3, classes=10, size=(32, 32))
    network = factory(1)
    taps = network.taps(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["gelu", "flat"])
    assert taps["gelu"].shape == (2, 5, 7, 7)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
