"""Two-pass rendering against one graph through generator and objective, in float64 (GL-2, LD-3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from datastill import load_real
from datastill.core.context import Context
from datastill.core.errors import InputError
from datastill.core.loop import gradients
from datastill.core.plan import Block, Plan, Synthetic, Task
from datastill.core.rng import Rng, isolated
from datastill.core.two_pass import gradients_of, rendered
from datastill.core.update import Sgd
from datastill.data import RealSet
from datastill.decoders.diffusion_latents import DiffusionLatents
from datastill.decoders.style_latents import StyleLatents
from datastill.methods.dc import DC
from datastill.methods.dm import DM
from datastill.models import resolve_network
from datastill.models.generators.tiny_ldm import TinyLDM
from datastill.models.generators.tiny_style import TinyStyleGenerator

CLASSES = 10


class InOneGraph:
    """The same decoder with a graph from codes to images, which only a small set could afford."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def decode(self, codes: dict[str, Tensor], y: Tensor, record: Any = None) -> Synthetic:
        render = self.decoder.render_of(y if isinstance(self.decoder, StyleLatents) else record or 0)
        own = {name: codes[name] for name in ("z", "w", "f", "c") if name in codes}
        return Synthetic(render(own, slice(0, len(y))), y)

    def backward(self, codes: dict[str, Tensor], y: Tensor, record: Any, grads: Tensor) -> dict[str, Tensor]:
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in codes.items()}
        with torch.enable_grad():
            total = (self.decode(leaves, y, record).x * grads).sum()
            return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()))))


@pytest.fixture(scope="module")
def digits() -> RealSet:
    return load_real("digits")


def style(real: RealSet, layer: str) -> tuple[StyleLatents, dict[str, Tensor]]:
    decoder = StyleLatents(real.shape, CLASSES, layer)
    with isolated(1):
        network = TinyStyleGenerator(real.shape, CLASSES).double()
    decoder.bind(network.state_dict(), real.space)
    y, z = torch.arange(CLASSES), torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        ws = network.map(z, y)
        if layer == "z":
            return decoder, {"z": z}
        if layer == "w":
            return decoder, {"w": ws.contiguous()}
        n = int(layer[1:])
        return decoder, {"w": ws[:, n:].contiguous(), "f": network.features(ws, n)}


def diffusion(real: RealSet, **options: Any) -> tuple[DiffusionLatents, dict[str, Tensor]]:
    decoder = DiffusionLatents(real.shape, CLASSES, steps=3, **options)
    with isolated(1):
        network = TinyLDM(real.shape, CLASSES).double()
    decoder.bind(network.state_dict(), real.space)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(CLASSES, *network.latent_shape, generator=generator).double()
    return decoder, {"z": z, "c": torch.randn(CLASSES, 32, generator=generator).double()}


def dm_loss(context: Context) -> Tensor:
    """DM as it is published, as one loss of the images."""
    network, batch = context.surrogate, context.real_batch()
    real, made = network.embed(batch.x.double()), network.embed(context.synthetic.x)
    means = [(real[batch.y == c].mean(0) - made[context.synthetic.y == c].mean(0)) for c in range(CLASSES)]
    return torch.stack(means).square().sum()


def dc_loss(context: Context) -> Tensor:
    """Squared distance of the weight gradients of each class."""
    network, batch, made = context.surrogate, context.real_batch(), context.synthetic
    parameters, total = list(network.parameters()), torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        sides = [(batch.x.double()[batch.y == c], c, False), (made.x[made.y == c], c, True)]
        found = []
        for x, label, graph in sides:
            y = torch.full((len(x),), label)
            loss = torch.nn.functional.cross_entropy(network(x), y)
            found.append(torch.autograd.grad(loss, parameters, create_graph=graph, allow_unused=True))
        total = total + sum((a - b).square().sum() for a, b in zip(*found) if b is not None)
    return total


def step(real: RealSet, method: Any, decoder: Any, codes: dict[str, Tensor], objective: Any = None) -> Any:
    factory = resolve_network("convnet:width=8,depth=1", channels=1, classes=CLASSES, size=real.shape[1:])
    task = Task(real, 1, factory, 0)
    plan: Plan = method.build(task)
    plan = replace(plan, decoder=decoder, update={name: Sgd(1.0) for name in codes}, augment=None)
    plan = plan if objective is None else replace(plan, objective=objective)
    context = Context(task, plan, Block(0, torch.arange(CLASSES), task.labels), Rng(0), steps=3)
    context.codes = codes
    context.surrogate = factory(3).double() if objective else plan.surrogates.draw(context)
    loss, grads = gradients(context, 12345)
    assert not context.synthetic.x.requires_grad
    return loss, grads


@pytest.mark.parametrize("layer", ["z", "w", "f2", "ld3m"])
@pytest.mark.parametrize("objective", [dm_loss, dc_loss])
def test_gradients_are_those_of_one_graph(digits: RealSet, layer: str, objective: Any) -> None:
    decoder, codes = diffusion(digits) if layer == "ld3m" else style(digits, layer)
    method = DM(steps=1, real_batch=8)
    wanted_loss, wanted = step(digits, method, InOneGraph(decoder), codes, objective)
    for chunk in (1, 3, CLASSES):
        decoder.chunk = chunk
        loss, found = step(digits, method, decoder, codes, objective)
        assert torch.allclose(loss, wanted_loss, rtol=1e-12)
        for name in codes:
            assert wanted[name].abs().max() > 0
            assert (found[name] - wanted[name]).abs().max() < 1e-10 * wanted[name].abs().max()


@pytest.mark.parametrize("method", [DM(steps=1, real_batch=8), DC(steps=1, real_batch=8, outer=1, inner=1)])
def test_objectives_that_give_gradients_of_images_go_through_it_too(digits: RealSet, method: Any) -> None:
    decoder, codes = style(digits, "f1")
    decoder.chunk, codes = 3, {name: leaf.float() for name, leaf in codes.items()}
    loss, found = step(digits, method, decoder, codes)
    wanted_loss, wanted = step(digits, method, InOneGraph(decoder), codes)
    assert torch.allclose(loss, wanted_loss)
    for name in codes:
        assert (found[name] - wanted[name]).abs().max() < 1e-4 * wanted[name].abs().max()


def test_noise_is_the_same_in_both_passes_unless_asked_to_be_fresh(digits: RealSet) -> None:
    pinned, codes = diffusion(digits)
    fresh, _ = diffusion(digits, noise="fresh")
    assert torch.equal(pinned.decode(codes, torch.arange(10), 7).x, fresh.decode(codes, torch.arange(10), 7).x)
    assert not torch.equal(pinned.decode(codes, torch.arange(10), 7).x, pinned.decode(codes, torch.arange(10), 8).x)
    shape, generator = pinned.decode(codes, torch.arange(10), 7).x.shape, torch.Generator().manual_seed(0)
    grads = torch.randn(shape, generator=generator, dtype=torch.float64)
    wanted = InOneGraph(pinned).backward(codes, torch.arange(10), 7, grads)
    same, other = (d.backward(codes, torch.arange(10), 7, grads) for d in (pinned, fresh))
    assert (same["z"] - wanted["z"]).norm() < 1e-10 * wanted["z"].norm()
    assert (other["z"] - wanted["z"]).norm() > 0.05 * wanted["z"].norm()


def test_only_one_chunk_has_a_graph_and_each_is_rendered_twice() -> None:
    live, most, calls = 0, 0, 0

    class Counted(torch.autograd.Function):
        """Counts the rows whose graph is alive."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            nonlocal live
            live -= len(grad)
            return grad

    def render(codes: Any, rows: slice) -> Tensor:
        nonlocal live, most, calls
        calls += 1
        assert len(codes["z"]) <= 4
        if torch.is_grad_enabled():
            live += len(codes["z"])
            most = max(most, live)
        return Counted.apply(codes["z"]).square()

    for count in (3, 50):
        live = most = calls = 0
        codes = {"z": torch.arange(5.0 * count).view(count, 5), "index": torch.arange(count)}
        x = rendered(render, codes, 4)
        assert not x.requires_grad
        found = gradients_of(render, codes, torch.ones_like(x), 4)
        assert torch.equal(found["z"], 2 * codes["z"])
        assert "index" not in found
        assert calls == 2 * -(-count // 4)
        assert most == min(count, 4)
        assert live == 0


def test_a_decoder_without_weights_says_so() -> None:
    with pytest.raises(InputError, match="no generator yet"):
        StyleLatents((1, 8, 8), 10, "z").decode({"z": torch.zeros(2, 32)}, torch.arange(2))
