"""Latents of generators in the place of pixels: `--codes glad` and `--codes ld3m`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datastill.core.errors import InputError
from datastill.core.plan import UpdateRule
from datastill.core.ranges import Count, RateOrAuto, Weight
from datastill.overrides.codes import Codes, whole_images

if TYPE_CHECKING:
    from torch import Tensor

    from datastill.core.plan import Decoder, Plan, Stepper, Task, Unit

#: RMS of the first steps, in units of the leaf's own RMS at the start, and the momentum of GLaD and LD3M.
_STEP, _MOMENTUM = 0.02, 0.5


@dataclass(frozen=True)
class OfItsSize:
    """SGD with momentum whose first steps are a `part` of the leaf's RMS at its start: latents have no usual scale."""

    part: float
    momentum: float

    def bind(self, leaf: Tensor) -> Stepper:
        """The calibrated rule for this leaf."""
        from datastill.engines.hypergradient import Calibrated

        rms = float(leaf.detach().double().square().mean().sqrt())
        return Calibrated(self.part * max(rms, 1e-6), self.momentum).bind(leaf)


def rule_of(rate: float) -> UpdateRule:
    """At a rate that is given, or one that follows from the first gradients."""
    from datastill.core.update import Sgd

    return Sgd(rate, _MOMENTUM) if rate else OfItsSize(_STEP, _MOMENTUM)


def with_latents(plan: Plan, decoder: Decoder, rules: dict[str, UpdateRule], units: tuple[Unit, ...]) -> Plan:
    """The plan with the decoder in the place of its pixels; where its pixels do not move, nor do latents."""
    others = {name: rule for name, rule in plan.update.items() if name != "images"}
    update = {**others, **rules} if "images" in plan.update else others
    return replace(plan, decoder=decoder, update=update, prepare=(*plan.prepare, *units))


@dataclass(frozen=True)
class StyleCodes(Codes):
    """Latents of a style-based generator at any layer (GLaD: Cazenavette et al., CVPR 2023, arXiv:2305.01649)."""

    how = "glad"
    layer: str = (
        "w"  #: "z" before the mapping, "w" the styles, "f0", "f1", ...: features that enter a layer, and styles
    )
    start: Literal["random", "mean"] = "random"  #: latents drawn for each image, or the mean style of its class
    generator: str = "tiny"  #: the small one that is trained here, or a registered one of yours
    lr: RateOrAuto = 0.0  #: of z or w; 0 follows from the first gradients
    lr_f: RateOrAuto = 0.0  #: of the features
    train: Count = 500  #: steps of the small generator's training

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        """The plan with latents as its codes."""
        from datastill.decoders.networks import named
        from datastill.decoders.style_latents import StyleLatents
        from datastill.labels.learned import Learned
        from datastill.sampling.inits import NoImages
        from datastill.training.generators.style import TinyStyleUnit

        whole_images(plan, method)
        if isinstance(plan.labels, Learned) and plan.labels.start is not None:
            raise InputError(f"{method} begins its labels from the images of the start, and latents begin without any.")
        own = self.generator == "tiny"
        brought = None if own else named(self.generator)
        decoder = StyleLatents(task.real.shape, task.real.classes, self.layer, self.start, brought)
        rules = {"z": rule_of(self.lr)} if self.layer == "z" else {"w": rule_of(self.lr)}
        if self.layer.startswith("f"):
            rules["f"] = rule_of(self.lr_f)
        units = (TinyStyleUnit(steps=self.train),) if own else ()
        return replace(with_latents(plan, decoder, rules, units), init=NoImages())


@dataclass(frozen=True)
class DiffusionCodes(Codes):
    """Latents and conditions of a latent diffusion model (LD3M: Moser et al., arXiv:2403.03881)."""

    how = "ld3m"
    steps: Count = 5  #: of the denoising
    guidance: Weight = 3.0  #: 1 goes without classifier-free guidance
    skip: Literal["latent", "noisy", "none"] = "latent"  #: what every step has mixed in, less and less of it
    skip_on: Literal["x0", "prev"] = "x0"  #: where
    noise: Literal["per-iteration", "fixed", "fresh"] = "per-iteration"  #: how long a draw of it lasts
    #: the small one that is trained here, a registered one, a folder of diffusers, or one on the Hub (hub:OWNER/NAME)
    generator: str = "tiny"
    lr: RateOrAuto = 0.0  #: of the latents; 0 follows from the first gradients
    lr_c: RateOrAuto = 0.0  #: of the conditions
    train: Count = 900  #: steps of the small model's training

    @property
    def folder(self) -> str:
        """That of diffusers, where the generator is one."""
        return self.generator if self.generator != "tiny" and Path(self.generator).is_dir() else ""

    def apply(self, plan: Plan, method: str, task: Task) -> Plan:
        """The plan with latents as its codes, started from real images."""
        from datastill.decoders.diffusion_latents import DiffusionLatents
        from datastill.decoders.networks import named
        from datastill.sampling.inits import RandomReal
        from datastill.training.generators.ldm import TinyLdmUnit

        whole_images(plan, method)
        own = self.generator == "tiny"
        chain = (self.steps, self.guidance, self.skip, self.skip_on, self.noise)
        weights, model = self._of_diffusers()
        if model is None and not own:
            model = named(self.generator)
        decoder = DiffusionLatents(task.real.shape, task.real.classes, *chain, model)
        if weights is not None:
            decoder.bind(weights, task.real.space)
        rules = {"z": rule_of(self.lr)}
        if decoder.conditioned:
            rules["c"] = rule_of(self.lr_c)
        units = (TinyLdmUnit(steps=self.train),) if own else ()
        return replace(with_latents(plan, decoder, rules, units), init=RandomReal())

    def _of_diffusers(self) -> tuple[Mapping[str, Tensor] | None, dict[str, Any] | None]:
        """The weights of a model of diffusers, and what a manifest says of it, where the generator is one."""
        from datastill.store.hub import SCHEME

        if self.generator.startswith(SCHEME):
            from datastill.models.generators.diffusers_ldm import of_hub

            return _of_folder(of_hub(self.generator))
        return _of_folder(self.folder) if self.folder else (None, None)


def _of_folder(folder: str | Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The weights of a diffusers model, and what a manifest says of it."""
    from datastill.models.generators.diffusers_ldm import from_folder
    from datastill.store.files import digest

    model, configs = from_folder(folder)
    weights = model.state_dict()
    return weights, {"diffusers": configs, "sha256": digest(weights, 64)}
