"""The small style-based generator: the decoder of a class-conditional variational auto-encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.rng import Rng, isolated
from datastill.models.generators.tiny_style import StyleEncoder, TinyStyleGenerator
from datastill.training.generators import fit, generator_key

if TYPE_CHECKING:
    from datastill.core.plan import Task

_KL = 1e-3


@dataclass(frozen=True)
class TinyStyleUnit:
    """L1 + squared error of pixels in [-1, 1] + 1e-3 KL of z; two CPU minutes on 28-pixel images."""

    steps: int = 500
    batch: int = 64
    lr: float = 3e-3

    name = "tiny-style-generator"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return generator_key(task, self.name, **asdict(self))

    def macs(self, task: Task) -> float:
        """Three passes per image, of about 27 million multiply-accumulates at 28 pixels."""
        return 3.0 * self.steps * self.batch * 27e6 * task.real.shape[1] * task.real.shape[2] / 784

    def run(self, task: Task) -> dict[str, Tensor]:
        """The generator's state by name."""
        rng = Rng(0).child(self.name)
        with isolated(rng.derive("weights")):
            generator = TinyStyleGenerator(task.real.shape, task.real.classes)
            encoder = StyleEncoder(generator)
        generator, encoder = generator.to(task.device), encoder.to(task.device)

        def loss(x: Tensor, y: Tensor, draws: torch.Generator) -> Tensor:
            mean, log_variance = encoder(x, y)
            noise = torch.randn(mean.shape, generator=draws).to(mean)
            out = generator.synthesize(generator.map(mean + noise * (log_variance / 2).exp(), y))
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            return (out - x).abs().mean() + (out - x).square().mean() + _KL * kl

        moving = [*generator.parameters(), *encoder.parameters()]
        fit(task, "style generator", moving, loss, (self.steps, self.batch, self.lr), rng)
        return {name: value.detach().cpu() for name, value in generator.state_dict().items()}
