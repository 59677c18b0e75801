"""Latents of generators as codes: GL-1, 3, 4, 5 and LD-1, 2, 5, 6; and how sets carry their decoder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import datastill
from datastill.core.context import Context
from datastill.core.errors import InputError, Interrupted
from datastill.core.loop import gradients
from datastill.core.plan import Block, Callback, Plan, Task
from datastill.core.rng import Rng, isolated
from datastill.core.update import Sgd
from datastill.data.real import RealSet
from datastill.decoders import networks
from datastill.decoders.diffusion_latents import DiffusionLatents
from datastill.decoders.style_latents import StyleLatents
from datastill.evaluation.protocols import get_protocol
from datastill.methods.dm import DM
from datastill.models import resolve_network
from datastill.models.generators.ddim import Ddim, skip_weight
from datastill.models.generators.tiny_ldm import TinyLDM
from datastill.models.generators.tiny_style import TinyStyleGenerator
from datastill.store.artifact import MANIFEST, load_distilled
from datastill.store.opening import sha256_of
from datastill.store.rendering import DECODER_FILE

NET = "convnet:width=8,depth=1"
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def real() -> RealSet:
    return datastill.load_real("digits")


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generators that are trained for a few steps, once for all tests."""
    return tmp_path_factory.mktemp("units")


@pytest.fixture(scope="module")
def generator() -> TinyStyleGenerator:
    with isolated(0):
        return TinyStyleGenerator((3, 28, 20), 10).double().requires_grad_(False)


@pytest.fixture(scope="module")
def ldm() -> TinyLDM:
    with isolated(0):
        return TinyLDM(SHAPE, 10).double().requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(method: str, real: RealSet, units: Path, codes: str, **options: Any) -> Any:
    train = "" if "train" in codes else ",train=4"
    steps = {} if method == "random" else {"steps": 2, "real_batch": 4}
    codes = f"{codes}{'' if ':' in codes else ':'}{train if ':' in codes else train[1:]}"
    return datastill.distill(method, real, ipc=1, network=NET, codes=codes, units=units, **{**steps, **options})


def test_synthesis_may_begin_at_every_layer(generator: TinyStyleGenerator) -> None:
    ws = generator.map(normal(4, 32), torch.arange(4))
    whole = generator.synthesize(ws)
    assert whole.shape == (4, 3, 28, 20)
    assert whole.abs().max() <= 1
    for n in range(generator.num_layers):
        assert torch.allclose(generator.synthesize(ws, generator.features(ws, n), n), whole, atol=1e-12)
    other = torch.cat([normal(4, 2, 64, seed=1), ws[:, 2:]], dim=1)  # styles before the layer take no part
    assert torch.allclose(generator.synthesize(other, generator.features(ws, 2), 2), whole, atol=1e-12)


@pytest.mark.parametrize(("side", "layers"), [(8, 4), (28, 4), (32, 4), (64, 5), (128, 6)])
def test_it_fits_images_of_any_size(side: int, layers: int) -> None:
    with torch.device("meta"):
        generator = TinyStyleGenerator((3, side, side), 2)
        assert generator.num_layers == layers
        assert generator.synthesize(torch.zeros(1, generator.num_ws, 64)).shape == (1, 3, side, side)


def test_features_begin_finite_and_within_bounds(real: RealSet) -> None:
    class Overflows(TinyStyleGenerator):
        def features(self, ws: Tensor, n: int) -> Tensor:
            f = super().features(ws, n).clone()
            f.view(-1)[:5] = torch.tensor([float("nan"), float("inf"), -float("inf"), 70.0, -70.0])
            return f

    decoder = StyleLatents(SHAPE, 10, "f1")
    with isolated(0):
        decoder._network = Overflows(SHAPE, 10).requires_grad_(False)
    factory = resolve_network(NET, channels=1, classes=10, size=(8, 8))
    task = Task(real, 1, factory, 0)
    context = Context(task, None, Block(0, torch.arange(10), task.labels), Rng(0))  # type: ignore[arg-type]
    decoder.bind = lambda weights, space: None  # type: ignore[method-assign]
    codes = decoder.begin(context, torch.zeros(10, *SHAPE), {})
    assert codes["f"].view(-1)[:5].tolist() == [0, 5, -5, 10, -10]
    assert decoder.note() == "5 numbers of the features were clipped at the start"


def test_a_step_moves_latents_and_leaves_the_generator(real: RealSet) -> None:
    decoder = StyleLatents(SHAPE, 10, "w")
    with isolated(0):
        weights = TinyStyleGenerator(SHAPE, 10).state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    decoder.bind(weights, real.space)
    factory = resolve_network(NET, channels=1, classes=10, size=(8, 8))
    task = Task(real, 1, factory, 0)
    plan: Plan = replace(DM(steps=1, real_batch=8).build(task), decoder=decoder, update={"w": Sgd(1.0)}, augment=None)
    context = Context(task, plan, Block(0, torch.arange(10), task.labels), Rng(0), steps=3)
    network = decoder._network
    codes = {"w": network.map(normal(10, 32).float(), torch.arange(10)).contiguous()}
    losses = []
    for _ in range(2):
        context.codes, context.surrogate = codes, plan.surrogates.draw(context)  # type: ignore[union-attr]
        loss, grads = gradients(context, None)
        losses.append(float(loss.sum()))
        codes = {"w": codes["w"] - 0.05 * grads["w"] / grads["w"].norm() * codes["w"].norm()}
    assert losses[1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_weights_of_what_is_mixed_in_fall_to_none() -> None:
    assert [skip_weight(i, 5) for i in (4, 3, 2, 1, 0)] == [1, 0.75, 0.5, 0.25, 0]
    assert skip_weight(0, 1) == 0


class NoNoise:
    """A model that sees no noise anywhere, and counts how often it is asked."""

    def __init__(self) -> None:
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 100, dtype=torch.float64)
        self.asked = 0

    def eps(self, z: Tensor, t: int, c: Tensor | None) -> Tensor:
        self.asked += 1
        return torch.zeros_like(z)

    def null_embed(self, n: int) -> Tensor:
        return torch.zeros(n, 3)

    def quantize(self, z: Tensor) -> Tensor:
        return z


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_without_noise_and_skip_the_chain_has_a_closed_form(steps: int) -> None:
    model, z, noise = NoNoise(), normal(2, 4), normal(2, 4, seed=1)
    chain = Ddim(steps, skip="none")
    a = model.alphas_cumprod[chain.times(model)[-1]]  # type: ignore[arg-type]
    found = chain.latents(model, z, None, noise)  # type: ignore[arg-type]
    assert torch.allclose(found, z + ((1 - a) / a).sqrt() * noise)  # z_T / sqrt(a_T)


def test_the_first_step_with_the_skip_is_the_latent() -> None:
    model, z, noise = NoNoise(), normal(2, 4), normal(2, 4, seed=1)
    assert torch.allclose(Ddim(4).latents(model, z, None, noise), z)  # type: ignore[arg-type]
    on_prev = Ddim(4, skip_on="prev").latents(model, z, None, noise)  # type: ignore[arg-type]
    noisy = Ddim(4, skip="noisy").latents(model, z, None, noise)  # type: ignore[arg-type]
    assert not torch.allclose(on_prev, z)
    assert not torch.allclose(noisy, z)


def test_guidance_of_one_goes_without_the_branch_of_no_class() -> None:
    for guidance, asked in ((1, 3), (3, 6)):
        model = NoNoise()
        Ddim(3, guidance=guidance).latents(model, normal(2, 4), torch.zeros(2, 3), normal(2, 4))  # type: ignore[arg-type]
        assert model.asked == asked


def test_latents_and_conditions_have_gradients(ldm: TinyLDM) -> None:
    z, c = normal(2, *ldm.latent_shape).requires_grad_(), normal(2, 32).requires_grad_()
    x = ldm.decode(Ddim(3).latents(ldm, z, c, normal(2, *ldm.latent_shape, seed=1)))
    grads = torch.autograd.grad(x.sum(), (z, c))
    assert all(float(g.abs().max()) > 0 for g in grads)


@pytest.mark.parametrize("codes", ["glad:layer=f2,start=mean", "ld3m:steps=2", "ld3m:noise=fixed"])
def test_a_set_is_read_with_its_decoder(real: RealSet, units: Path, codes: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = made("dm", real, units, codes, out=run)
    assert (run / DECODER_FILE).is_file()
    assert one.manifest["files"].keys() == {"synthetic.safetensors", DECODER_FILE, MANIFEST}
    again = load_distilled(run)
    assert torch.equal(again.images, one.images)
    assert len({float(x.std()) for x in one.images}) == 10
    start = made("random", real, units, codes)
    assert all(not torch.equal(one.codes[n], start.codes[n]) for n in one.codes if n != "noise")
    found = datastill.evaluate(again, real, networks=1, protocol=replace(get_protocol("dc-v1"), passes=2))
    assert found.distilled.mean > 0
    assert again.record.change("codes")["how"] == codes.partition(":")[0]  # type: ignore[index]


def test_another_process_renders_the_same_without_training_code(real: RealSet, units: Path, tmp_path: Path) -> None:
    one = made("dm", real, units, "glad:layer=f1", out=tmp_path / "run")
    script = "import sys, torch, datastill; torch.save(datastill.load_distilled(sys.argv[1]).images, sys.argv[2])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run"), str(tmp_path / "x.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), one.images)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dsa", {"inner": 1, "outer": 1, "real_batch": 4}),
        ("mtt", {"expert_count": 1, "expert_epochs": 2, "max_start": 1, "span": 1, "student_steps": 2}),
    ],
)
def test_any_objective_takes_them(real: RealSet, units: Path, method: str, options: dict[str, int]) -> None:
    codes = "ld3m:steps=2,train=4"
    one = datastill.distill(method, real, ipc=1, network=NET, codes=codes, units=units, steps=2, **options)
    assert one.codes.keys() == {"z", "c"}
    assert one.images.shape == (10, 1, 8, 8)


def test_a_resumed_run_is_the_same(real: RealSet, units: Path, tmp_path: Path) -> None:
    class Stops(Callback):
        def after_step(self, context: Context) -> None:
            if context.step == 1:
                raise KeyboardInterrupt

    whole = made("dm", real, units, "ld3m:steps=2", steps=4)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        made("dm", real, units, "ld3m:steps=2", steps=4, out=tmp_path / "run", callbacks=[Stops()])
    again = made("dm", real, units, "ld3m:steps=2", steps=4, out=tmp_path / "run", resume=True)
    assert all(torch.equal(again.codes[name], whole.codes[name]) for name in whole.codes)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ("glad:layer=f4", "has the layers z, w, f0, f1, f2, f3, and no layer 'f4'"),
        ("glad:layers=z", "Did you mean 'layer'"),
        ("glad:start=zero", "start"),
        ("glad:generator=stylegan", "no generator 'stylegan'"),
        ("glad:lr=-1", "lr of codes"),
        ("ld3m:steps=1001", "from 1 to 1,000 steps"),
        ("ld3m:skip=all", "skip"),
        ("ld3m:generator=nowhere", "no generator 'nowhere'"),
    ],
)
def test_what_cannot_be_is_told(real: RealSet, codes: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        datastill.distill("dm", real, ipc=1, network=NET, steps=1, codes=codes)


def test_methods_of_several_images_in_one_are_refused(real: RealSet) -> None:
    with pytest.raises(InputError, match="give --factor 1"):
        datastill.distill("idc", real, ipc=1, network=NET, steps=1, codes="glad")


@pytest.fixture
def run(real: RealSet, units: Path, tmp_path: Path) -> Path:
    made("dm", real, units, "glad:layer=f1", out=tmp_path / "run")
    return tmp_path / "run"


def rewritten(run: Path, change: Any) -> None:
    """Change a manifest and leave its checksum out, as older ones have none."""
    record = json.loads((run / MANIFEST).read_text())
    record["files"].pop(MANIFEST, None)
    change(record)
    (run / MANIFEST).write_text(json.dumps(record))


def test_a_decoder_file_that_was_changed_is_refused(run: Path) -> None:
    path = run / DECODER_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="not what was written"):
        load_distilled(run)


@pytest.mark.parametrize("fault", ["shape", "missing", "more", "nan", "cut", "gone"])
def test_hostile_decoder_files_are_refused(run: Path, fault: str) -> None:
    path, tensors = run / DECODER_FILE, load_file(run / DECODER_FILE)
    if fault == "shape":
        tensors["constant"] = tensors["constant"][:, :3].contiguous()
    elif fault == "missing":
        del tensors["constant"]
    elif fault == "more":
        tensors["code"] = torch.zeros(3)
    elif fault == "nan":
        tensors["constant"] = torch.full_like(tensors["constant"], float("nan"))
    save_file(tensors, path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:900])
    elif fault == "gone":
        path.unlink()
    if fault != "gone":
        sha = sha256_of(path)
        rewritten(run, lambda record: record["files"].update({DECODER_FILE: sha}))
    with pytest.raises(InputError):
        load_distilled(run)


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "f9"}, {"layer": 3}, {"classes": 10**9}, {"shape": [1, 8]}, {"shape": [1, 8, -8]}, {"start": "x"},
        {"generator": {"name": "x"}}, {"generator": {"name": "x", "sha256": "0" * 64, "bytes": 5}}, {"other": 1},
        {"shape": [1, 65_536, 65_536]},
    ],
)  # fmt: skip
def test_hostile_records_of_a_decoder_are_refused(run: Path, change: dict[str, Any]) -> None:
    rewritten(run, lambda record: record["decoder"].update(change))
    with pytest.raises(InputError):
        load_distilled(run)


def test_a_generator_of_yours_is_named_by_its_hash_and_not_carried(
    real: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with isolated(0):
        mine = TinyStyleGenerator(SHAPE, 10)
    networks.register_generator("mine", mine)
    one = datastill.distill(
        "dm", real, ipc=1, network=NET, steps=1, real_batch=4, codes="glad:generator=mine", out=tmp_path / "run"
    )
    told = one.manifest["decoder"]["generator"]
    assert told["bytes"] == sum(t.numel() * 4 for t in mine.state_dict().values())
    assert not (tmp_path / "run" / DECODER_FILE).exists()
    assert torch.equal(load_distilled(tmp_path / "run").images, one.images)
    monkeypatch.setattr(networks, "_BROUGHT", {})
    with pytest.raises(InputError, match=r"'mine' \(.* MB, sha256 .*\) is not in the artifact: register it"):
        load_distilled(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


def test_generators_of_other_images_are_refused(real: RealSet) -> None:
    with isolated(0):
        networks.register_generator("wide", TinyStyleGenerator((3, 8, 8), 10))
        networks.register_generator("few", TinyStyleGenerator(SHAPE, 7))
        line = nn.Linear(2, 2)
    for name, words in (("wide", r"images of \[3, 8, 8\]"), ("few", "in 7 classes")):
        with pytest.raises(InputError, match=words):
            datastill.distill("dm", real, ipc=1, network=NET, steps=1, codes=f"glad:generator={name}")
    with pytest.raises(InputError, match="Linear is no generator"):
        networks.register_generator("line", line)
    with pytest.raises(InputError, match="is no LatentDiffusion"):
        datastill.distill("dm", real, ipc=1, network=NET, steps=1, codes="ld3m:generator=wide")


def test_decoders_of_diffusion_refuse_what_they_cannot_be() -> None:
    for options, words in (({"steps": 0}, "steps"), ({"guidance": "x"}, "guidance"), ({"noise": "loud"}, "noise")):
        with pytest.raises(InputError, match=words):
            DiffusionLatents(SHAPE, 10, **options)  # type: ignore[arg-type]


def test_what_small_generators_and_latents_by_class_are_not_for() -> None:
    for build in (TinyStyleGenerator, TinyLDM):
        with torch.device("meta"), pytest.raises(InputError, match="at most 512 pixels"):
            build((1, 1, 65_536), 10)
    decoder = StyleLatents((1, 8, 8), 3, "z", "random", None)
    with pytest.raises(InputError, match="these labels are no classes"):
        decoder.render_of(torch.rand(4, 3, generator=torch.Generator().manual_seed(0)))
