"""Models of diffusers as decoders, tiny ones made here and saved in that library's own format."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import datastill
from datastill.cli import main
from datastill.core.errors import InputError, MissingExtra
from datastill.core.rng import isolated
from datastill.decoders.diffusion_latents import DiffusionLatents
from datastill.models.generators.diffusers_ldm import DiffusersLDM, diffusers, from_folder, of_hub
from datastill.store.artifact import TENSORS
from datastill.store.opening import sha256_of
from hub_server import point_to, serving

NET = "convnet:width=8,depth=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional-free pair for digits: classes, and one embedding of none."""
    try:
        library = diffusers()
    except MissingExtra:
        pytest.skip("diffusers is not installed")
    made = tmp_path_factory.mktemp("ldm")
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    with isolated(0):
        unet = library.UNet2DModel(
            sample_size=4, in_channels=2, out_channels=2, layers_per_block=1, num_class_embeds=11,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **blocks,
        )  # fmt: skip
        vae = library.AutoencoderKL(
            in_channels=1, out_channels=1, latent_channels=2, sample_size=8, scaling_factor=0.5,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks,
        )  # fmt: skip
    unet.save_pretrained(made / "unet")
    vae.save_pretrained(made / "vae")
    library.DDIMScheduler(prediction_type="v_prediction").save_pretrained(made / "scheduler")
    return made


def test_its_parts_are_those_of_the_library(folder: Path) -> None:
    library, (model, _) = diffusers(), from_folder(folder)
    model.of_classes(10)
    unet, vae = (
        library.UNet2DModel.from_pretrained(folder / "unet"),
        library.AutoencoderKL.from_pretrained(folder / "vae"),
    )
    x, y = torch.linspace(-1, 1, 3 * 64).view(3, 1, 8, 8), torch.tensor([4, 0, 9])
    with torch.no_grad():
        z = model.encode(x)
        assert torch.allclose(z, vae.encode(x).latent_dist.mode() * 0.5, atol=1e-6)
        assert torch.allclose(model.decode(z), vae.decode(z / 0.5).sample, atol=1e-6)
        v, a = unet(z, 300, class_labels=y).sample, model.alphas_cumprod[300]
        assert torch.allclose(model.eps(z, 300, model.embed(y)), a.sqrt() * v + (1 - a).sqrt() * z, atol=1e-6)
        none = unet(z, 300, class_labels=torch.full((3,), 10)).sample
        assert torch.allclose(model.eps(z, 300, None), a.sqrt() * none + (1 - a).sqrt() * z, atol=1e-6)
    assert (model.latent_shape, model.img_shape, model.condition_dim) == ((2, 4, 4), (1, 8, 8), 32)


@pytest.mark.slow
def test_a_set_carries_its_model_into_another_process(folder: Path, tmp_path: Path) -> None:
    codes = f"ld3m:steps=2,generator={folder}"
    made = datastill.distill(
        "dm", "digits", ipc=1, network=NET, steps=2, real_batch=4, codes=codes, out=tmp_path / "run"
    )
    assert {name: tuple(leaf.shape) for name, leaf in made.codes.items()} == {"z": (10, 2, 4, 4), "c": (10, 32)}
    script = "import sys, torch, datastill; torch.save(datastill.load_distilled(sys.argv[1]).images, sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "x.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), made.images)


def test_a_run_is_repeated_from_any_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator's folder is named from where the run was made; where it is repeated none lies under that name."""
    monkeypatch.chdir(folder.parent)
    words = ["dm", "--steps", "2", "--real-batch", "4", "--ipc", "1", "--network", NET, "--quiet"]
    words += ["--codes", f"ld3m:steps=2,generator={folder.name}"]
    assert main(["distill", *words, "--out", str(tmp_path / "x")]) == 0
    assert tomllib.loads((tmp_path / "x" / "run.toml").read_text())["codes"].count(str(folder)) == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["distill", "--config", str(tmp_path / "x" / "run.toml"), "--out", str(tmp_path / "y"), "--quiet"]) == 0
    assert sha256_of(tmp_path / "y" / TENSORS) == sha256_of(tmp_path / "x" / TENSORS)
    assert (tmp_path / "y" / "run.toml").read_text() == (tmp_path / "x" / "run.toml").read_text()


def test_a_model_of_the_hub_is_as_its_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched are configurations and safetensors alone; a second run, without a network, has the copy."""
    settings = {"ipc": 1, "network": NET, "steps": 2, "real_batch": 4}
    wanted = datastill.distill("dm", "digits", codes=f"ld3m:steps=2,generator={folder}", **settings)
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with serving() as hub:
        point_to(hub.url, tmp_path / "cache", monkeypatch)
        hub.put("me/ldm", {**files, "README.md": b"#", "unet/diffusion_pytorch_model.bin": b"pickle"})
        hub.put("me/text", {"README.md": b"#"})
        codes = "ld3m:steps=2,generator=hub:me/ldm"
        made = datastill.distill("dm", "digits", codes=codes, **settings)
        assert {name.rpartition("/")[2] for name in hub.fetched()} == {
            "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors",
        }  # fmt: skip
        for name, words in (("me/text", r"no unet/config\.json"), ("me/none", "no data set or model me/none")):
            with pytest.raises(InputError, match=words):
                of_hub(f"hub:{name}")
        with pytest.raises(InputError, match="NAME/SET"):
            of_hub("hub:ldm")
    again = datastill.distill("dm", "digits", codes=codes, **settings)
    for one in (made, again):
        assert torch.equal(one.images, wanted.images)
    with pytest.raises(InputError, match="no copy of hub:me/other"):
        of_hub("hub:me/other")


def test_what_is_no_such_model_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks unet/config\.json"):
        from_folder(tmp_path)
    configs = {part: json.loads((folder / part / f"{n}.json").read_text()) for part, n in
               (("unet", "config"), ("vae", "config"), ("scheduler", "scheduler_config"))}  # fmt: skip
    other = {**configs, "unet": {**configs["unet"], "_class_name": "MyUNet"}}
    with pytest.raises(InputError, match="UNet2DModel of diffusers, not 'MyUNet'"):
        DiffusersLDM(other)
    with pytest.raises(InputError, match="out of bounds"):
        DiffusersLDM({**configs, "vae": {**configs["vae"], "layers_per_block": 10**6}})
    with pytest.raises(InputError, match=r"makes images of \[1, 8, 8\]"):
        DiffusionLatents((1, 28, 28), 10, model={"diffusers": configs})
    with pytest.raises(InputError, match="in 11 classes"):
        DiffusionLatents((1, 8, 8), 7, model={"diffusers": configs})
