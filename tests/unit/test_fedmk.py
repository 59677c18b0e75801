"""FedMK: what a client condenses and begins at, and the server's generator."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from datastill import load_real
from datastill.apps.federated.fedmk import Begun, FedMK
from datastill.apps.federated.runner import federated
from datastill.apps.federated.strategy import Client, Server, network_of, state_of
from datastill.core.context import Context
from datastill.core.loop import gradients
from datastill.core.plan import Block, Task
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime
from datastill.data.real import RealSet
from datastill.models import resolve_network
from datastill.objectives.unrolled import hardness

NETWORK = "convnet:width=4,depth=1,activation=sigmoid"
SMALL = FedMK(ipc=2, steps=2, real_batch=4, server_passes=2, generator_steps=2, generator_ipc=2)
COMMON = {"clients": 3, "rounds": 2, "network": NETWORK, "partition": "classes:5", "device": "cpu"}


@pytest.fixture(scope="module")
def digits() -> RealSet:
    real = load_real("digits")
    assert real.test is not None
    return replace(real.subset(torch.arange(300)), test=real.test.subset(torch.arange(50)))


def factory_of(real: RealSet):
    return resolve_network(NETWORK, channels=real.shape[0], classes=real.classes, size=real.shape[1:])


def knowledge(real: RealSet, clients: int) -> dict[str, torch.Tensor]:
    """A state after a round in which client k sent images of the number k, of the classes 0 to k."""
    state = state_of(factory_of(real)(1))
    for k in range(clients):
        state |= {
            f"knowledge.{k}.images": torch.full((k + 1, *real.shape), float(k)),
            f"knowledge.{k}.labels": torch.arange(k + 1),
            "generator.x": torch.zeros(1),
        }
    return state


def test_a_hard_image_counts_more_and_no_gradient_passes() -> None:
    losses = torch.linspace(0, 20, 50).requires_grad_()
    weight = hardness(losses, 0.7)
    assert not weight.requires_grad
    assert float(weight.min()) == 0.5
    assert float(weight.max()) < 1
    assert bool((weight.diff() > 0).all())
    assert torch.equal(hardness(losses, 0.0), torch.ones(50))


@pytest.mark.parametrize(("steps", "focus"), [(1, 0.0), (3, 1.5)])
def test_the_gradient_is_that_of_the_steps_written_out(digits: RealSet, steps: int, focus: float) -> None:
    """Against autograd through a plain loop."""
    task = Task(digits, 2, factory_of(digits), 0, Runtime())
    state = state_of(factory_of(digits)(1))
    plan = replace(SMALL, inner_steps=steps, inner_lr=0.3, focus=focus).plan(task, state)
    images = torch.randn(20, *digits.shape, generator=torch.Generator().manual_seed(1))
    block = Block(0, torch.arange(20), task.labels)
    context = Context(task, plan, block, Rng(0), codes={"images": images})
    context.surrogate = plan.surrogates.draw(context)
    x, y = images.clone().requires_grad_(), task.labels
    network = network_of(task.network, state)
    theta = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(network, theta, (x,)), y)
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: p - 0.3 * g for (n, p), g in zip(theta.items(), slopes, strict=True)}
    batch = context.real_batch()
    losses = F.cross_entropy(functional_call(network, theta, (batch.x,)), batch.y, reduction="none")
    outer = (losses * hardness(losses, focus)).mean()
    wanted = torch.autograd.grad(outer, x)[0]
    loss, found = gradients(context, None)
    assert float(loss) == pytest.approx(float(outer), rel=1e-5)
    assert float((found["images"] - wanted).norm() / wanted.norm()) < 1e-4


def test_a_client_is_given_the_network_and_what_another_one_sent(digits: RealSet) -> None:
    state, seen = knowledge(digits, 4), Counter()
    for draw in range(300):
        given = SMALL.given(state, 1, Rng(draw))
        assert set(given) - set(state_of(factory_of(digits)(1))) == {"knowledge.images", "knowledge.labels"}
        seen[int(given["knowledge.images"].max())] += 1
    assert set(seen) == {0, 2, 3}
    assert min(seen.values()) > 70  # 100 each


def test_alone_or_in_the_first_round_it_is_given_the_network_only(digits: RealSet) -> None:
    network = state_of(factory_of(digits)(1))
    assert set(SMALL.given(network, 0, Rng(0))) == set(network)
    assert set(SMALL.given(knowledge(digits, 1), 0, Rng(0))) == set(network)
    assert set(replace(SMALL, share=False).given(knowledge(digits, 3), 0, Rng(0))) == set(network)


def test_a_start_is_what_the_other_had_and_noise_elsewhere(digits: RealSet) -> None:
    task = Task(digits, 2, factory_of(digits), 0, Runtime())
    block = Block(0, torch.arange(20), task.labels)
    context = SimpleNamespace(block=block, rng=Rng(0), task=task, generator=Rng(0).generator)
    noise, _ = Begun(None, None).images(task, block, context)
    theirs, of = torch.full((4, *digits.shape), 7.0), torch.tensor([0, 3, 3, 3])
    found, _ = Begun(theirs, of).images(task, block, context)
    same = (found == 7).flatten(1).all(1)
    assert same.nonzero().flatten().tolist() == [0, 6, 7]
    assert torch.equal(found[~same], noise[~same])


def test_a_client_sends_images_of_its_classes_alone(digits: RealSet) -> None:
    few = digits.subset((digits.labels < 3).nonzero().flatten())
    client = Client(0, few, factory_of(digits), 1.0, 3, Rng(3), Runtime())
    payload = SMALL.send(client, state_of(factory_of(digits)(1)))
    assert payload["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert SMALL.flaw(payload, {}, digits.shape, 10) == ""
    twice = {name: value.repeat_interleave(4, 0) for name, value in payload.items()}
    assert "of at most 20" in SMALL.flaw(twice, {}, digits.shape, 10)


def test_the_generator_learns_and_the_network_stays(digits: RealSet) -> None:
    server = Server(factory_of(digits), digits.shape, digits.space, "digits", Rng(1), Runtime())
    state = knowledge(digits, 2)
    state = {name: value for name, value in state.items() if not name.startswith("generator.")}
    network = network_of(server.factory, state)
    before = state_of(network)
    losses = []
    for steps in (1, 60):
        strategy = replace(SMALL, generator_steps=steps, generator_ipc=8, diversity=0.0)
        generator = strategy._generator(server, network, state)
        x, y = strategy._pseudo(server, generator)
        assert x.shape == (80, *digits.shape)
        losses.append(float(F.cross_entropy(network(x), y)))
    assert losses[1] < losses[0] - 0.05
    assert all(torch.equal(value, before[name]) for name, value in state_of(network).items())


def test_rounds_are_bit_identical_and_so_are_those_that_go_on(digits: RealSet, tmp_path) -> None:
    first = federated(SMALL, digits, out=tmp_path / "a", **COMMON)
    again = federated(SMALL, digits, out=tmp_path / "b", **{**COMMON, "rounds": 1})
    again = federated(SMALL, digits, out=tmp_path / "b", **COMMON)
    for one, two in zip(first.rounds, again.rounds, strict=True):
        assert one.accuracy == two.accuracy
        assert (one.up_bytes, one.down_bytes) == (two.up_bytes, two.down_bytes)
    network = sum(v.numel() * v.element_size() for v in state_of(factory_of(digits)(1)).values())
    sent = 3 * 10 * (math.prod(digits.shape) * 4 + 8)
    assert first.rounds[0].up_bytes == sent
    assert first.rounds[0].down_bytes == 3 * network
    assert first.rounds[1].down_bytes == 3 * network + sent
