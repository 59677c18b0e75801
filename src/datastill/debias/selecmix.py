"""SelecMix (Hwang et al., NeurIPS 2022, arXiv:2211.02291): mixing images that contradict a bias.

x~ = lam x_i + (1 - lam) x_j with lam in [0, 1/2] and the label of j, whose share is the larger. j is of i's class and
looks least like it, or of another class and looks most like it: to an auxiliary encoder that learns the bias first,
by a contrastive loss that prefers easy pairs. This is the form on a plain network ("V+SelecMix").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.rng import Rng, isolated
from datastill.debias.extractor import Encoder, small_backbone
from datastill.debias.steps import batches, check_numbers, hard_labels, steps_for
from datastill.debias.supcon import supcon_loss
from datastill.engines.training import Images, LossWatch
from datastill.models import Network, NetworkFactory


def contradicting_pairs(similarity: Tensor, y: Tensor, same_class: bool) -> Tensor:
    """The partner of every sample, (n,): itself where there is no candidate.

    Args:
        similarity: (n, n), larger is more alike.
        y: class positions, (n,).
        same_class: the least similar sample of its class; otherwise the most similar one of another class.
    """
    alike = y[:, None] == y[None]
    if same_class:
        candidate = alike.fill_diagonal_(False)
        partner = similarity.masked_fill(~candidate, torch.inf).argmin(1)
    else:
        candidate = ~alike
        partner = similarity.masked_fill(~candidate, -torch.inf).argmax(1)
    return torch.where(candidate.any(1), partner, torch.arange(len(y), device=y.device))


def mixed(x: Tensor, y: Tensor, partner: Tensor, lam: Tensor | float) -> tuple[Tensor, Tensor]:
    """lam x_i + (1 - lam) x_j and the class of j; x (n, c, h, w), y and partner (n,), lam one number for all."""
    return lam * x + (1 - lam) * x[partner], y[partner]


@dataclass(frozen=True)
class SelecMix:
    """How long and how; defaults suit sets of hundreds of images.

    The released code trains 200 epochs on coloured MNIST (lr 0.005, auxiliary_lr 0.02) and 300 on corrupted CIFAR-10
    (both 0.001).

    Raises:
        InputError: a number out of range.
    """

    steps: int | None = None  #: None is 20 passes, and 2,000 at least
    batch: int = 256  #: images per step, at most the set
    pool: int = 1024  #: images among which partners are sought: as many whole batches as it holds, and one at least
    lr: float = 1e-3  #: Adam of the network
    auxiliary_lr: float = 0.02  #: Adam of the auxiliary encoder; a high rate keeps it at the bias for longer
    auxiliary_weight_decay: float = 1e-4
    auxiliary_steps: int | None = None  #: steps after which it rests, since it forgets the bias later; None is never
    auxiliary: str = ""  #: the auxiliary encoder's backbone; "" is a small batch-norm ConvNet that fits the size
    tau: float = 0.2  #: temperature of the auxiliary loss
    q: float = 0.7  #: how much that loss prefers easy pairs
    augment: str = "none"  #: DSA strategy; "color" would change a bias of colours

    def __post_init__(self) -> None:
        check_numbers(
            self,
            positive=("steps", "batch", "pool", "lr", "auxiliary_lr", "tau"),
            not_negative=("auxiliary_weight_decay", "auxiliary_steps", "q"),
        )


class SelecMixTrainer:
    """SelecMix on one labelled set.

    Args:
        factory: builds the network.
        y: class positions, (n,) int64.
        options: see `SelecMix`.
        rng: of weights, order, augmentation, coins and mixing.
        device: where to train.

    Attributes:
        network: what is trained.
        auxiliary: the encoder that says which images look alike.
    """

    def __init__(
        self, factory: NetworkFactory, y: Tensor, options: SelecMix, rng: Rng, device: torch.device | str = "cpu"
    ) -> None:
        self.options, self.rng, self.device = options, rng, torch.device(device)
        self.y = hard_labels(y, factory.classes).to(self.device)
        backbone = small_backbone(factory.channels, factory.classes, factory.size, network=options.auxiliary)
        self.network: Network = factory(rng.derive("network")).to(self.device)
        self.auxiliary = Encoder(backbone, rng.derive("auxiliary"), outputs=128).to(self.device)
        self.batch = min(options.batch, len(y))
        self.steps = steps_for(len(y), self.batch) if options.steps is None else options.steps

    def train(self, x: Images, on_step: Callable[[int], None] | None = None) -> Network:
        """Train on images x, (n, c, h, w) or a function of positions; returns the network, in train mode.

        Args:
            on_step: called after every step with its number, from 0.

        Raises:
            Diverged: a loss is not finite.
        """
        o = self.options
        main = torch.optim.Adam(self.network.parameters(), lr=o.lr)
        helper = torch.optim.Adam(self.auxiliary.parameters(), lr=o.auxiliary_lr, weight_decay=o.auxiliary_weight_decay)
        self.network.train()
        watch, step = LossWatch(), 0
        pool = max(self.batch, o.pool // self.batch * self.batch)
        pools = batches(x, self.y, pool, o.augment, self.rng, self.device, self.steps)  # each is a step or more
        with isolated(self.rng.derive("dropout")):
            for number, (_, images, y) in enumerate(pools):
                if step == self.steps:
                    break
                crossed, target = self.contradict(images, y, number)
                for part in torch.arange(len(y)).split(self.batch):
                    if step == self.steps:
                        break
                    loss = F.cross_entropy(self.network(crossed[part]), target[part])
                    self._move(main, loss)
                    if o.auxiliary_steps is None or step < o.auxiliary_steps:
                        self.auxiliary.train()
                        loss = loss.detach() + self._move(helper, self.auxiliary_loss(images[part], y[part]))
                    watch.add(loss.detach(), steps=1)
                    if on_step is not None:
                        on_step(step)
                    step += 1
        watch.finish()
        return self.network

    def contradict(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Mixed images (n, c, h, w) and their class positions (n,); one coin and one lam for the whole pool."""
        self.auxiliary.eval()
        with torch.no_grad():
            u = self.auxiliary(x)
        coin = torch.rand(2, generator=self.rng.generator("mix", number))
        partner = contradicting_pairs(u @ u.T, y, same_class=bool(coin[0] < 0.5))
        return mixed(x, y, partner, float(coin[1]) / 2)

    def auxiliary_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The contrastive loss of unmixed images, 0-dim; 0 where no class has two of them."""
        return supcon_loss(self.auxiliary(x), y, self.options.tau, q=self.options.q)

    def _move(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        return loss.detach()
