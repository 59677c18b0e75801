"""A network trained once on the whole real set, for selections by features (a prepared unit)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.plan import Task, chunk_for
from datastill.core.rng import Rng
from datastill.training.hard import Schedule, train

if TYPE_CHECKING:
    from datastill.models.base import Network


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
            "network": task.network.describe(),
            "data": task.real.fingerprint,
            "seed": task.seed,
            "device": task.device.type,
            "threads": torch.get_num_threads(),
            **({"compile": True} if task.compile else {}),
        }

    def macs(self, task: Task) -> float:
        """Multiply-accumulates: forward and backward are about three passes."""
        return 3.0 * self.passes * len(task.real) * task.network.macs

    def run(self, task: Task) -> dict[str, Tensor]:
        """`weight/<name>` for the state of the network, and `forgetting` (n,)."""
        real = task.real
        rng = Rng(task.seed).child("feature-network")
        network = task.network(rng.derive("network")).to(task.device)
        counter = ForgettingCounter(len(real))

        seen = 0

        def on_batch(index: Tensor, logits: Tensor) -> None:
            nonlocal seen
            seen += len(index)
            task.progress("feature network", seen / len(real), self.passes, {})
            counter.visit(index, logits.argmax(1).cpu() == real.labels[index])

        train(
            network,
            lambda index: real.batch(index).x,
            real.labels,
            Schedule(passes=self.passes, lr=self.lr, batch=self.batch),
            rng,
            weight=real.weights,
            on_batch=on_batch,
            device=task.device,
            compiled=task.compile,
            chunk=chunk_for(task.network.macs, task.device),
        )
        state = {f"weight/{name}": value.detach().cpu() for name, value in network.state_dict().items()}
        return {**state, "forgetting": counter.counts()}

    def load(self, task: Task, prepared: dict[str, Tensor]) -> Network:
        """The trained network, frozen, in eval mode."""
        network = task.network(0)
        network.load_state_dict(
            {name.removeprefix("weight/"): t for name, t in prepared.items() if name.startswith("weight/")}
        )
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
