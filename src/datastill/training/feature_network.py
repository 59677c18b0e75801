"""Networks trained once on the real set and kept as prepared units: what they share, and that of selections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.plan import Task, chunk_for
from datastill.core.rng import Rng
from datastill.models.code import code_key
from datastill.training.hard import Schedule, train

if TYPE_CHECKING:
    from datastill.models.base import Network


def origin(task: Task) -> dict[str, Any]:
    """What the weights of a network depend on beside how it was trained, for the key of a unit."""
    return {
        "network": task.network.describe(),
        **code_key(task.network),
        "data": task.real.fingerprint,
        "device": task.device.type,
        "threads": torch.get_num_threads(),
        **({"compile": True} if task.compile else {}),
    }


def trained_weights(
    task: Task,
    schedule: Schedule,
    rng: Rng,
    called: str,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Train a network of the task on its real set, weighted where that is: `weight/<name>` for its state.

    Args:
        task: whose network, real set and runtime.
        schedule: of the training.
        rng: of all draws, the initial weights among them.
        called: the network, where progress is told.
        on_batch: as for `train`.
    """
    real, seen = task.real, 0
    network = task.network(rng.derive("network")).to(task.device)

    def told(index: Tensor, logits: Tensor) -> None:
        nonlocal seen
        seen += len(index)
        task.progress(called, seen / len(real), schedule.passes, {})
        if on_batch is not None:
            on_batch(index, logits)

    train(
        network,
        lambda index: real.batch(index).x,
        real.labels,
        schedule,
        rng,
        weight=real.weights,
        on_batch=told,
        device=task.device,
        compiled=task.compile,
        chunk=chunk_for(task.network.macs, task.device),
    )
    return {f"weight/{name}": value.detach().cpu() for name, value in network.state_dict().items()}


def load_weights(network: Network, prepared: Mapping[str, Tensor]) -> None:
    """Put what `trained_weights` gave into a network, on whatever device that is."""
    kept = {name.removeprefix("weight/"): t for name, t in prepared.items() if name.startswith("weight/")}
    network.load_state_dict(kept)


@dataclass(frozen=True)
class FeatureNetwork:
    """Plain training with SGD, weighted where the set is; keeps the weights and the forgetting counts of the run."""

    passes: int
    lr: float = 0.01
    batch: int = 256

    name = "feature-network"

    def key(self, task: Task) -> dict[str, Any]:
        """Everything that the weights depend on."""
        return {
            "unit": self.name,
            "schedule": asdict(self),
            "seed": task.seed,
            **origin(task),
        }

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: forward and backward are about three passes."""
        return 3.0 * self.passes * len(task.real) * task.network.macs

    def run(self, task: Task) -> dict[str, Tensor]:
        """`weight/<name>` for the state of the network, and `forgetting` (n,)."""
        counter = ForgettingCounter(len(task.real))

        def on_batch(index: Tensor, logits: Tensor) -> None:
            counter.visit(index, logits.argmax(1).cpu() == task.real.labels[index])

        schedule = Schedule(passes=self.passes, lr=self.lr, batch=self.batch)
        weights = trained_weights(task, schedule, Rng(task.seed).child("feature-network"), "feature network", on_batch)
        return {**weights, "forgetting": counter.counts()}

    def load(self, task: Task, prepared: dict[str, Tensor]) -> Network:
        """The trained network, frozen, in eval mode."""
        network = task.network(0)
        load_weights(network, prepared)
        return network.to(task.device).requires_grad_(False).eval()

    def features(self, network: Network, task: Task, index: Tensor) -> Tensor:
        """Features (n, d) of real images, on the CPU."""
        with torch.no_grad():
            parts = [
                network.embed(task.real.batch(i).x.to(task.device)).cpu()
                for i in torch.split(index, chunk_for(task.network.macs, task.device))
            ]
        return torch.cat(parts)


class ForgettingCounter:
    """Counts forgetting events (Toneva et al., ICLR 2019): right at the last visit, wrong now.

    A sample that was never right has an infinite count.
    """

    def __init__(self, n: int) -> None:
        self.events = torch.zeros(n)
        self.was_right = torch.zeros(n, dtype=torch.bool)
        self.ever_right = torch.zeros(n, dtype=torch.bool)

    def visit(self, index: Tensor, right: Tensor) -> None:
        """The samples at `index` were just classified; `right` says which correctly."""
        index, right = index.cpu(), right.cpu()
        self.events[index] += (self.was_right[index] & ~right).float()
        self.was_right[index] = right
        self.ever_right[index] |= right

    def counts(self) -> Tensor:
        """Events per sample, infinite where never right."""
        return self.events.masked_fill(~self.ever_right, torch.inf)
