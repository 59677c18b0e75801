"""Latents of a style-based generator as codes (GLaD: Cazenavette et al., CVPR 2023, arXiv:2305.01649).

x = G_{l..L}(f, w) with f what enters layer l and w the styles of layer l and those after it; at layer "w" all styles
and no features, at layer "z" the input of the mapping. G stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.plan import Codes, Synthetic
from datastill.core.space import Space
from datastill.core.two_pass import gradients_of, rendered
from datastill.decoders.networks import Named, as_shape, bounded, expected_weights, with_weights
from datastill.models.generators import StyleGenerator
from datastill.models.generators.tiny_style import TinyStyleGenerator
from datastill.training.generators.style import TinyStyleUnit

#: Stored images that are rendered at once, and classes that a mean style is taken of that many codes (GLaD).
CHUNK, MEAN_OF = 10, 1000


@dataclass
class StyleLatents:
    """Leaves `w` (n, styles, w_dim) and `f` (n, c, h, w), or `z` (n, z_dim), with a row for each stored image.

    Raises:
        InputError: an option that is none, or a layer that the generator does not have.
    """

    shape: Sequence[int]  #: of an image: channels, height, width
    classes: int
    layer: str = "w"  #: "z", "w", or "f0" to the generator's last
    start: str = "random"  #: "random", or "mean": every class at its mean style
    generator: Mapping[str, Any] | None = None  #: one that was brought, by name, hash and size; None is the small one
    chunk: int = field(default=CHUNK, init=False)
    clipped: int = field(default=0, init=False, compare=False)  #: features that were not within bounds at the start

    def __post_init__(self) -> None:
        self.shape = as_shape(self.shape, self.classes)
        self._space = Space()
        self._named = None if self.generator is None else Named.of(self.generator, StyleGenerator)
        self._network: Any = None if self._named is None else self._named.found()
        known = self._known()
        if self.start not in ("random", "mean"):
            raise InputError(f"Latents start at random or at the mean, not at {self.start!r}.")
        layers = ["z", "w", *(f"f{n}" for n in range(known.num_layers))]
        if self.layer not in layers:
            raise InputError(f"The generator has the layers {', '.join(layers)}, and no layer {self.layer!r}.")
        if tuple(known.img_shape) != tuple(self.shape) or known.classes not in (0, self.classes):
            raise InputError(
                f"The generator makes images of {list(known.img_shape)} in {known.classes} classes, and the data are "
                f"{list(self.shape)} in {self.classes}."
            )

    @property
    def carried(self) -> Mapping[str, Tensor]:
        """The small generator's weights."""
        if self._named is not None or self._network is None:
            return {}
        return {name: value.detach().cpu() for name, value in self._network.state_dict().items()}

    def expected(self) -> Mapping[str, Sequence[int]]:
        """Those of a generator of this size."""
        return {} if self._named is not None else expected_weights(self._known())

    def bind(self, weights: Mapping[str, Tensor], space: Space) -> None:
        """Take up weights and Space."""
        self._space = space
        if self._named is None:
            self._network = with_weights(self._known(), weights)

    def note(self) -> str:
        """How many numbers were clipped at the start."""
        return f"{self.clipped} numbers of the features were clipped at the start" if self.clipped else ""

    def begin(self, context: Context, images: Tensor, extra: dict[str, Tensor]) -> Codes:
        """Latents drawn for every image, or the mean of their class; the images of the init are not looked at."""
        self.bind(context.prepared.get(TinyStyleUnit.name, {}), context.task.real.space)
        generator = self._on(images)
        y = context.block.y.to(images.device)
        draws = [context.rng.generator("latents", int(i)) for i in context.block.index]
        z = torch.stack([torch.randn(generator.z_dim, generator=draw) for draw in draws]).to(images)
        with torch.no_grad():
            if self.layer == "z":
                return {"z": z}
            ws = generator.map(z, y) if self.start == "random" else self._mean_styles(context, y, images)
            if self.layer == "w":
                return {"w": ws}
            n = int(self.layer[1:])
            f, clipped = bounded(generator.features(ws, n))
            self.clipped += clipped
            return {"w": ws[:, n:], "f": f}

    def encode(self, images: Tensor) -> Codes:
        """Not from images alone: see `begin`."""
        raise InputError("Latents of a generator do not follow from images, so this method cannot take them.")

    def draw(self, generator: torch.Generator) -> None:
        """Nothing random."""
        return None

    def decode(self, codes: Codes, y: Tensor, record: Any = None) -> Synthetic:
        """Images in the Space, rendered in chunks and without a graph."""
        return Synthetic(rendered(self.render_of(y), self._own(codes), self.chunk), y)

    def backward(self, codes: Codes, y: Tensor, record: Any, grads: Tensor) -> Codes:
        """The second pass."""
        return gradients_of(self.render_of(y), self._own(codes), grads, self.chunk)

    def render_of(self, y: Tensor) -> Any:
        """What renders rows of the codes, with a graph where there is one."""
        if y.ndim > 1 and self.layer == "z":
            raise InputError(
                "Latents z are rendered by the class of each image, and these labels are no classes; take layer=w."
            )
        positions = y if y.ndim == 1 else y.argmax(1)

        def render(codes: Mapping[str, Tensor], rows: slice) -> Tensor:
            generator = self._on(next(iter(codes.values())))
            if "z" in codes:
                x = generator.synthesize(generator.map(codes["z"], positions[rows].to(codes["z"].device)))
            elif "f" not in codes:
                x = generator.synthesize(codes["w"])
            else:
                n = int(self.layer[1:])
                ws = torch.cat([codes["w"][:, :1].expand(-1, n, -1), codes["w"]], dim=1)  # those before n take no part
                x = generator.synthesize(ws, codes["f"], n)
            return self._space.encode((x + 1) / 2)

        return render

    def rendered(self, shapes: Mapping[str, Sequence[int]], ipc: int, classes: int) -> tuple[int, int, int, int]:
        """One image for each row.

        Raises:
            InputError: there are other leaves, or of another size.
        """
        known = self._known()
        n = next((sizes[0] for sizes in shapes.values() if sizes), 0)
        wanted = self._sizes(known, n)
        if n < 1 or {name: tuple(sizes) for name, sizes in shapes.items()} != wanted:
            raise InputError(f"The latents are {dict(shapes)}, and {wanted} is needed.")
        channels, height, width = self.shape
        return n, channels, height, width

    def project(self, codes: Codes, context: Context, when: str) -> None:
        """Nothing: neither latents nor pixels are clamped."""

    def describe(self) -> dict[str, Any]:
        """For the manifest and the run's hash."""
        told = {"shape": list(self.shape), "classes": self.classes, "layer": self.layer, "start": self.start}
        return {"decoder": "style_latents", **told, "generator": self.generator}

    def _known(self) -> StyleGenerator:
        """The network that was brought, or one of the small generator's shapes without numbers."""
        if self._named is not None:
            return self._named.found()
        with torch.device("meta"):
            return TinyStyleGenerator(tuple(self.shape), self.classes)  # type: ignore[arg-type]

    def _sizes(self, known: StyleGenerator, n: int) -> dict[str, tuple[int, ...]]:
        if self.layer == "z":
            return {"z": (n, known.z_dim)}
        if self.layer == "w":
            return {"w": (n, known.num_ws, known.w_dim)}
        layer = int(self.layer[1:])
        with torch.no_grad():
            like = next(iter(known.state_dict().values()))  # type: ignore[attr-defined]
            f = known.features(torch.zeros(1, known.num_ws, known.w_dim, device=like.device, dtype=like.dtype), layer)
        return {"w": (n, known.num_ws - layer, known.w_dim), "f": (n, *f.shape[1:])}

    def _on(self, like: Tensor) -> Any:
        if self._network is None:
            raise InputError("These latents have no generator yet: it is prepared by a run, or read with its set.")
        if isinstance(self._network, torch.nn.Module):
            self._network.to(like.device, like.dtype)
        return self._network

    def _own(self, codes: Codes) -> Codes:
        return {name: codes[name] for name in ("z", "w", "f") if name in codes}

    def _mean_styles(self, context: Context, y: Tensor, like: Tensor) -> Tensor:
        """The mean style of each image's class."""
        generator, means = self._on(like), {}
        for c in context.block.classes:
            z = torch.randn(MEAN_OF, generator.z_dim, generator=context.rng.generator("mean-style", c)).to(like)
            means[c] = generator.map(z, torch.full((MEAN_OF,), c, device=like.device)).mean(0)
        return torch.stack([means[c] for c in y.tolist()])


DECODER = StyleLatents
