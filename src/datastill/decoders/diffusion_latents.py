"""Latents and conditions of a latent diffusion model as codes (LD3M: Moser et al., arXiv:2403.03881).

Every image is D(DDIM(z, c)): the chain of `models.generators.ddim`, then the model's decoder, clamped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Codes, Synthetic
from datastill.core.space import Space
from datastill.core.two_pass import gradients_of, rendered
from datastill.decoders.networks import Named, as_shape, bounded, expected_weights, with_weights
from datastill.models.generators import LatentDiffusion
from datastill.models.generators.ddim import Ddim
from datastill.models.generators.diffusers_ldm import DiffusersLDM
from datastill.models.generators.tiny_ldm import TinyLDM
from datastill.training.generators.ldm import TinyLdmUnit

#: Stored images that are rendered at once (LD3M).
CHUNK = 10
_NOISE = ("per-iteration", "fixed", "fresh")


@dataclass
class DiffusionLatents:
    """Leaves `z` (n, c, h, w) and, where the model takes conditions, `c` (n, condition_dim); `noise` where it is fixed.

    Raises:
        InputError: an option that is none, or a model of other images.
    """

    shape: Sequence[int]  #: of an image: channels, height, width
    classes: int
    steps: int = 5  #: S, of the denoising
    guidance: float = 3.0
    skip: str = "latent"
    skip_on: str = "x0"
    noise: str = "per-iteration"  #: the same in both passes; "fixed": and in all steps; "fresh": other in each (LD3M)
    model: Mapping[str, Any] | None = None  #: one that was brought; None is the small one
    chunk: int = field(default=CHUNK, init=False)
    clipped: int = field(default=0, init=False, compare=False)  #: numbers that were not within bounds at the start

    def __post_init__(self) -> None:
        self.shape = as_shape(self.shape, self.classes)
        self._space, self._chain = Space(), Ddim(self.steps, self.guidance, self.skip, self.skip_on)
        if self.noise not in _NOISE:
            raise InputError(f"There is no noise {self.noise!r}. {nearest(str(self.noise), _NOISE)}")
        configs = None if self.model is None else self.model.get("diffusers")
        named = self.model is not None and configs is None
        self._named = Named.of(self.model or {}, LatentDiffusion) if named else None
        self._network: Any = None if self._named is None else self._named.found()
        known = self._shapes = self._network or self._of_shapes(configs)
        self._chain.times(known)
        if tuple(known.img_shape) != tuple(self.shape) or known.classes not in (0, self.classes):
            raise InputError(
                f"The diffusion model makes images of {list(known.img_shape)} in {known.classes} classes, and the data "
                f"are {list(self.shape)} in {self.classes}."
            )

    @property
    def conditioned(self) -> bool:
        """Whether the model takes a condition of each image."""
        return bool(self._shapes.condition_dim)

    @property
    def carried(self) -> Mapping[str, Tensor]:
        """The model's weights, where the artifact has them."""
        if self._named is not None or self._network is None:
            return {}
        return {name: value.detach().cpu() for name, value in self._network.state_dict().items()}

    def expected(self) -> Mapping[str, Sequence[int]]:
        """Those of a model of this size."""
        return {} if self._named is not None else expected_weights(self._shapes)

    def bind(self, weights: Mapping[str, Tensor], space: Space) -> None:
        """Take up weights and Space."""
        self._space = space
        if self._named is None:
            self._network = with_weights(self._shapes, weights)

    def note(self) -> str:
        """How many numbers were clipped at the start."""
        return f"{self.clipped} numbers of the latents were clipped at the start" if self.clipped else ""

    def begin(self, context: Context, images: Tensor, extra: dict[str, Tensor]) -> Codes:
        """Latents of the images, and the conditions of their classes."""
        space = context.task.real.space
        if self._network is None:
            self.bind(context.prepared.get(TinyLdmUnit.name, {}), space)
        self._space = space
        model, pixels = self._on(images), space.decode(images).clamp(0, 1)
        with torch.no_grad():
            z = torch.cat([model.encode(2 * part - 1) for part in pixels.split(self.chunk)])
            z, clipped = bounded(z)
            self.clipped += clipped
            codes = {"z": z}
            if model.condition_dim:
                codes["c"] = model.embed(context.block.y.to(images.device)).to(z)
        if self.noise == "fixed":
            draws = [context.rng.generator("latents", int(i)) for i in context.block.index]
            codes["noise"] = torch.stack([torch.randn(z.shape[1:], generator=draw) for draw in draws]).to(z)
        return codes

    def encode(self, images: Tensor) -> Codes:
        """Not from images alone: see `begin`."""
        raise InputError("Latents of a generator do not follow from images, so this method cannot take them.")

    def draw(self, generator: torch.Generator) -> int:
        """The seed of the noise, for both passes."""
        return int(torch.randint(2**62, (), generator=generator))

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """Images in the Space, rendered in chunks and without a graph; without a record, under the noise of seed 0."""
        return Synthetic(rendered(self.render_of(record or 0), self._own(codes), self.chunk), y)

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """The second pass."""
        again = (record or 0) + 1 if self.noise == "fresh" else record or 0
        return gradients_of(self.render_of(again), self._own(codes), grads, self.chunk)

    def render_of(self, record: int) -> Any:
        """What renders rows of the codes, with a graph where there is one."""

        def render(codes: Mapping[str, Tensor], rows: slice) -> Tensor:
            z, model = codes["z"], self._on(codes["z"])
            noise = codes.get("noise")
            if noise is None:
                draws = [
                    torch.Generator().manual_seed((record + 2 * row) % 2**63) for row in range(rows.start, rows.stop)
                ]
                noise = torch.stack([torch.randn(z.shape[1:], generator=draw) for draw in draws]).to(z)
            x = model.decode(self._chain.latents(model, z, codes.get("c"), noise))
            return self._space.encode(((x + 1) / 2).clamp(0, 1))

        return render

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """One image for each row.

        Raises:
            InputError: there are other leaves, or of another size.
        """
        known, n = self._shapes, next((sizes[0] for sizes in shapes.values() if sizes), 0)
        wanted: dict[str, tuple[int, ...]] = {"z": (n, *known.latent_shape)}
        wanted |= {"c": (n, known.condition_dim)} if known.condition_dim else {}
        wanted |= {"noise": wanted["z"]} if self.noise == "fixed" else {}
        if n < 1 or {name: tuple(sizes) for name, sizes in shapes.items()} != wanted:
            raise InputError(f"The latents are {dict(shapes)}, and {wanted} is needed.")
        channels, height, width = self.shape
        return n, channels, height, width

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Nothing: latents are not clamped."""

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash."""
        chain = {name: getattr(self, name) for name in ("steps", "guidance", "skip", "skip_on", "noise", "model")}
        return {"decoder": "diffusion_latents", "shape": list(self.shape), "classes": self.classes, **chain}

    def _of_shapes(self, configs: Any) -> Any:
        """A network without numbers: the small one, or one of diffusers."""
        with torch.device("meta"):
            if configs is None:
                return TinyLDM(tuple(self.shape), self.classes)  # type: ignore[arg-type]
            if not isinstance(configs, Mapping):
                raise InputError("A diffusion model of diffusers needs the configurations of its parts.")
            return DiffusersLDM(configs).of_classes(self.classes)

    def _on(self, like: Tensor) -> Any:
        if self._network is None:
            raise InputError(
                "These latents have no diffusion model yet: a run prepares it, or it is read with its set."
            )
        if isinstance(self._network, torch.nn.Module):
            self._network.to(like.device, like.dtype)
        return self._network

    def _own(self, codes: Codes) -> Codes:
        return {name: codes[name] for name in ("z", "c", "noise") if name in codes}


DECODER = DiffusionLatents
