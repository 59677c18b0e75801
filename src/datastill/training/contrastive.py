"""Training of two towers on pairs: the symmetric contrastive loss of unit vectors (CLIP, arXiv:2103.00020).

s = kappa f(x) g(e)^T with unit rows;  loss = (CE(s, diagonal) + CE(s^T, diagonal)) / 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.core.rng import Rng, isolated
from datastill.core.runtime import Runtime
from datastill.training.batches import TrainingData
from datastill.training.hard import LossWatch, Schedule, drop
from datastill.training.trainers import Labeled, Told, Trained

if TYPE_CHECKING:
    from datastill.models.factory import NetworkFactory
    from datastill.models.towers import Towers

#: 1 / 0.07. (The released inner loop multiplies by its logarithm, 2.66; here one number stands everywhere.)
KAPPA = 1 / 0.07
#: Captions whose embeddings have a cosine above this are the same.
_SAME = 1 - 1e-6


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """kappa times the cosines of embeddings (b, d) and (m, d), (b, m)."""
    return KAPPA * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def contrastive(images: Tensor, texts: Tensor, same: Tensor | None = None) -> Tensor:
    """The symmetric loss of b pairs of embeddings (b, d), 0-dim; the same with the towers exchanged.

    A pair that shows the image or says the sentence of another one is none of its negatives.

    Args:
        images: embeddings.
        texts: embeddings of their sentences.
        same: which image each pair shows, (b,), or None where all are different.
    """
    return loss_of(similarities(images, texts), duplicates(texts, same))


def duplicates(texts: Tensor, same: Tensor | None = None) -> Tensor:
    """Which pairs (b, b) show the same image or say the same sentence, a pair itself left out."""
    with torch.no_grad():
        unit = F.normalize(texts.detach(), dim=1)
        found = unit @ unit.T > _SAME
        if same is not None:
            found |= same[:, None] == same[None, :]
        return found & ~torch.eye(len(texts), dtype=torch.bool, device=texts.device)


def loss_of(s: Tensor, masked: Tensor) -> Tensor:
    """(CE(s, diagonal) + CE(s^T, diagonal)) / 2 without the masked entries, 0-dim."""
    s = s.masked_fill(masked, -torch.inf)
    diagonal = torch.arange(len(s), device=s.device)
    return (F.cross_entropy(s, diagonal) + F.cross_entropy(s.T, diagonal)) / 2


def towers_sgd(network: nn.Module, schedule: Schedule, lr_text: float) -> torch.optim.SGD:
    """An optimizer with a learning rate for each tower."""
    text = [p for name, p in network.named_parameters() if name.startswith("text.")]
    image = [p for name, p in network.named_parameters() if not name.startswith("text.")]
    groups = [{"params": image, "lr": schedule.lr}, {"params": text, "lr": lr_text}]
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay)


def same_images(data: Labeled) -> Tensor:
    """Which image each pair shows, (n,): pairs with other sentences may show one."""
    x = data.x if isinstance(data.x, Tensor) else data.x(torch.arange(len(data.y)))
    return x.flatten(1).unique(dim=0, return_inverse=True)[1]


@dataclass(frozen=True)
class Contrastive:
    """SGD on the contrastive loss of pairs, with a learning rate for each tower.

    Attributes:
        schedule: of the images' tower, with its rate.
        lr_text: rate of the sentences' tower.
        same: which image each pair shows, (n,); None looks at the images.
    """

    schedule: Schedule
    lr_text: float
    same: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def lr(self) -> float:
        """That of the image tower."""
        return self.schedule.lr

    def train(
        self, factory: NetworkFactory, data: Labeled, rngs: Sequence[Rng], runtime: Runtime, told: Told
    ) -> Trained:
        """See `Trainer`; the labels are vectors of sentences (n, d)."""
        made, losses = [factory(rng.derive("network")) for rng in rngs], []
        for k, (network, rng) in enumerate(zip(made, rngs, strict=True)):
            losses.append(self._train(network, data, rng, runtime))
            told(k + 1, {"loss": losses[-1][-1]} if losses[-1] else {})
        return Trained(made, losses)

    def _train(self, network: nn.Module, data: Labeled, rng: Rng, runtime: Runtime) -> list[float]:
        towers, schedule = cast("Towers", network.to(runtime.device).train()), self.schedule
        training, watch = TrainingData(data.x, data.y, None, runtime.device), LossWatch()
        training.couples = True  # a batch of a single pair has no negatives
        optimizer = towers_sgd(network, schedule, self.lr_text)
        same = (same_images(data) if self.same is None else self.same).to(runtime.device)
        with isolated(rng.derive("dropout")):
            for p in range(schedule.passes):
                total = torch.zeros((), device=runtime.device)
                for index, images, vectors, _ in training.batches(schedule, [rng], p):
                    optimizer.zero_grad(set_to_none=True)
                    shown = same[index.to(same.device)]
                    loss = contrastive(towers(images), towers.sentences(vectors), shown)
                    torch.autograd.backward(loss)
                    optimizer.step()
                    total = total + loss.detach() * (len(index) / len(data.y))
                watch.add(total, steps=-(-len(data.y) // schedule.batch))
                drop(optimizer, schedule, p)
        return cast("list[float]", watch.finish().tolist())
