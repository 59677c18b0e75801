"""The contract of a strategy: what a client sends, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from datastill.augment.strategies import strategy_for
from datastill.core.loop import run_block
from datastill.core.plan import Block, Plan, Task
from datastill.core.ranges import check_fields
from datastill.core.rng import Rng
from datastill.core.runtime import Runtime

if TYPE_CHECKING:
    from datastill.apps.federated.accountant import Spent
    from datastill.core.space import Space
    from datastill.data.real import RealSet
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory

#: What the server keeps from round to round, on the CPU: weights and buffers of the network by name, and beside them
#: whatever else a strategy wants to.
State = Mapping[str, Tensor]
#: What travels: named tensors, never objects.
Payload = Mapping[str, Tensor]


@dataclass(frozen=True)
class Client:
    """One client in one round.

    Attributes:
        id: its number.
        real: its images, in the classes of all.
        public: images of each class that a client is said to hold, known to all: of the whole training set, over
            classes and clients.
        seed: of its draws; it follows from the run's seed, the round and the client alone.
        own: a family of draws that is the same in every round.
    """

    id: int
    real: RealSet
    factory: NetworkFactory
    public: float
    seed: int
    own: Rng
    runtime: Runtime


@dataclass(frozen=True)
class Server:
    """The server in one round."""

    factory: NetworkFactory
    shape: tuple[int, int, int]  #: of the images
    space: Space
    data_name: str
    rng: Rng
    runtime: Runtime


class Strategy(Protocol):
    """What a client does with the network that it is given, and how the server goes on."""

    @property
    def name(self) -> str: ...

    def check(self, factory: NetworkFactory, real: RealSet) -> None:
        """Refuse what cannot be done, before anything is.

        Raises:
            InputError: what is wrong.
        """
        ...

    def given(self, state: State, client: int, rng: Rng) -> Payload:
        """What the server sends a client in a round, whose draws `rng` are."""
        ...

    def send(self, client: Client, given: Payload) -> Payload:
        """What a client sends, given that."""
        ...

    def flaw(self, payload: Payload, state: State, shape: tuple[int, int, int], classes: int) -> str:
        """What is wrong with what a client sent, or ""."""
        ...

    def gather(self, server: Server, state: State, payloads: Mapping[int, Payload]) -> dict[str, Tensor]:
        """The network of the next round."""
        ...

    def spent(self, rounds: int) -> Spent | None:
        """What so many rounds of a client cost in privacy; None where nothing bounds it."""
        ...


class Checked:
    """A dataclass whose fields are checked when it is made."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, factory: NetworkFactory, real: RealSet) -> None:
        """Nothing to refuse."""

    def given(self, state: State, client: int, rng: Rng) -> Payload:
        """All that the server keeps: the network."""
        return state

    def spent(self, rounds: int) -> Spent | None:
        """Nothing is bounded."""
        return None


def network_of(factory: NetworkFactory, state: State, device: torch.device | None = None) -> Network:
    """A network with a state, in train mode, whose own weights nobody else has; what else is there is let be."""
    network = factory(0)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network.to(device) if device is not None else network


def state_of(network: torch.nn.Module) -> dict[str, Tensor]:
    """A network's weights and buffers, copied, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def bytes_of(payload: Payload) -> int:
    """Bytes of the numbers in a payload."""
    return sum(value.numel() * value.element_size() for value in payload.values())


def other_shapes(payload: Payload, expected: Mapping[str, tuple[int | None, ...]]) -> str:
    """The first tensor that is missing, strange or of another shape, or that is not finite, in words; or "".

    Args:
        payload: as it was sent.
        expected: shape by name, None where a length is free.
    """
    missing, strange = sorted(set(expected) - set(payload)), sorted(set(payload) - set(expected))
    if missing or strange:
        return f"it lacks {missing[0]!r}" if missing else f"it holds {strange[0]!r}, which nobody asked for"
    for name, shape in expected.items():
        value = payload[name]
        sizes = tuple(value.shape)
        if len(sizes) != len(shape) or any(want not in (None, got) for want, got in zip(shape, sizes, strict=True)):
            return f"{name} has shape {list(sizes)}, and {['any' if s is None else s for s in shape]} is expected"
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"{name} holds numbers that are not finite"
        if value.is_floating_point() and value.numel() and float(value.abs().max()) > 1e6:
            return f"{name} holds numbers beyond a million"
    return ""


def condensed(client: Client, ipc: int, held: Tensor, plan: Callable[[Task], Plan]) -> dict[str, Tensor]:
    """Synthetic images of a client and their classes.

    Args:
        client: whose real images.
        ipc: of each class.
        held: classes that are sent, (k,); none sends no image.
        plan: what the client does.
    """
    task = Task(client.real, ipc, client.factory, client.seed, client.runtime)
    index = torch.isin(task.labels, held).nonzero().flatten()
    if not len(index):
        return {"images": torch.zeros(0, *client.real.shape), "labels": index}
    block = Block(0, index, task.labels[index])
    running = run_block(plan(task), task, block)
    return {"images": running.context.codes["images"].detach().cpu().float(), "labels": block.y}


def augment_of(server: Server, augment: str) -> str:
    """The DSA strategy of the server's training; "auto" is that of the data."""
    return strategy_for(server.data_name, server.shape) if augment == "auto" else augment


def mean_one(weight: Tensor) -> Tensor:
    """Weights of images (n,) whose mean is 1, so that a learning rate means what it does without."""
    return weight * (len(weight) / weight.sum())


def flaw_of_images(payload: Payload, expected: Mapping[str, tuple[int | None, ...]], ipc: int, classes: int) -> str:
    """What is wrong with `images` and `labels` that a client sent, in words; or "".

    Args:
        payload: as it was sent.
        expected: shape by name, None where a length is free.
        ipc: most images of a class.
        classes: number of them.
    """
    if found := other_shapes(payload, expected):
        return found
    images, labels = payload["images"], payload["labels"]
    if len(images) != len(labels) or len(labels) > ipc * classes:
        return f"it has {len(images)} images and {len(labels)} labels, of at most {ipc * classes}"
    if labels.dtype != torch.int64 or not bool(((labels >= 0) & (labels < classes)).all()):
        return f"its labels are not positions of the {classes} classes"
    if not images.is_floating_point():
        return "its images are no floating numbers"
    return "" if len(labels) else "it sends no image"
