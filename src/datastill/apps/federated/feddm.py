"""FedDM (Xiong et al., CVPR 2023, arXiv:2207.09653): clients send images that stand for their loss landscape.

A client learns S_k so that, for networks w in a ball around the round's w_r and each class c that it holds,
|| mean h_w(B_c) - mean h_w(S_c) ||^2 is small, h_w the last features with the logits beside them. The server trains w
on all S_k by sum_k n_k / n sum_c n_kc / n_k mean_{S_kc} loss.

With a `mechanism` the real images enter through clipped sums with Gaussian noise alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from datastill.apps.federated.accountant import Releases, Spent, spent
from datastill.apps.federated.mechanism import ClippedSums, noised_counts
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
from datastill.augment.strategies import make_augment
from datastill.core.errors import InputError
from datastill.core.plan import Block, Init, Objective, Plan, Sampler, Task
from datastill.core.ranges import Amount, AnyRate, Count, Momentum, Rate, Share, Weight
from datastill.core.update import Sgd
from datastill.core.wrapped import Steady
from datastill.decoders.pixels import Pixels
from datastill.objectives.feature_means import FeatureMeans
from datastill.objectives.released_means import ReleasedGradients, ReleasedMeans
from datastill.sampling.inits import Noise, shuffled_members
from datastill.sampling.poisson import PoissonBatches
from datastill.sampling.samplers import ClassBatches
from datastill.surrogates.around import Around
from datastill.training.hard import Schedule, train

if TYPE_CHECKING:
    from datastill.core.context import Context
    from datastill.data.real import RealSet
    from datastill.models.factory import NetworkFactory


#: What has an effect with a mechanism alone.
_OF_A_MECHANISM = ("clip", "sigma", "sample_rate", "delta", "count_sigma")


@dataclass(frozen=True, kw_only=True)
class FedDM(Checked):
    """Clients send a few synthetic images of each of their classes; the server trains on all of them."""

    name: ClassVar[str] = "feddm"

    ipc: Count = 10  #: synthetic images of each class and client
    steps: Count = 100  #: image updates of a client in a round
    real_batch: Count = 64  #: real images per class and step, without a mechanism
    image_lr: AnyRate = 1.0  #: SGD learning rate of the pixels
    image_momentum: Momentum = 0.5  #: SGD momentum of the pixels
    init: Literal["noise", "real"] = "noise"  #: start from noise, or from real images, which sends copies of them
    radius: Weight = 5.0  #: of the ball around the round's weights from which networks are drawn
    match_logits: bool = True  #: match logits beside features
    augment: str = "auto"  #: DSA strategy of the match and of the server's training, "none", or "auto"
    server_passes: Count = 60  #: of the server over the synthetic images in a round
    server_lr: AnyRate = 0.01  #: SGD learning rate of the server
    server_batch: Count = 256  #: synthetic images per step of the server
    server_radius: Weight = 0.0  #: how far from the round's weights the server may go; 0 is any distance
    mechanism: Literal["none", "embedding", "gradient"] = "none"  #: what is clipped and gets noise: privacy
    clip: Rate = 5.0  #: C, the longest that what one image contributes may be
    sigma: Weight = 1.0  #: noise multiplier: the standard deviation is sigma * C; 0 clips without noise
    sample_rate: Share = 0.1  #: probability with which an image takes part in a release
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5  #: of the guarantee; well below one over a client's images
    updates: Count = 5  #: image updates for each release of the embedding mechanism, which cost no more privacy
    count_sigma: Weight = 0.0  #: noise of class counts, told once; 0 tells none
    least_count: Amount = 20  #: noised images of a class below which a client sends none of it

    @property
    def private(self) -> bool:
        """Whether a mechanism is at work."""
        return self.mechanism != "none"

    def check(self, factory: NetworkFactory, real: RealSet) -> None:
        """Refuse what no mechanism bounds.

        Raises:
            InputError: layers that mix images, a real start, or weights.
        """
        if not self.private:
            self._refuse_void()
            return
        if real.space.kind.startswith("zca"):
            raise InputError(
                "ZCA is fitted to the pixels of all clients, which no noise covers; take --space auto, whose mean and "
                "deviation are taken for public."
            )
        if factory.couples_samples:
            raise InputError(
                f"{factory} mixes the images of a batch (batch norm), so that what one image contributes is not "
                "bounded; take instance or group norm, as in --network convnet:norm=instance."
            )
        if self.init == "real":
            raise InputError("A start from real images sends copies of them, which no noise covers; take --init noise.")
        if real.weights is not None:
            raise InputError("Weights of real images change what one image contributes; leave them out under privacy.")
        spent(self._releases(1), self.delta)

    def _refuse_void(self) -> None:
        """Who asks for noise without a mechanism may think that there is some."""
        given = [f.name for f in fields(self) if f.name in _OF_A_MECHANISM and getattr(self, f.name) != f.default]
        if given:
            raise InputError(
                f"{given[0]} has no effect without a mechanism, and nothing is bounded; add --mechanism embedding or "
                "gradient, or leave it out."
            )

    def send(self, client: Client, given: Payload) -> Payload:
        """Synthetic images, their classes, and how many real images they stand for in each class."""
        counts = self._counts(client)
        held = (counts > 0).nonzero().flatten()
        sent = condensed(client, self.ipc, held, lambda task: self.plan(task, given, counts, client.public))
        return {**sent, "counts": counts}

    def _counts(self, client: Client) -> Tensor:
        """Images of each class that a client tells of, (C,) float32; 0 sends none of a class."""
        real = client.real
        if not self.private:
            return real.counts.float()
        if not self.count_sigma:
            return torch.full((real.classes,), float(client.public))
        counts = noised_counts(real.labels, real.classes, self.count_sigma, client.own)
        return torch.where(counts >= self.least_count, counts, torch.zeros_like(counts))

    def plan(self, task: Task, state: State, counts: Tensor, public: float) -> Plan:
        """What a client does; the counts are those that it tells of."""
        hold = self.updates if self.mechanism == "embedding" else 1
        clip = self.clip if self.mechanism == "embedding" else float("inf")
        objective: Objective = FeatureMeans()
        sampler: Sampler = ClassBatches(self.real_batch)
        if self.private:
            sampler = PoissonBatches(self.sample_rate)
            objective = ReleasedGradients() if self.mechanism == "gradient" else ReleasedMeans(clip, hold)
        init: Init = Noise() if self.init == "noise" else SomeReal()
        return Plan(
            init=init,
            decoder=Pixels(),
            objective=objective,
            surrogates=Around(task.network, state, self.radius, self.match_logits, hold),
            sampler=sampler,
            reduce=ClippedSums(self.clip, self.sigma, self.sample_rate * counts) if self.private else None,
            augment=make_augment(self.augment, task.real.name, task.real.shape),
            update={"images": Steady(Sgd(lr=self.image_lr, momentum=self.image_momentum))},
            steps=self.steps,
            network=task.network,
        )

    def flaw(self, payload: Payload, state: State, shape: tuple[int, int, int], classes: int) -> str:
        """Images of another shape or number, classes that there are not, or numbers that are not finite."""
        expected = {"images": (None, *shape), "labels": (None,), "counts": (classes,)}
        found = flaw_of_images(payload, expected, self.ipc, classes)
        return found or ("it tells of fewer than no images" if bool((payload["counts"] < 0).any()) else "")

    def gather(self, server: Server, state: State, payloads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """The network after training on all images, from the round's weights."""
        x = torch.cat([p["images"] for p in payloads.values()]).float()
        y = torch.cat([p["labels"] for p in payloads.values()])
        weight = torch.cat([image_weights(p["labels"], p["counts"]) for p in payloads.values()])
        augment = augment_of(server, self.augment)
        schedule = Schedule(self.server_passes, self.server_lr, batch=self.server_batch, augment=augment)
        network = network_of(server.factory, state)
        kept = self._kept_near(network, state, server.runtime.device) if self.server_radius else None
        train(
            network, x, y, schedule, server.rng, weight=mean_one(weight), on_batch=kept,
            device=server.runtime.device,
        )  # fmt: skip
        return state_of(network)

    def _kept_near(
        self, network: torch.nn.Module, state: State, device: torch.device
    ) -> Callable[[Tensor, Tensor], None]:
        """What brings the weights back into the ball after every step: outside the match says nothing."""
        start = {name: state[name].to(device) for name, _ in network.named_parameters()}

        def kept(*_: Any) -> None:
            with torch.no_grad():
                ways = {name: p - start[name] for name, p in network.named_parameters()}
                length = torch.stack([way.square().sum() for way in ways.values()]).sum().sqrt()
                if float(length) > self.server_radius:
                    for name, parameter in network.named_parameters():
                        parameter.copy_(start[name] + ways[name] * (self.server_radius / length))

        return kept

    def spent(self, rounds: int) -> Spent | None:
        """What so many rounds of a client cost."""
        return spent(self._releases(rounds), self.delta) if self.private else None

    def _releases(self, rounds: int) -> list[Releases]:
        per_round = -(-self.steps // self.updates) if self.mechanism == "embedding" else self.steps
        counted = [Releases(self.count_sigma, 1.0, 1)] if self.count_sigma else []
        return [Releases(self.sigma, self.sample_rate, per_round * rounds), *counted]


def image_weights(labels: Tensor, counts: Tensor) -> Tensor:
    """What each image of a client counts: its class's real images over its class's synthetic ones."""
    synthetic = torch.bincount(labels, minlength=len(counts)).clamp_min(1)
    return (counts / synthetic)[labels]


@dataclass(frozen=True)
class SomeReal:
    """Real images of each class, again from the first where it has fewer than are wanted."""

    def images(self, task: Task, block: Block, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The images."""
        chosen = []
        for c in block.classes:
            members = shuffled_members(task.real, c, task.seed)
            chosen.append(members[torch.arange(task.ipc) % len(members)])
        return task.real.batch(torch.cat(chosen)).x, {}

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"init": "real"}
