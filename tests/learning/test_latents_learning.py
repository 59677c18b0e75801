"""Latents as codes learn: LC-11, LC-12, and what the skip of LD3M is for (LD-4), on generators trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import datastill
from datastill.core.plan import Plan, Task
from datastill.core.rng import isolated
from datastill.data.real import RealSet
from datastill.decoders.pixels import Pixels
from datastill.distillation.preparation import prepare
from datastill.evaluation.protocols import get_protocol
from datastill.models import resolve_network
from datastill.models.generators.ddim import Ddim
from datastill.models.generators.tiny_ldm import TinyLDM
from datastill.sampling.inits import RandomReal
from datastill.training.generators.ldm import TinyLdmUnit

pytestmark = pytest.mark.slow
NET = "convnet:width=16,depth=2"


@pytest.fixture(scope="module")
def real() -> RealSet:
    return datastill.load_real("digits")


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("units")


def accuracy(one: Any, real: RealSet) -> float:
    protocol = replace(get_protocol("dc-v1"), passes=150)
    return float(datastill.evaluate(one, real, networks=3, protocol=protocol, random=False).distilled.mean)


@pytest.mark.parametrize("codes", ["glad:layer=w,train=400", "ld3m:train=500"])
def test_matching_moves_latents_to_better_images(real: RealSet, units: Path, codes: str) -> None:
    asked = {"ipc": 1, "network": NET, "codes": codes, "units": units}
    made = datastill.distill("dm", real, steps=100, real_batch=32, **asked)
    start = datastill.distill("random", real, **asked)
    assert accuracy(made, real) >= accuracy(start, real) + 0.03


def test_the_skip_keeps_the_gradient_of_the_latent(real: RealSet, units: Path) -> None:
    factory = resolve_network(NET, channels=1, classes=10, size=(8, 8))
    unit = TinyLdmUnit(steps=500)
    plan = Plan(init=RandomReal(), decoder=Pixels(), prepare=(unit,))
    with isolated(0):
        model = TinyLDM(real.shape, 10)
    model.load_state_dict(prepare(plan, Task(real, 1, factory, 0, folder=units))[0][unit.name])
    model.requires_grad_(False)
    found = {
        (steps, skip): _norm(model, real, Ddim(steps, skip=skip))
        for steps in (5, 10, 20)
        for skip in ("latent", "none")
    }
    assert found[10, "latent"] >= 5 * found[10, "none"], found
    assert found[20, "none"] < found[5, "none"], found


def _norm(model: TinyLDM, real: RealSet, chain: Ddim) -> float:
    """Of the gradient of z, of a random linear functional of ten rendered images; the median of five."""
    norms = []
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        x = 2 * real.pixels(torch.randint(len(real), (10,), generator=draws)) - 1
        z = model.encode(x).requires_grad_()
        noise, weights = torch.randn(z.shape, generator=draws), torch.randn(x.shape, generator=draws)
        made = model.decode(chain.latents(model, z, model.embed(torch.arange(10)), noise))
        norms.append(float(torch.autograd.grad((made * weights).sum(), z)[0].norm()))
    return sorted(norms)[2]
