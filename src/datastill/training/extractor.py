"""An embedding that keeps the bias: a small network trained for a short while by supervised contrast.

A bias that is easy is learned first, so training stops early: after it, all of a class would lie together and density
would say nothing. For the same reason the views are shifts of a few pixels, which change neither colors nor textures,
and the norm is that of a batch: instance norm would divide out a color that multiplies an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.operations import shift
from datastill.core.errors import Diverged, InputError, nearest
from datastill.core.plan import Progress, chunk_for, silent
from datastill.core.ranges import Amount, AnyRate, Count, Pixels, Rate, Side, check_fields
from datastill.core.rng import Rng, isolated
from datastill.core.threads import threads_for
from datastill.models import NetworkFactory, default_options, resolve_network
from datastill.store.files import digest
from datastill.training.supcon import supcon_loss

if TYPE_CHECKING:
    from datastill.data.real import RealSet

#: Of the default network.
WIDTH = 16
#: Steps that small sets are trained for at least, in as many passes as that takes.
FEWEST_STEPS = 40


class Encoder(nn.Module):
    """A backbone's features, and a projection of them: linear, ReLU, linear.

    Args:
        factory: builds the backbone, whose last linear layer stays unused.
        seed: of all weights.
        hidden, outputs: widths of the projection.
    """

    def __init__(self, factory: NetworkFactory, seed: int, hidden: int = 128, outputs: int = 64) -> None:
        super().__init__()
        self.backbone = factory(seed)
        with isolated(Rng(seed).derive("head")):
            self.head = nn.Sequential(nn.Linear(factory.embed_size, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def read(self, x: Tensor, where: str) -> Tensor:
        """Embeddings of unit length from "backbone" or "head", (n, d), of images (n, c, h, w)."""
        features = self.backbone.embed(x)
        return F.normalize(self.head(features) if where == "head" else features, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Projections of unit length, (n, outputs)."""
        return self.read(x, "head")


@dataclass(frozen=True)
class Extractor:
    """How the embedding is learned, and where it is read.

    Raises:
        InputError: a number out of range, or an unknown place to read from.
    """

    network: str = ""  #: the backbone as `resolve_network` reads it; "" is a batch-norm ConvNet that fits the size
    width: Side = WIDTH  #: of the default backbone
    epochs: Amount | None = None  #: passes; None is one, and in small sets those of 40 steps; more lose the bias
    images: Count = 20_000  #: most images per pass, a new random part of the set each time
    batch: Count = 256  #: images per step, each in two views
    lr: AnyRate = 1e-3  #: of Adam
    tau: Rate = 0.1  #: temperature of the contrastive loss
    shift: Pixels = 2  #: largest shift of a view, in pixels
    read: Literal["backbone", "head"] = "backbone"  #: "backbone" or "head"

    def __post_init__(self) -> None:
        check_fields(self, "{name} of the extractor")

    def settled(self, n: int) -> Extractor:
        """The same for a set of n images, with `epochs` as a number."""
        if self.epochs is not None:
            return self
        steps = math.ceil(min(n, self.images) / self.batch)
        return replace(self, epochs=max(1, math.ceil(FEWEST_STEPS / max(1, steps))))

    def factory(self, real: RealSet) -> NetworkFactory:
        """What builds the backbone for these images."""
        channels, *size = real.shape
        return small_backbone(channels, real.classes, (size[0], size[1]), self.width, self.network)

    def key(self, real: RealSet, seed: int, device: torch.device) -> dict[str, Any]:
        """Everything that the embedding depends on, JSON-able."""
        settings = asdict(self.settled(len(real)))
        return trained_key("debias-extractor", settings, self.factory(real), real, seed, device)

    def run(
        self, real: RealSet, seed: int = 0, device: torch.device | str = "cpu", progress: Progress = silent
    ) -> Tensor:
        """Train on the pixels of `real`, whatever its Space and weights, and embed all of them.

        Returns:
            (n, d) float32 on the CPU, rows of unit length; a function of the images, labels, seed and these numbers.

        Raises:
            Diverged: a loss is not finite.
        """
        device, factory = torch.device(device), self.factory(real)
        rng = Rng(seed).child("debias-extractor")
        with threads_for(factory.macs):
            encoder = Encoder(factory, rng.derive("network")).to(device)
            with isolated(rng.derive("dropout")):
                self._train(encoder, real, rng, device, progress)
            return self._embed(encoder, real, chunk_for(factory.macs, device), device)

    def _train(self, encoder: Encoder, real: RealSet, rng: Rng, device: torch.device, progress: Progress) -> None:
        encoder.train()
        epochs = self.settled(len(real)).epochs or 0
        optimizer = torch.optim.Adam(encoder.parameters(), lr=self.lr)
        for epoch in range(epochs):
            order = torch.randperm(len(real), generator=rng.generator("order", epoch))[: self.images]
            total = torch.zeros((), device=device)
            for b, index in enumerate(order.split(self.batch)):
                x = two_views(real.pixels(index), self.shift, rng.generator("views", epoch, b)).to(device)
                loss = supcon_loss(encoder(x), real.labels[index].repeat(2).to(device), self.tau)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                total = total + loss.detach()
                progress("bias extractor", epoch + min(1.0, (b + 1) * self.batch / len(order)), epochs, {})
            if not torch.isfinite(total):
                raise Diverged("The training of the bias extractor diverged; lower its learning rate (lr).")

    def _embed(self, encoder: Encoder, real: RealSet, chunk: int, device: torch.device) -> Tensor:
        encoder.eval()
        with torch.no_grad():
            parts = [
                encoder.read(real.pixels(index).to(device), self.read).float().cpu()
                for index in torch.arange(len(real)).split(chunk)
            ]
        return torch.cat(parts)


def small_backbone(
    channels: int, classes: int, size: tuple[int, int], width: int = WIDTH, network: str = ""
) -> NetworkFactory:
    """The network that is named, or a batch-norm ConvNet of that width and of a depth that fits the size."""
    if network and width != WIDTH:
        raise InputError(f"width={width} is of the default network, and network={network} is named; give one of them.")
    if not network:
        options = {**default_options(min(size)), "width": width, "norm": "batch"}
        network = "convnet:" + ",".join(f"{name}={value}" for name, value in options.items())
    return resolve_network(network, channels=channels, classes=classes, size=size)


def trained_key(
    unit: str, settings: Mapping[str, Any], factory: NetworkFactory, real: RealSet, seed: int, device: torch.device
) -> dict[str, Any]:
    """What a small network depends on that is trained on the pixels and labels of a set, JSON-able."""
    return {
        "unit": unit,
        **settings,
        "network": factory.describe(),
        "images": real.store.content(),
        "labels": digest(real.labels),
        "seed": seed,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def two_views(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image twice, (2n, c, h, w), the second views after the first, each shifted by up to `most` pixels."""
    offset = torch.randint(-most, most + 1, (2 * len(x), 2), generator=generator)
    return shift(x.repeat(2, 1, 1, 1), offset.to(x.device))


def with_options(extractor: Extractor, **options: Any) -> Extractor:
    """The extractor with other numbers.

    Raises:
        InputError: it has no such option.
    """
    for name in options:
        if name not in asdict(extractor):
            raise InputError(f"The extractor has no option {name!r}. {nearest(name, asdict(extractor))}")
    return replace(extractor, **options)
