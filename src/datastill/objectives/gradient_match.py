"""Distance between class gradients (Zhao, Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021).

L = sum_c D( grad_theta CE(A_c(S_c)), grad_theta CE(A_c(B_c)) ), each the gradient of a weighted mean over one class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from datastill.core.batch import Batch
from datastill.core.context import Context
from datastill.core.errors import InputError, nearest
from datastill.core.plan import Grads
from datastill.engines.class_gradients import ENGINES, class_gradients, classes_at_once, images_at_once
from datastill.engines.class_gradients_batch import COUPLED, ClassGradients, Unsupported
from datastill.models.base import couples_samples, probe_coupling
from datastill.objectives.gradient_distances import LAYERS, make_distance, parameter_names
from datastill.objectives.siamese import augmented, draw_siamese

if TYPE_CHECKING:
    from datastill.augment.dsa import DsaRecord
    from datastill.models.base import Network
    from datastill.models.factory import NetworkFactory


@dataclass(frozen=True)
class GradientMatch:
    """Class gradients on one network for both sides, with one augmentation per class.

    Where no layer couples samples, the real side runs in chunks without a graph and the synthetic side in groups of
    classes, each with its own short backward pass: the same numbers in a bounded memory. With batch statistics both
    sides run class by class, as published, and statistics are not kept. A single class is never cut: its images and
    their second derivatives must fit into memory. A class without real images at a step is left as it is.

    Attributes:
        distance: "row-cosine" (DC, DSA), "cos", "mse" or "l1" (IDC); see `gradient_distances`.
        layers: parameters to match: "matrices" (DC), "conv" (IDC) or "all".
        parity: the published epsilon of the cosines, which damps short gradients.
        engine: "auto", "loop", "vmap" or "joint"; see `class_gradients`.
        synthetic_batch: most images per class that a step looks at, a random subset (IDC: 128); None is all.

    Raises:
        InputError: an unknown distance, layer choice or engine, or a batch below 1.
    """

    distance: str = "row-cosine"
    layers: str = "matrices"
    parity: bool = False
    engine: str = "auto"
    synthetic_batch: int | None = None

    def __post_init__(self) -> None:
        make_distance(self.distance, self.parity)
        for option, value, known in (("engine", self.engine, ("auto", *ENGINES)), ("layers", self.layers, LAYERS)):
            if value not in known:
                raise InputError(f"There is no {option} {value!r}. {nearest(value, known)}")
        if self.synthetic_batch is not None and self.synthetic_batch < 1:
            raise InputError(f"A step must look at one image per class or more, not at {self.synthetic_batch}.")

    def __call__(self, context: Context) -> Grads:
        """Loss per class of the block, and its gradient for every synthetic image."""
        assert context.synthetic is not None
        x, y = context.synthetic.x.detach(), context.synthetic.y.to(context.device)
        if y.ndim != 1:
            raise InputError("Gradients are matched class by class, which needs one class per image, not soft labels.")
        record, batch = draw_siamese(context), context.real_batch()
        side = self._side(context, batch, record)
        distance = make_distance(self.distance, self.parity)
        grads, losses = torch.zeros_like(x), []
        for group, part in _groups(y, self.synthetic_batch, side):
            of_group = batch.of(torch.isin(batch.y, group))
            real = real_gradients(side, of_group, group)
            with torch.enable_grad():
                leaf = x[part].requires_grad_()
                synthetic = synthetic_gradients(side, leaf, y[part], group)
                loss = distance(synthetic, real) * _present(of_group, group)  # (classes of the group,)
                grads[part] = torch.autograd.grad(loss.sum(), leaf)[0]
            losses.append(loss.detach())
        return Grads(loss=torch.cat(losses), x=grads)

    def couples(self, context: Context) -> str:
        """See `core.split.ByClass`."""
        y = context.block.y if context.synthetic is None else context.synthetic.y
        most = self.synthetic_batch
        drawn = most is not None and y.ndim == 1 and int(y.bincount().max()) > most
        return f"it looks at {most} images of each class, drawn for one class after the other" if drawn else ""

    def _side(self, context: Context, batch: Batch, record: DsaRecord | None) -> _Side:
        network = cast("Network", context.surrogate)
        coupled = _coupled(network, context, batch.x)
        if coupled and self.engine not in ("auto", "loop"):
            raise Unsupported(self.engine, COUPLED)
        names = parameter_names(network, self.layers)
        return _Side(context, network, record, names, "loop" if coupled else self.engine, coupled)


@dataclass(frozen=True)
class _Side:
    """What the real and the synthetic side of a step have in common."""

    context: Context
    network: Network
    record: DsaRecord | None
    names: list[str]
    engine: str
    coupled: bool  #: whether layers couple samples, so that a class may not be cut

    @property
    def family(self) -> NetworkFactory:
        """The networks' family, which sizes follow from."""
        return self.context.plan.network or self.context.task.network


def real_gradients(side: _Side, batch: Batch, group: Tensor) -> ClassGradients:
    """Gradients (K, *shape) of the real class means. The one place that a privacy mechanism would replace."""
    context = side.context
    cpu = context.device.type == "cpu"
    chunk = context.chunk if cpu else 4 * images_at_once(side.family.macs, context.device)
    return class_gradients(
        side.network,
        augmented(batch.x, batch.y, context, side.record),
        batch.y,
        group,
        weight=batch.weight,
        engine=side.engine,
        chunk=None if side.coupled else chunk,
        names=side.names,
        compiled=context.task.compile,
    )


def synthetic_gradients(side: _Side, x: Tensor, y: Tensor, group: Tensor) -> ClassGradients:
    """Gradients (K, *shape) of the synthetic class means, differentiable with respect to x."""
    images = augmented(x, y, side.context, side.record)
    return class_gradients(side.network, images, y, group, create_graph=True, engine=side.engine, names=side.names)


def _groups(y: Tensor, most: int | None, side: _Side) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole classes, as many at a time as memory allows, and the positions of their images that this step looks at."""
    classes, counts = y.unique(return_counts=True)
    largest = int(counts.max()) if most is None else min(most, int(counts.max()))
    parameters = dict(side.network.named_parameters())
    matched = sum(parameters[name].numel() for name in side.names)
    size = 1 if side.engine == "loop" else classes_at_once(largest, side.family.macs, matched, y.device)
    generator = side.context.generator("subset")
    for group in classes.split(size):
        parts = [_some((y == c).nonzero().squeeze(1), most, generator) for c in group]
        yield group, torch.cat(parts)


def _some(positions: Tensor, most: int | None, generator: torch.Generator) -> Tensor:
    """At most `most` of the positions, drawn at random, in ascending order."""
    if most is None or len(positions) <= most:
        return positions
    chosen = torch.randperm(len(positions), generator=generator)[:most].sort().values
    return positions[chosen.to(positions.device)]


def _present(batch: Batch, group: Tensor) -> Tensor:
    """Which classes have real images that weigh something, (K,) of 0 and 1."""
    weight = torch.ones_like(batch.y, dtype=torch.float32) if batch.weight is None else batch.weight
    return torch.stack([weight[batch.y == c].sum() > 0 for c in group]).to(weight.dtype)


def _coupled(network: Network, context: Context, x: Tensor) -> bool:
    """Whether the network, in its present mode, couples samples; families that may are probed with real images."""
    family = context.plan.network or context.task.network
    if couples_samples(network) or not family.couples_samples:
        return couples_samples(network)
    kept = [(b, b.clone()) for b in network.buffers()]
    try:
        return probe_coupling(network, x[:3])
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
