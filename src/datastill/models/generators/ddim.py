"""Deterministic denoising with a direct way from the first latent to every step (LD3M, arXiv:2403.03881).

z_T = sqrt(a_T) z + sqrt(1 - a_T) e, and for i = S-1 .. 0, from time t to the one before it:
    x0 = (z_t - sqrt(1 - a_t) eps) / sqrt(a_t);  x0 = (1 - k_i) x0 + k_i Q(z),  k_i = i / (S - 1)
    z_t' = sqrt(a_t') x0 + sqrt(1 - a_t') eps
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from datastill.core.errors import InputError, nearest
from datastill.models.generators import LatentDiffusion

_SKIPS, _PLACES = ("latent", "noisy", "none"), ("x0", "prev")
#: Numbers of a latent above which a step's activations are computed again for its gradient, and not kept.
_LARGE = 2048


@dataclass(frozen=True)
class Ddim:
    """The chain of S steps.

    Raises:
        InputError: an option that is none.
    """

    steps: int = 5
    guidance: float = 3.0  #: of classifier-free guidance; 1 goes without it
    skip: str = "latent"  #: what is mixed in: the "latent" z, its "noisy" form z_T, or "none"
    skip_on: str = "x0"  #: where: the estimate of "x0", or the latent of the time before ("prev")

    def __post_init__(self) -> None:
        for name, value, known in (("skip", self.skip, _SKIPS), ("skip_on", self.skip_on, _PLACES)):
            if value not in known:
                raise InputError(f"There is no {name} {value!r}. {nearest(value, known)}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= 1000:
            raise InputError(f"A diffusion takes from 1 to 1,000 steps, not {self.steps!r}.")
        if (
            isinstance(self.guidance, bool)
            or not isinstance(self.guidance, int | float)
            or not 0 <= self.guidance <= 1000
        ):
            raise InputError(f"The guidance is a number from 0 to 1,000, not {self.guidance!r}.")

    def times(self, model: LatentDiffusion) -> list[int]:
        """Times of the steps, ascending, evenly over those of the model.

        Raises:
            InputError: it has fewer.
        """
        known = len(model.alphas_cumprod)
        if self.steps > known:
            raise InputError(f"The diffusion model knows {known} times, and {self.steps} steps are asked for.")
        return [i * (known // self.steps) + (1 if known > self.steps else 0) for i in range(self.steps)]

    def latents(self, model: LatentDiffusion, z: Tensor, c: Tensor | None, noise: Tensor) -> Tensor:
        """From distilled latents and conditions to those that are decoded.

        Args:
            model: which.
            z: latents (n, ...).
            c: conditions (n, condition_dim); None where the model takes none.
            noise: standard normal, as z.
        """
        alphas, times = model.alphas_cumprod.to(z), self.times(model)
        last = alphas[times[-1]]
        z_t = last.sqrt() * z + (1 - last).sqrt() * noise
        mixed = z_t if self.skip == "noisy" else model.quantize(z)
        for i in reversed(range(self.steps)):
            now = alphas[times[i]]
            before = alphas[times[i - 1]] if i else torch.ones_like(now)
            weight = 0.0 if self.skip == "none" else skip_weight(i, self.steps)
            eps = self._eps(model, z_t, times[i], c)
            x0 = (z_t - (1 - now).sqrt() * eps) / now.sqrt()
            if self.skip_on == "x0":
                x0 = (1 - weight) * x0 + weight * mixed
            z_t = before.sqrt() * x0 + (1 - before).sqrt() * eps
            if self.skip_on == "prev":
                z_t = (1 - weight) * z_t + weight * mixed
        return z_t

    def _eps(self, model: LatentDiffusion, z: Tensor, t: int, c: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and z[0].numel() > _LARGE:
            return checkpoint(self._guided, model, z, t, c, use_reentrant=False)
        return self._guided(model, z, t, c)

    def _guided(self, model: LatentDiffusion, z: Tensor, t: int, c: Tensor | None) -> Tensor:
        """eps(null) + s (eps(c) - eps(null)); with s = 1 eps(c) alone."""
        eps = model.eps(z, t, c)
        if c is None or self.guidance == 1:
            return eps
        null = model.eps(z, t, model.null_embed(len(z)))
        return null + self.guidance * (eps - null)


def skip_weight(i: int, steps: int) -> float:
    """Of what is mixed in: 1 at the first step, i = S - 1, falling to 0 at the last; 0 where there is one step."""
    return i / (steps - 1) if steps > 1 else 0.0
