"""The network of the published attacks, whose second derivatives do not vanish (Zhu et al., arXiv:1906.08935)."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from datastill.data.real import RealSet
from datastill.models import resolve_network
from datastill.models.resolve import NetworkSpec

#: Maps whose slope is constant where it is not zero: gradients of gradients tell little.
_FLAT = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.MaxPool2d)


class AttackNet(nn.Module):
    """Three convolutions of 12 filters of 5 x 5 (strides 2, 2, 1) with sigmoids, then a linear layer.

    Args:
        channels, classes, size: of the images, (height, width) in pixels.
        bound: weights and biases are uniform between -bound and bound.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, int], bound: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, stride in ((channels, 2), (12, 2), (12, 1)):
            layers += [nn.Conv2d(before, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        height, width = ((side + 3) // 4 for side in size)
        self.head = nn.Linear(12 * height * width, classes)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, C)."""
        return self.head(self.body(x).flatten(1))


def attacked_network(real: RealSet, spec: NetworkSpec, seed: int) -> nn.Module:
    """The network whose gradient was shared, float64, in evaluation mode; the published one if `spec` is None."""
    asked: NetworkSpec = AttackNet if spec is None else spec
    network = resolve_network(asked, channels=real.shape[0], classes=real.classes, size=real.shape[1:])(seed)
    if any(isinstance(one, _FLAT) for one in network.modules()):
        warnings.warn(
            f"{spec} has ReLUs or maximum pooling, whose second derivative is zero almost everywhere: expect labels to "
            "be found, and images not. Leave the network out for that of the published attacks.",
            stacklevel=3,
        )
    return network.double().eval()
