"""The small latent diffusion model: first its auto-encoder, then the network for the noise in its latents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.rng import Rng, isolated
from datastill.models.generators.tiny_ldm import TinyLDM
from datastill.training.generators import fit, generator_key

if TYPE_CHECKING:
    from datastill.core.plan import Task

#: Weight of the latents' size beside the squared error, and how often a class is left out.
_SMALL, _LEFT_OUT = 1e-3, 0.1


@dataclass(frozen=True)
class TinyLdmUnit:
    """Squared error of the image, then of the noise; about two CPU minutes on 28-pixel images."""

    steps: int = 900  #: of the noise; the auto-encoder takes two fifths of them
    batch: int = 64
    lr: float = 2e-3

    name = "tiny-latent-diffusion"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return generator_key(task, self.name, **asdict(self))

    def macs(self, task: Task) -> float:
        """Three passes per image, of about 15 million multiply-accumulates at 28 pixels for the noise."""
        return 3.0 * 1.4 * self.steps * self.batch * 15e6 * task.real.shape[1] * task.real.shape[2] / 784

    def run(self, task: Task) -> dict[str, Tensor]:
        """The model's state by name."""
        rng = Rng(0).child(self.name)
        with isolated(rng.derive("weights")):
            model = TinyLDM(task.real.shape, task.real.classes)
        model = model.to(task.device)
        self._autoencoder(task, model, rng.child("autoencoder"))
        self._noise(task, model, rng.child("noise"))
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}

    def _autoencoder(self, task: Task, model: TinyLDM, rng: Rng) -> None:
        def loss(x: Tensor, y: Tensor, draws: torch.Generator) -> Tensor:
            z = model.encode(x)
            return (model.decode(z) - x).square().mean() + _SMALL * z.square().mean()

        moving = [*model.encoder.parameters(), *model.decoder.parameters()]
        fit(task, "auto-encoder", moving, loss, (max(1, 2 * self.steps // 5), self.batch, 2 * self.lr), rng)
        index = torch.randint(len(task.real), (512,), generator=rng.generator("scale"))
        with torch.no_grad():
            z = torch.cat([model.encode((2 * task.real.pixels(i) - 1).to(task.device)) for i in index.split(64)])
            model.scale.copy_(1 / z.std().clamp_min(1e-6))

    def _noise(self, task: Task, model: TinyLDM, rng: Rng) -> None:
        times = len(model.alphas_cumprod)

        def loss(x: Tensor, y: Tensor, draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                z = model.encode(x)
            t = torch.randint(times, (len(z),), generator=draws).to(z.device)
            noise = torch.randn(z.shape, generator=draws).to(z)
            none = (torch.rand(len(z), generator=draws) < _LEFT_OUT).to(z.device)
            alpha = model.alphas_cumprod[t].view(-1, 1, 1, 1)
            told = model.embed(torch.where(none, model.classes, y))
            return (model.noise_at(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, told) - noise).square().mean()

        kept = [*model.encoder.parameters(), *model.decoder.parameters()]
        moving = [p for p in model.parameters() if not any(p is k for k in kept)]
        fit(task, "diffusion", moving, loss, (self.steps, self.batch, self.lr), rng)
