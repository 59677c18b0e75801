"""Disentangled feature augmentation (Lee et al., NeurIPS 2021, arXiv:2107.01372): training that resists a bias.

Two encoders see every image. The bias encoder E_b learns from a loss that prefers easy samples, so it learns the bias;
the intrinsic encoder E_i learns from the samples that E_b's head gets wrong; later, bias features are exchanged between
samples, so that they tell E_i's head nothing.

L_dis  = mean( W CE(C_i[z_i; sg z_b], y) ) + lam_dis mean( GCE(C_b[sg z_i; z_b], y) )
L_swap = mean( W CE(C_i[z_i; sg z_b'], y) ) + lam_swap_bias mean( GCE(C_b[sg z_i; z_b'], y') ),  (z_b', y') permuted
L      = L_dis + lam_swap L_swap,   W = l_b / (l_b + l_i) with l the moving averages of both heads' losses

Departs: bias features are exchanged from step swap_start on, in the released code one step later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.core.ranges import Amount, AnyRate, Count, Momentum, Probability, Rate, Weight, check_fields
from datastill.core.rng import Rng, isolated
from datastill.models import Network, NetworkFactory, couples_samples
from datastill.training.debiased_steps import batches, hard_labels, steps_for
from datastill.training.hard import Images, LossWatch


class Disentangled(Network):
    """An intrinsic and a bias encoder, and two linear heads on the features of both, (n, 2d).

    As a network it is E_i and E_b side by side under the intrinsic head, which is how it predicts.

    Args:
        factory: builds the encoders; their own last layers stay unused.
        rng: of all weights.
    """

    def __init__(self, factory: NetworkFactory, rng: Rng) -> None:
        super().__init__()
        self.channels, self.classes, self.size = factory.channels, factory.classes, factory.size
        self.embed_size = 2 * factory.embed_size
        self.intrinsic = factory(rng.derive("intrinsic"))
        self.bias = factory(rng.derive("bias"))
        with isolated(rng.derive("heads")):
            self.intrinsic_head = nn.Linear(self.embed_size, self.classes)
            self.bias_head = nn.Linear(self.embed_size, self.classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features of both encoders, (n, 2d)."""
        return torch.cat([self.intrinsic.embed(x), self.bias.embed(x)], 1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits of the intrinsic head, (n, C)."""
        logits: Tensor = self.intrinsic_head(features)
        return logits

    def both(self, z_i: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C) of both heads; each lets a gradient through to its own encoder alone."""
        intrinsic = self.intrinsic_head(torch.cat([z_i, z_b.detach()], 1))
        bias = self.bias_head(torch.cat([z_i.detach(), z_b], 1))
        return intrinsic, bias

    def parts(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the intrinsic side and of the bias side, encoder and head."""
        intrinsic = [*self.intrinsic.parameters(), *self.intrinsic_head.parameters()]
        return intrinsic, [*self.bias.parameters(), *self.bias_head.parameters()]

    def tap_names(self) -> tuple[str, ...]:
        return ("flat", "logits")

    def _taps(self, x: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        flat = self.embed(x)
        return {"flat": flat, **({"logits": self.classify(flat)} if "logits" in names else {})}


class LossTable:
    """The loss of every sample as a moving average; the first loss of a sample stands as it is.

    Args:
        y: class positions of all samples, (n,).
        alpha: share of the old value that is kept.
    """

    def __init__(self, y: Tensor, alpha: float = 0.7) -> None:
        self.y, self.alpha = y, alpha
        self.values = torch.zeros(len(y), device=y.device)
        self.seen = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self._classes = int(y.max()) + 1 if len(y) else 0

    def update(self, index: Tensor, loss: Tensor) -> None:
        """Take the losses (b,) of the samples at `index` (b,), each at most once."""
        mixed = self.alpha * self.values[index] + (1 - self.alpha) * loss
        self.values[index] = torch.where(self.seen[index], mixed, loss).to(self.values.dtype)
        self.seen[index] = True

    def normalized(self, index: Tensor) -> Tensor:
        """The values at `index` (b,) over the largest of their class in the whole table, in [0, 1]."""
        largest = self.values.new_zeros(self._classes).scatter_reduce(0, self.y, self.values, "amax")
        return self.values[index] / largest[self.y[index]].clamp_min(torch.finfo(self.values.dtype).tiny)


def generalized_cross_entropy(logits: Tensor, y: Tensor, q: float = 0.7) -> Tensor:
    """Cross-entropy times q p_y^q as a constant, (n,): the gradient is q times that of (1 - p_y^q) / q.

    Samples that are right already weigh most (Zhang and Sabuncu, NeurIPS 2018, arXiv:1805.07836).
    """
    each = F.cross_entropy(logits, y, reduction="none")
    return each * (q * (-q * each.detach()).exp())


def disentangled_loss(
    logits: tuple[Tensor, Tensor], y: Tensor, y_bias: Tensor, w: Tensor, lam: float, q: float
) -> Tensor:
    """mean(W CE of the intrinsic head at y) + lam mean(GCE of the bias head at y_bias), 0-dim.

    Args:
        logits: of the intrinsic and of the bias head, (n, C) each.
        y, y_bias: class positions of the samples, and of those whose bias features were used, (n,).
        w: difficulty of the samples, (n,).
    """
    intrinsic, bias = logits
    hard = (w * F.cross_entropy(intrinsic, y, reduction="none")).mean()
    return hard + lam * generalized_cross_entropy(bias, y_bias, q).mean()


@dataclass(frozen=True)
class Dfa:
    """How long and how strongly; defaults suit sets of hundreds of images.

    The released code takes, for 60,000 images, 50,000 steps, swap_start 10,000, decay_every 10,000; on colored MNIST
    lr 0.01 with a perceptron and lam_dis = lam_swap_bias = 10, on corrupted CIFAR-10 lr 0.001 and 1 or 5.

    Raises:
        InputError: a number out of range.
    """

    steps: Count | None = None  #: None is 20 passes, and 2,000 at least
    batch: Count = 256  #: images per step, at most the set
    swap_start: Amount | None = None  #: first step at which bias features are exchanged; None is a fifth of the steps
    lr: AnyRate = 1e-3  #: of both Adam optimizers
    decay: Rate = 0.5  #: what lr is multiplied by, from swap_start on
    decay_every: Count | None = None  #: steps between two such falls; None is a fifth of the steps
    lam_dis: Weight = 10.0
    lam_swap: Weight = 1.0
    lam_swap_bias: Weight = 10.0
    alpha: Momentum = 0.7  #: of the moving averages of losses
    q: Probability = 0.7  #: of the generalized cross-entropy
    augment: str = "none"  #: DSA strategy; "color" would change a bias of colors

    def __post_init__(self) -> None:
        check_fields(self, "{name} of dfa")


class DfaTrainer:
    """DFA on one labeled set.

    Args:
        factory: builds the encoders.
        y: class positions, (n,) int64.
        options: see `Dfa`.
        rng: of weights, order, augmentation and permutations.
        device: where to train.

    Attributes:
        network: what is trained.
        intrinsic_losses, bias_losses: a `LossTable` for each head.
    """

    def __init__(
        self, factory: NetworkFactory, y: Tensor, options: Dfa, rng: Rng, device: torch.device | str = "cpu"
    ) -> None:
        self.options, self.rng, self.device = options, rng, torch.device(device)
        self.y = hard_labels(y, factory.classes).to(self.device)
        self.network = Disentangled(factory, rng.child("network")).to(self.device)
        self.intrinsic_losses = LossTable(self.y, options.alpha)
        self.bias_losses = LossTable(self.y, options.alpha)
        self.batch = min(options.batch, len(y))
        self.steps = steps_for(len(y), self.batch) if options.steps is None else options.steps
        self.swap_start = self.steps // 5 if options.swap_start is None else options.swap_start
        self.decay_every = max(1, self.steps // 5) if options.decay_every is None else options.decay_every

    def train(self, x: Images, on_step: Callable[[int], None] | None = None) -> Disentangled:
        """Train on images x, (n, c, h, w) or a function of positions; returns the network, in train mode.

        Args:
            on_step: called after every step with its number, from 0.

        Raises:
            Diverged: a loss is not finite.
        """
        optimizers = [torch.optim.Adam(part, lr=self.options.lr) for part in self.network.parts()]
        watch = LossWatch("step")
        self.network.train()
        data = batches(
            x,
            self.y,
            self.batch,
            self.options.augment,
            self.rng,
            self.device,
            self.steps,
            couples_samples(self.network),
        )
        with isolated(self.rng.derive("dropout")):
            for step, (index, images, y) in enumerate(data):
                loss = self.loss(step, index.to(self.device), images, y)
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                    optimizer.param_groups[0]["lr"] = self.options.lr * self.decayed(step)
                torch.autograd.backward(loss)
                for optimizer in optimizers:
                    optimizer.step()
                watch.add(loss.detach(), steps=1)
                if on_step is not None:
                    on_step(step)
        watch.finish()
        return self.network

    def loss(self, step: int, index: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The loss of one step, 0-dim; writes the losses of the samples into the tables first."""
        network, o = self.network, self.options
        z_i, z_b = network.intrinsic.embed(x), network.bias.embed(x)
        logits = network.both(z_i, z_b)
        tables = (self.intrinsic_losses, self.bias_losses)
        for table, out in zip(tables, logits, strict=True):
            table.update(index, F.cross_entropy(out.detach().float(), y, reduction="none"))
        w = self.difficulty(index)
        loss = disentangled_loss(logits, y, y, w, o.lam_dis, o.q)
        if step >= self.swap_start and o.lam_swap > 0:
            other = torch.randperm(len(y), generator=self.rng.generator("swap", step)).to(self.device)
            swapped = network.both(z_i, z_b[other])
            loss = loss + o.lam_swap * disentangled_loss(swapped, y, y[other], w, o.lam_swap_bias, o.q)
        return loss

    def difficulty(self, index: Tensor) -> Tensor:
        """W = l_b / (l_b + l_i) of the samples at `index` (b,), in [0, 1]: near 1 where the bias head is wrong."""
        intrinsic, bias = self.intrinsic_losses.normalized(index), self.bias_losses.normalized(index)
        return bias / (bias + intrinsic + 1e-8)

    def decayed(self, step: int) -> float:
        """What the learning rate is multiplied by at a step."""
        falls = max(0, step - self.swap_start) // self.decay_every
        return float(self.options.decay**falls)
