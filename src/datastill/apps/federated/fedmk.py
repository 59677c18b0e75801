"""FedMK (Liu et al., CVPR 2023, "Meta Knowledge Condensation for Federated Learning"): images condensed at a network.

A client learns D so that a few steps from the round's w_r on D lead to a low loss on its own images,
    min_D mean_t s_t l(x_t; w'),  w' = w_r - a grad l(D; w_r),  s_t = 1 / (1 + exp(-tau l_t)) held constant,
and begins at what another client sent the round before. The server trains w on all D, and on images of a conditional
generator G, which is trained so that w_r takes G(z, y) for y: they stand in for classes that no client of a round has.

Departs: step sizes are not learned; a client's private batch is balanced over its classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.apps.federated.strategy import (
    Checked,
    Client,
    Payload,
    Server,
    State,
    augment_of,
    condensed,
    flaw_of_images,
    mean_one,
    network_of,
    state_of,
)
from datastill.core.plan import Block, Plan, Task
from datastill.core.ranges import AdamRate, Amount, AnyRate, Count, Few, Weight
from datastill.core.rng import Rng, isolated
from datastill.core.update import Adam
from datastill.decoders.pixels import Pixels
from datastill.models.generators.tiny_style import TinyStyleGenerator
from datastill.objectives.unrolled import LossAfterSteps
from datastill.sampling.inits import Noise
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.around import Around
from datastill.training.hard import Schedule, train

if TYPE_CHECKING:
    from datastill.core.context import Context

#: What the server keeps beside the network: the generator's state, and what every client sent last.
_GENERATOR, _KNOWLEDGE = "generator.", "knowledge."


@dataclass(frozen=True, kw_only=True)
class FedMK(Checked):
    """Clients send images on which a step from the round's network lowers their own loss; they pass them around."""

    name: ClassVar[str] = "fedmk"

    ipc: Count = 10  #: synthetic images of each class and client
    steps: Count = 100  #: image updates of a client in a round
    real_batch: Count = 64  #: real images per class and step
    image_lr: AdamRate = 0.05  #: Adam's learning rate of the pixels
    inner_steps: Few = 1  #: steps of the network on the images, which the gradient goes through
    inner_lr: AnyRate = 0.1  #: their size
    focus: Weight = 1.0  #: tau: how much more a real image counts the larger its loss is, up to twice; 0 is all alike
    share: bool = True  #: begin at what another client sent the round before; it passes images between clients
    server_passes: Count = 60  #: of the server over the synthetic images in a round
    server_lr: AnyRate = 0.01  #: SGD learning rate of the server
    server_batch: Count = 256  #: images per step of the server
    augment: str = "auto"  #: DSA strategy of the server's training, "none", or "auto"
    generator_steps: Amount = 50  #: updates of the server's generator in a round; 0 does without
    generator_lr: AdamRate = 0.002  #: Adam's learning rate of the generator
    generator_ipc: Count = 10  #: its images per class in the server's training
    generator_weight: Weight = 0.5  #: of their loss beside that of the clients' images
    diversity: Weight = 0.1  #: of the difference between two of its images, for the difference of what they came from

    def given(self, state: State, client: int, rng: Rng) -> Payload:
        """The network, and what another client sent the round before, drawn from all others alike."""
        given = {name: v for name, v in state.items() if not name.startswith((_GENERATOR, _KNOWLEDGE))}
        others = sorted({int(name.split(".")[1]) for name in state if name.startswith(_KNOWLEDGE)} - {client})
        if self.share and others:
            other = others[int(torch.randint(len(others), (), generator=rng.generator("other")))]
            for part in ("images", "labels"):
                given[_KNOWLEDGE + part] = state[f"{_KNOWLEDGE}{other}.{part}"]
        return given

    def send(self, client: Client, given: Payload) -> Payload:
        """Synthetic images and their classes: those that the client has."""
        held = (client.real.counts > 0).nonzero().flatten()
        return condensed(client, self.ipc, held, lambda task: self.plan(task, given))

    def plan(self, task: Task, given: Payload) -> Plan:
        """What a client does."""
        return Plan(
            init=Begun(given.get(_KNOWLEDGE + "images"), given.get(_KNOWLEDGE + "labels")),
            decoder=Pixels(),
            objective=LossAfterSteps(self.inner_steps, self.inner_lr, self.focus),
            surrogates=Around(task.network, network_of(task.network, given).state_dict(), 0.0, logits=False),
            sampler=ClassBatches(self.real_batch),
            update={"images": Adam(self.image_lr)},
            steps=self.steps,
            network=task.network,
        )

    def flaw(self, payload: Payload, state: State, shape: tuple[int, int, int], classes: int) -> str:
        """Images of another shape or number, classes that there are not, or numbers that are not finite."""
        return flaw_of_images(payload, {"images": (None, *shape), "labels": (None,)}, self.ipc, classes)

    def gather(self, server: Server, state: State, payloads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """The network after training on all images and those of the generator, and what the next round needs."""
        x = torch.cat([p["images"] for p in payloads.values()]).float()
        y = torch.cat([p["labels"] for p in payloads.values()])
        network, weight, kept = network_of(server.factory, state), torch.ones(len(y)), {}
        if self.generator_steps and any(name.startswith(_KNOWLEDGE) for name in state):  # classes of a first,
            # random network mean nothing
            generator = self._generator(server, network, state)
            fake, of = self._pseudo(server, generator)
            share = self.generator_weight * len(y) / len(of)
            x, y, weight = torch.cat([x, fake]), torch.cat([y, of]), torch.cat([weight, torch.full((len(of),), share)])
            kept = {_GENERATOR + name: value.detach().cpu() for name, value in generator.state_dict().items()}
        augment = augment_of(server, self.augment)
        schedule = Schedule(self.server_passes, self.server_lr, batch=self.server_batch, augment=augment)
        weight = mean_one(weight)
        train(network.requires_grad_(True), x, y, schedule, server.rng, weight=weight, device=server.runtime.device)
        knowledge = {name: value for name, value in state.items() if name.startswith(_KNOWLEDGE)}
        for k, payload in payloads.items():
            knowledge |= {f"{_KNOWLEDGE}{k}.{part}": payload[part] for part in ("images", "labels")}
        return {**state_of(network), **kept, **knowledge}

    def _generator(self, server: Server, network: torch.nn.Module, state: State) -> TinyStyleGenerator:
        """Trained on so that the network, which stays as it is, takes its images for the classes that were asked."""
        device = server.runtime.device
        with isolated(server.rng.derive("generator")):
            generator = TinyStyleGenerator(server.shape, server.factory.classes)
        known = {name[len(_GENERATOR) :]: value for name, value in state.items() if name.startswith(_GENERATOR)}
        generator.load_state_dict(known or generator.state_dict())
        generator = generator.to(device)
        network = network.to(device).requires_grad_(False).eval()
        search = torch.optim.Adam(generator.parameters(), lr=self.generator_lr)
        for step in range(self.generator_steps):
            draws = server.rng.generator("pseudo", step)
            y = torch.randint(generator.classes, (64,), generator=draws).to(device)
            z = torch.randn(2, 64, generator.z_dim, generator=draws).to(device)
            x, other = (_images(server, generator, part, y) for part in z)
            apart = (x - other).flatten(1).abs().mean(1) / (z[0] - z[1]).abs().mean(1)
            loss = F.cross_entropy(network(x), y) - self.diversity * apart.clamp(max=1).mean()
            search.zero_grad()
            loss.backward()
            search.step()
        network.train()
        return generator

    def _pseudo(self, server: Server, generator: TinyStyleGenerator) -> tuple[Tensor, Tensor]:
        y = torch.arange(generator.classes).repeat_interleave(self.generator_ipc)
        z = torch.randn(len(y), generator.z_dim, generator=server.rng.generator("pseudo"))
        with torch.no_grad():
            return _images(server, generator, z.to(server.runtime.device), y.to(server.runtime.device)).cpu(), y


def _images(server: Server, generator: TinyStyleGenerator, z: Tensor, y: Tensor) -> Tensor:
    """Images of the generator in the Space of the data, (n, c, h, w)."""
    return server.space.encode((generator.synthesize(generator.map(z, y)) + 1) / 2)


@dataclass(frozen=True)
class Begun:
    """Images that another client sent, class by class, and noise where it had fewer or none."""

    given: Tensor | None
    labels: Tensor | None

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images."""
        found, extra = Noise().images(task, block, context)
        if self.given is not None and self.labels is not None:
            for c in block.classes:
                theirs = self.given[self.labels == c]
                rows = (block.y == c).nonzero().flatten()[: len(theirs)]
                found[rows] = theirs[: len(rows)].to(found)
        return found, extra

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "of another client"}
