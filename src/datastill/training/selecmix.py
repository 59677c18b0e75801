"""SelecMix (Hwang et al., NeurIPS 2022, arXiv:2211.02291): mixing images that contradict a bias.

x~ = lam x_i + (1 - lam) x_j with lam in [0, 1/2] and the label of j, whose share is the larger. j is of i's class and
looks least like it, or of another class and looks most like it: to an auxiliary encoder that learns the bias first,
by a contrastive loss that prefers easy pairs. This is the form on a plain network ("V+SelecMix").

Departs: lam is one number for all images, in the released code one for each; and the encoder compares them in
evaluation mode, there in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datastill.core.ranges import Amount, AnyRate, Count, Probability, Rate, Weight, check_fields
from datastill.core.rng import Rng, isolated
from datastill.models import Network, NetworkFactory, couples_samples
from datastill.training.batches import parts
from datastill.training.debiased_steps import batches, hard_labels, steps_for
from datastill.training.extractor import Encoder, small_backbone
from datastill.training.hard import Images, LossWatch
from datastill.training.supcon import supcon_loss


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

    The released code trains 200 epochs on colored MNIST (lr 0.005, auxiliary_lr 0.02) and 300 on corrupted CIFAR-10
    (both 0.001).

    Raises:
        InputError: a number out of range.
    """

    steps: Count | None = None  #: None is 20 passes, and 2,000 at least
    batch: Count = 256  #: images per step, at most the set
    pool: Count = 1024  #: images among which partners are sought: as many whole batches as it holds, and one at least
    lr: AnyRate = 1e-3  #: Adam of the network
    auxiliary_lr: AnyRate = 0.02  #: Adam of the auxiliary encoder; a high rate keeps it at the bias for longer
    auxiliary_weight_decay: Weight = 1e-4
    auxiliary_steps: Amount | None = None  #: steps after which it rests, since it forgets the bias later; None is never
    auxiliary: str = ""  #: the auxiliary encoder's backbone; "" is a small batch-norm ConvNet that fits the size
    tau: Rate = 0.2  #: temperature of the auxiliary loss
    q: Probability = 0.7  #: how much that loss prefers easy pairs
    augment: str = "none"  #: DSA strategy; "color" would change a bias of colors

    def __post_init__(self) -> None:
        check_fields(self, "{name} of selecmix")


class Auxiliary:
    """The encoder that says which images look alike, and its optimizer.

    Args:
        encoder: gives embeddings of unit length.
        lr, weight_decay: of Adam.
        tau, q: temperature of the contrastive loss, and how much it prefers easy pairs.
    """

    def __init__(self, encoder: Encoder, *, lr: float, weight_decay: float, tau: float, q: float) -> None:
        self.encoder, self.tau, self.q = encoder, tau, q
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=lr, weight_decay=weight_decay)

    def similarity(self, x: Tensor) -> Tensor:
        """Cosines between images (n, c, h, w), (n, n), without a gradient."""
        self.encoder.eval()
        with torch.no_grad():
            u = self.encoder(x)
        return u @ u.T

    def contradict(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mixed images (n, c, h, w) and their class positions (n,); one coin, one lam in [0, 1/2] for all of them."""
        coin = torch.rand(2, generator=generator)
        partner = contradicting_pairs(self.similarity(x), y, same_class=bool(coin[0] < 0.5))
        return mixed(x, y, partner, float(coin[1]) / 2)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The contrastive loss of unmixed images, 0-dim; 0 where no class has two of them."""
        return supcon_loss(self.encoder(x), y, self.tau, q=self.q)

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on unmixed images; the loss before it, 0-dim."""
        self.encoder.train()
        return move(self.optimizer, self.loss(x, y))

    def state(self) -> dict[str, Tensor]:
        """Weights, statistics and moments, as copies."""
        kept = {f"encoder/{name}": value.detach().clone() for name, value in self.encoder.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            kept |= {f"adam/{i}/{name}": torch.as_tensor(value).clone() for name, value in moments.items()}
        return kept

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        weights = {n.removeprefix("encoder/"): t for n, t in state.items() if n.startswith("encoder/")}
        self.encoder.load_state_dict(weights)
        moments: dict[int, dict[str, Tensor]] = {}
        for path, value in state.items():
            if path.startswith("adam/"):
                _, i, name = path.split("/")
                moments.setdefault(int(i), {})[name] = value.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def move(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """One step against the gradient of `loss`, 0-dim; the loss, detached."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.detach()


class SelecMixTrainer:
    """SelecMix on one labeled set.

    Args:
        factory: builds the network.
        y: class positions, (n,) int64.
        options: see `SelecMix`.
        rng: of weights, order, augmentation, coins and mixing.
        device: where to train.

    Attributes:
        network: what is trained.
        auxiliary: who says which images look alike.
    """

    def __init__(
        self, factory: NetworkFactory, y: Tensor, options: SelecMix, rng: Rng, device: torch.device | str = "cpu"
    ) -> None:
        self.options, self.rng, self.device = options, rng, torch.device(device)
        self.y = hard_labels(y, factory.classes).to(self.device)
        backbone = small_backbone(factory.channels, factory.classes, factory.size, network=options.auxiliary)
        self.network: Network = factory(rng.derive("network")).to(self.device)
        self.auxiliary = Auxiliary(
            Encoder(backbone, rng.derive("auxiliary"), outputs=128).to(self.device),
            lr=options.auxiliary_lr,
            weight_decay=options.auxiliary_weight_decay,
            tau=options.tau,
            q=options.q,
        )
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
        self.network.train()
        watch, step, couples = LossWatch("step"), 0, couples_samples(self.network)
        pool = max(self.batch, o.pool // self.batch * self.batch)
        pools = batches(
            x, self.y, pool, o.augment, self.rng, self.device, self.steps, couples
        )  # each is a step or more
        with isolated(self.rng.derive("dropout")):
            for number, (_, images, y) in enumerate(pools):
                if step == self.steps:
                    break
                crossed, target = self.auxiliary.contradict(images, y, self.rng.generator("mix", number))
                for start, stop in parts(len(y), self.batch, couples):
                    part = torch.arange(start, stop)
                    if step == self.steps:
                        break
                    loss = move(main, F.cross_entropy(self.network(crossed[part]), target[part]))
                    if o.auxiliary_steps is None or step < o.auxiliary_steps:
                        loss = loss + self.auxiliary.learn(images[part], y[part])
                    watch.add(loss, steps=1)
                    if on_step is not None:
                        on_step(step)
                    step += 1
        watch.finish()
        return self.network
