"""Attacks on gradients at images of a data set, with what they recovered beside the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datastill.apps.leakage.attack import Attack, gradient_of
from datastill.apps.leakage.measures import mse, psnr, ssim
from datastill.apps.leakage.network import attacked_network
from datastill.core.rng import Rng
from datastill.data.real import RealSet
from datastill.models.resolve import NetworkSpec
from datastill.report.application import Application, Chapter, Picture
from datastill.report.pictures import png, sheet
from datastill.report.section import Paragraph, Table
from datastill.store.files import write_json
from datastill.store.outputs import Kind

RESULT, PAGE = "leakage.json", "leakage.html"
LEAKAGE = Kind("leakage", RESULT, ("config", "images"))
HEADS = ["image", "class", "found", "MSE", "PSNR, dB", "SSIM", "distance of gradients", "iterations"]
#: Mean squared error of pixels below which an image counts as recovered: the eye sees no difference.
RECOVERED = 1e-3


@dataclass(frozen=True)
class Leaked:
    """One image under attack: numbers of pixels in [0, 1]."""

    index: int  #: among the training images
    label: int
    found: int  #: the label that the attack found
    mse: float
    psnr: float  #: decibels
    ssim: float
    distance: float  #: of gradients, the least met
    iterations: int
    restarts: int
    strip: Tensor  #: (k, c, h, w) pixels in [0, 1]: the truth, the search from its noise on, the result


@dataclass(frozen=True)
class Leakage:
    """All attacked images, and how they were attacked."""

    images: tuple[Leaked, ...]
    class_names: tuple[str, ...]
    config: dict[str, Any]

    @property
    def labels_found(self) -> float:
        """Share of labels that were found."""
        return sum(one.label == one.found for one in self.images) / len(self.images)

    @property
    def recovered(self) -> float:
        """Share of images with a mean squared error below .001."""
        return sum(one.mse < RECOVERED for one in self.images) / len(self.images)

    @property
    def verdict(self) -> str:
        """What came of it, in words."""
        count = len(self.images)
        images = sum(one.mse < RECOVERED for one in self.images)
        labels = sum(one.label == one.found for one in self.images)
        return (
            f"Of {count} gradients, each shared at one image, {labels} told the label and {images} the image itself "
            f"(mean squared error below {RECOVERED:g}). A gradient at one image is to be guarded like the image."
        )

    def rows(self) -> list[list[str]]:
        """Of the table, an image each."""
        return [
            [str(one.index), self.class_names[one.label], self.class_names[one.found], f"{one.mse:.2g}",
             f"{one.psnr:.1f}", f"{one.ssim:.3f}", f"{one.distance:.2g}", str(one.iterations)]
            for one in self.images
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every number, no pixels."""
        images = [{k: v for k, v in asdict(one).items() if k != "strip"} for one in self.images]
        summary = {"labels_found": self.labels_found, "recovered": self.recovered, "verdict": self.verdict}
        return {"config": self.config, **summary, "images": images}

    def write(self, folder: Path) -> None:
        """Write `leakage.json` and `leakage.html`."""
        write_json(folder / RESULT, self.to_dict())
        columns = max(len(one.strip) for one in self.images)
        rows = torch.cat([_filled(one.strip, columns) for one in self.images])
        picture = Picture("True image, the search from noise on, the result", png(sheet(rows, columns, smallest=56)))
        lead = (
            f"{self.config['kind']} with the distance {self.config['distance']}, {self.config['iterations']} "
            f"iterations at most, on {self.config['network']}."
        )
        chapters = [
            Chapter("Images", [Table(HEADS, self.rows())], [picture]),
            Chapter("What it means", [Paragraph(_WHY)]),
        ]
        title = f"What gradients at images of {self.config['data']} tell"
        Application("gradient leakage", title, lead, self.verdict, chapters).write(folder / PAGE)


_WHY = (
    "The attacker knows the network and the gradient of the loss at one image, as a server of federated learning does "
    "where a client sends a step on a single image. Batches of several images mix their gradients, and ReLUs and "
    "pooling make the search fail; neither is a protection that was proven."
)


def _filled(strip: Tensor, columns: int) -> Tensor:
    """With its last image again, up to so many."""
    return torch.cat([strip, strip[-1:].expand(columns - len(strip), *strip.shape[1:])])


def leak(
    real: RealSet,
    attack: Attack | None = None,
    *,
    network: NetworkSpec = None,
    images: int = 5,
    seed: int = 0,
    told: Callable[[int, float], None] = lambda image, loss: None,
) -> Leakage:
    """Share gradients at training images, one each, and attack them.

    Args:
        real: where images are drawn from.
        attack: how; iDLG if None.
        network: at whose random weights, anew for each image; the published attack's if None.
        images: how many.
        seed: of the images, the weights and the noise.
        told: called with the image's number and the distance after every iteration.
    """
    attack, rng = attack or Attack(), Rng(seed)
    chosen = torch.randperm(len(real), generator=rng.generator("leakage", "images"))[:images].tolist()
    found = [_attacked(real, i, k, attack, network, rng, told) for k, i in enumerate(chosen)]
    name = "the published network, three convolutions with sigmoids" if network is None else str(network)
    config = {"data": real.name, "network": name, "seed": seed, **asdict(attack)}
    return Leakage(tuple(found), tuple(real.class_names), config)


def _attacked(
    real: RealSet,
    index: int,
    k: int,
    attack: Attack,
    spec: NetworkSpec,
    rng: Rng,
    told: Callable[[int, float], None],
) -> Leaked:
    batch = real.batch(torch.tensor([index]))
    network = attacked_network(real, spec, rng.derive("leakage", "network", k))
    gradient = {n: g.detach() for n, g in gradient_of(network, batch.x.double(), batch.y).items()}
    noise = rng.generator("leakage", "noise", k)
    one = attack.recover(network, gradient, real.shape, real.classes, noise, lambda loss: told(k, loss))
    truth = real.pixels(torch.tensor([index]))[0]
    strip = [truth, *real.space.decode(one.snapshots.float()).clamp(0, 1)]
    got = strip[-1]
    return Leaked(
        index, int(batch.y), one.label, mse(got, truth), psnr(got, truth), ssim(got, truth), min(one.losses),
        len(one.losses) - 1, one.restarts, torch.stack(strip),
    )  # fmt: skip
