"""Latent diffusion models of `diffusers`, in that library's own format: from a folder, or by name from the Hub."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datastill.core.errors import InputError, MissingExtra
from datastill.core.torchvision import import_torchvision
from datastill.store.files import read_json, read_tensors
from datastill.store.hub import hub_errors, hub_name, listing, reachable, refuse_sizes, silent_bars, unreachable
from datastill.store.schema import WEIGHTS

#: The classes that are built, by name, and where a folder holds each part.
_KNOWN = {
    "unet": ("UNet2DModel",),
    "vae": ("AutoencoderKL", "VQModel"),
    "scheduler": ("DDIMScheduler", "DDPMScheduler"),
}
_FOLDERS = {"unet": ("unet",), "vae": ("vae", "vqvae"), "scheduler": ("scheduler",)}
_WEIGHTS = "diffusion_pytorch_model.safetensors"
#: What is fetched of a model of the Hub.
_FILES = [f"{part}/{file}" for part in ("unet", "vae", "vqvae") for file in ("config.json", _WEIGHTS)]
_FILES.append("scheduler/scheduler_config.json")
#: Bounds on what a configuration may say: built before any weight is read.
_LARGEST, _LONGEST, _LAYERS = 8192, 16, 16


def diffusers() -> Any:
    """The library.

    Raises:
        MissingExtra: it is not installed.
    """
    with contextlib.suppress(MissingExtra):
        import_torchvision()  # which diffusers takes where it is there
    try:
        import diffusers as found
    except ModuleNotFoundError as error:
        raise MissingExtra(
            'This needs diffusers, which is not installed: pip install "datastill[diffusers]".'
        ) from error
    return found


class DiffusersLDM(nn.Module):
    """A `UNet2DModel`, with or without classes, in the latents of an `AutoencoderKL` or `VQModel`.

    Args:
        configs: of "unet", "vae" and "scheduler", as their JSON files have them.

    Raises:
        InputError: a part is of another class, or its configuration none that can be built.
    """

    alphas_cumprod: Tensor

    def __init__(self, configs: Mapping[str, Any]) -> None:
        super().__init__()
        for part in _KNOWN:
            _refuse_unfit(part, configs.get(part))
        library = diffusers()
        try:
            self.unet, self.vae = (
                getattr(library, configs[part]["_class_name"]).from_config(dict(configs[part]))
                for part in ("unet", "vae")
            )
            with torch.device("cpu"):
                scheduler = library.DDIMScheduler.from_config(dict(configs["scheduler"]))
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError, ZeroDivisionError, AttributeError) as error:
            raise InputError(f"diffusers cannot build this model: {str(error).splitlines()[0][:200]}") from error
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod, persistent=False)
        self.predicts = str(scheduler.config.prediction_type)
        self._sizes()
        self.labels = self.unet.class_embedding
        if self.labels is not None:
            self.unet.class_embedding = nn.Identity()  # conditions come embedded

    def _sizes(self) -> None:
        unet, vae = self.unet.config, self.vae.config
        factor = 2 ** (len(vae.block_out_channels) - 1)
        side = unet.sample_size
        height, width = (side, side) if isinstance(side, int) else (side or (0, 0))
        self.latent_shape = (int(unet.in_channels), int(height), int(width))
        self.img_shape = (int(vae.in_channels), factor * int(height), factor * int(width))
        known = unet.num_class_embeds or 0
        if (
            unet.class_embed_type not in (None, "None")
            or not min(self.latent_shape)
            or unet.out_channels != unet.in_channels
            or vae.out_channels != vae.in_channels
            or vae.latent_channels != unet.in_channels
        ):
            raise InputError(
                "Of diffusers, a UNet2DModel with a sample_size, as many channels out as in, those of the autoencoder "
                "alike, and class embeddings of the plain kind or none is taken."
            )
        if self.predicts not in ("epsilon", "v_prediction", "sample"):
            raise InputError(f"The scheduler's prediction_type {self.predicts!r} is none that is known.")
        self.rows = int(known)
        self.classes = self.rows
        self.condition_dim = 4 * int(unet.block_out_channels[0]) if known else 0
        self.scaling = float(vae.scaling_factor or 1.0)

    def of_classes(self, classes: int) -> DiffusersLDM:
        """The model for so many classes: one more embedding than these is that of no class."""
        self.classes = classes if self.rows == classes + 1 else self.rows
        return self

    def encode(self, x: Tensor) -> Tensor:
        """The mode of the latents."""
        found = self.vae.encode(x)
        return (found.latents if "latents" in found else found.latent_dist.mode()) * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        """Images in about [-1, 1]."""
        return self.vae.decode(z / self.scaling).sample

    def eps(self, z: Tensor, t: int, c: Tensor | None) -> Tensor:
        """The noise, from what the model predicts."""
        labels = None if self.labels is None else (self.null_embed(len(z)) if c is None else c)
        found: Tensor = self.unet(z, t, class_labels=labels).sample
        alpha = self.alphas_cumprod[t].to(z)
        if self.predicts == "v_prediction":
            return alpha.sqrt() * found + (1 - alpha).sqrt() * z
        if self.predicts == "sample":
            return (z - alpha.sqrt() * found) / (1 - alpha).sqrt()
        return found

    def embed(self, y: Tensor) -> Tensor:
        """The embeddings of classes."""
        return self.labels(y)

    def null_embed(self, n: int) -> Tensor:
        """That of no class, the last where there is one more than classes, else zeros."""
        if self.rows == self.classes + 1:
            return self.labels.weight[-1:].expand(n, -1)
        like = self.labels.weight
        return torch.zeros(n, self.condition_dim, dtype=like.dtype, device=like.device)

    def quantize(self, z: Tensor) -> Tensor:
        """Straight-through to the codebook of a VQModel."""
        if "quantize" not in dict(self.vae.named_children()):
            return z
        return self.vae.quantize(z / self.scaling)[0] * self.scaling


def of_hub(source: str) -> Path:
    """The folder where a model of the Hub is kept; configurations and safetensors are fetched, where it answers.

    Args:
        source: "hub:OWNER/NAME", with "@REVISION" behind it or not.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    name, _, revision = str(hub_name(source)).partition("@")
    revision = revision or "main"
    with hub_errors(name), silent_bars():
        if not reachable():
            with contextlib.suppress(LocalEntryNotFoundError):
                return Path(snapshot_download(name, allow_patterns=_FILES, revision=revision, local_files_only=True))
            raise unreachable(f", and there is no copy of {source} here")
        listed = listing(name, revision, model=True)
        wanted = [file for file in _FILES if file in listed.sizes]
        refuse_sizes(source, listed, wanted)
        if not wanted:
            raise InputError(f"{source} is no latent diffusion model of diffusers: it has no unet/config.json.")
        return Path(snapshot_download(name, allow_patterns=wanted, revision=revision))


def from_folder(folder: str | Path) -> tuple[DiffusersLDM, dict[str, Any]]:
    """A model saved by `save_pretrained`, and the configurations of its parts.

    Raises:
        InputError: a part is missing or cannot be taken; pickled weights (.bin) are not read.
        MissingExtra: diffusers is not installed.
    """
    folder = Path(folder)
    configs: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    for part, names in _FOLDERS.items():
        inside = next((folder / name for name in names if (folder / name).is_dir()), None)
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        if inside is None or not (inside / file).is_file():
            raise InputError(f"{folder} is no latent diffusion model of diffusers: it lacks {names[0]}/{file}.")
        configs[part] = read_json(inside / file)
        if part != "scheduler":
            if not (inside / _WEIGHTS).is_file():
                raise InputError(
                    f"{inside} lacks {_WEIGHTS}; pickled weights (.bin) are not read, since they run code."
                )
            weights |= {f"{part}.{n}": t for n, t in read_tensors(inside / _WEIGHTS, {"*": WEIGHTS})[0].items()}
    with torch.device("meta"):
        model = DiffusersLDM(configs)
    renamed = {name.replace("unet.class_embedding.", "labels."): tensor for name, tensor in weights.items()}
    try:
        model.load_state_dict(renamed, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"The weights in {folder} do not fit its configuration: {str(error).splitlines()[-1][:200]}"
        ) from error
    return model.requires_grad_(False).eval(), configs


def _refuse_unfit(part: str, config: Any) -> None:
    """Refuse a configuration of another class, or that claims far more than any model has."""
    kind = config.get("_class_name") if isinstance(config, Mapping) else None
    if kind not in _KNOWN[part]:
        raise InputError(
            f"The {part} of a diffusion model is a {' or '.join(_KNOWN[part])} of diffusers, not {kind!r}."
        )
    for name, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        most = _LAYERS if "layers" in name else _LARGEST
        if len(values) > _LONGEST or any(abs(v) > most for v in numbers):
            raise InputError(
                f"The {part} of a diffusion model says {name} = {str(value)[:60]}, which is out of bounds."
            )
