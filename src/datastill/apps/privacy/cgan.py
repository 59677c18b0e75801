"""A conditional DCGAN (Radford et al., ICLR 2016), whose samples stand as a set beside distilled ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.core.plan import Progress, silent
from datastill.core.ranges import AdamRate, Count, Side, check_fields
from datastill.core.rng import Rng, isolated
from datastill.distillation.distill import distill
from datastill.training.batches import batch_bounds

if TYPE_CHECKING:
    from datastill.data.real import RealSet
    from datastill.store.artifact import DistilledSet

#: Numbers that an image is made from, and numbers that stand for its class.
LATENT, EMBEDDED = 100, 50


@dataclass(frozen=True)
class Gan:
    """How the two networks are trained."""

    epochs: Count = 20  #: passes over the real images
    width: Side = 32  #: channels of the layer next to the image
    lr: AdamRate = 2e-4  #: of Adam, for both
    batch: Count = 64

    def __post_init__(self) -> None:
        check_fields(self)


def sides_of(size: int) -> list[int]:
    """From the smallest layer to the image: each is twice the one before, or one less."""
    found = [size]
    for _ in range(3):
        found.append(-(-found[-1] // 2))
    return found[::-1]


class Generator(nn.Module):
    """From latent numbers and classes to pixels in [-1, 1]: three transposed convolutions of stride 2."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        self.heights, self.widths = sides_of(shape[1]), sides_of(shape[2])
        self.embed = nn.Embedding(classes, EMBEDDED)
        sizes = [4 * width, 2 * width, width, shape[0]]
        self.first = nn.Linear(LATENT + EMBEDDED, sizes[0] * self.heights[0] * self.widths[0])
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in sizes[:3])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(sizes))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (n, c, h, w) of the classes y (n,)."""
        x = self.first(torch.cat([z, self.embed(y)], 1)).view(len(z), -1, self.heights[0], self.widths[0])
        for k, (norm, up) in enumerate(zip(self.norms, self.ups, strict=True)):
            x = up(F.relu(norm(x)))[:, :, : self.heights[k + 1], : self.widths[k + 1]]
        return torch.tanh(x)


class Discriminator(nn.Module):
    """Real or not, given the class as one more plane: three convolutions of stride 2."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        self.plane = nn.Embedding(classes, shape[1] * shape[2])
        sizes = [shape[0] + 1, width, 2 * width, 4 * width]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1] * sides_of(shape[1])[0] * sides_of(shape[2])[0], 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (n,)."""
        x = torch.cat([x, self.plane(y).view(-1, 1, *x.shape[2:])], 1)
        for down in self.downs:
            x = F.leaky_relu(down(x), 0.2)
        return self.last(x.flatten(1)).squeeze(1)


def train_gan(real: RealSet, gan: Gan, seed: int = 0, progress: Progress = silent) -> Generator:
    """A generator for the classes of a real set, by the binary cross-entropy of both networks.

    Args:
        real: the images.
        gan: how.
        seed: of weights, orders and latent numbers.
        progress: told after every pass.
    """
    rng = Rng(seed)
    with isolated(rng.derive("gan")):
        made = Generator(real.shape, real.classes, gan.width), Discriminator(real.shape, real.classes, gan.width)
    options: dict[str, Any] = {"lr": gan.lr, "betas": (0.5, 0.999)}
    optimizers = [torch.optim.Adam(network.parameters(), **options) for network in made]
    generator, judge = made
    for p in range(gan.epochs):
        for step, index in enumerate(_batches(len(real), gan.batch, rng, p)):
            x, y = 2 * real.pixels(index) - 1, real.labels[index]
            fake = generator(torch.randn(len(y), LATENT, generator=rng.generator("latent", p, step)), y)
            loss = F.softplus(-judge(x, y)).mean() + F.softplus(judge(fake.detach(), y)).mean()
            _step(optimizers[1], loss)
            _step(optimizers[0], F.softplus(-judge(fake, y)).mean())
        progress("cGAN", p + 1, gan.epochs, {})
    return generator.eval()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _batches(count: int, batch: int, rng: Rng, p: int) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=rng.generator("order", p))
    yield from (order[a:b] for a, b in pairwise(batch_bounds(count, batch)))


def cgan(real: RealSet, ipc: int, gan: Gan | None = None, seed: int = 0, network: Any = None) -> DistilledSet:
    """As many samples of each class as a set of the same size, for the same evaluation and audit.

    Args:
        real: what the networks are trained on.
        ipc: samples of each class.
        gan: how they are trained; None takes the defaults.
        seed: of all draws.
        network: an architecture that is to be evaluated with.
    """
    gan = gan or Gan()
    made = distill("random", real, ipc=ipc, seed=seed, network=network, device="cpu")
    generator = train_gan(real, gan, seed)
    latent = torch.randn(len(made.labels), LATENT, generator=Rng(seed).generator("samples"))
    with torch.no_grad():
        pixels = (generator(latent, made.labels) + 1) / 2
    manifest = {**made.manifest, "method": "cgan", "hyper": vars(gan), "notes": ["Samples of a conditional GAN."]}
    return replace(made, codes={"images": real.space.encode(pixels)}, manifest=manifest, extra={})
