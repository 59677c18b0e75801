"""A network of one's own: any module with a linear layer at its end."""

from torch import Tensor, nn


class Net(nn.Module):
    """Three strided convolutions and a linear head."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1, stride=2),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, stride=2),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
        )
        self.head = nn.LazyLinear(classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).flatten(1))
