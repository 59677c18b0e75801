"""Statistics of all layers of several backbones, by turns (G-VBSM, arXiv:2311.17950; EDC, arXiv:2404.13733).

    L = CE(f_k(A(x)), y) + r sum_j m_j sum_i D(mu_ji) + kappa * densification
    D(mu) = (1 - beta) || mu - target || + beta || mu - mean over the block's labels of the class targets ||

mu_ji is statistic i of layer j over the block: mean and variance of each channel, and at convolutions of each patch of
4 x 4 pixels. It is a moving average whose gradient is that of the present statistic. beta is 0 in G-VBSM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datastill.augment.recovery_views import RecoveryViews
from datastill.core.context import Context
from datastill.engines.layer_statistics import has_targets, matched_layers, moments_of, running, watching
from datastill.objectives.densification import densification
from datastill.objectives.recovery import BALANCE, noise

#: Decay of the images that flatness compares with.
FLAT_DECAY = 0.99
#: What logits are divided by there.
FLAT_TEMPERATURE = 4.0


@dataclass(frozen=True)
class LayerMatch:
    """What a block looks like inside a backbone beside what real images do.

    Attributes:
        views: A.
        units: names of the prepared targets (`surrogates.layer_targets`), one for each backbone in its turn.
        r: weight of the statistics, or "auto": before recovery they weigh two hundred times what guessing a class
            costs, for each backbone apart.
        category: beta.
        decay: of the moving average; `ema_start` "zero" begins it at 0, as released, and not at the first statistic.
        dropout: probability with which the statistics of a convolution are left out of a step, and not computed.
        first_layer: m_1; the other layers have 1.
        density: kappa; `density_scale` see `objectives.densification`.
        flatness: weight of KL between the outputs for the images and for a moving average of them.
        remark: a sentence for the notes of the run.
    """

    views: RecoveryViews
    units: Sequence[str]
    r: float | Literal["auto"] = "auto"
    category: float = 0.0
    decay: float = 0.8
    ema_start: Literal["first", "zero"] = "first"
    dropout: float = 0.0
    first_layer: float = 10.0
    density: float = 0.0
    density_scale: str = "mean"
    flatness: float = 0.0
    remark: str = ""

    def __call__(self, context: Context) -> Tensor:
        """The loss, a scalar; the distance of statistics is left in `context.state`."""
        assert context.synthetic is not None
        network = context.surrogate
        assert isinstance(network, nn.Module)
        x, y = context.synthetic.x, context.synthetic.y.to(context.device)
        record = self.views.draw(context.generator("views"), len(x), x.shape, context.progress)
        seen = self.views.apply(x, record)
        logits, noted = self._run(network, seen, context)
        loss = F.cross_entropy(logits.float(), y)
        apart = self._distance(network, noted, y, context)
        context.state["statistics"] = apart.detach().reshape(1)
        weight = self._weight(network, context)
        if weight:
            loss = loss + weight * apart
        if self.density:
            loss = loss + self.density * densification(x, y, scale=self.density_scale)
        if self.flatness:
            loss = loss + self.flatness * self._flatness(network, logits, x, record, context)
        return loss

    def note(self, losses: Tensor) -> str:
        """The remark; whether the loss rose says nothing where backbones take turns."""
        return self.remark

    def _turn(self, context: Context) -> int:
        return context.step % len(self.units)

    def _run(self, network: nn.Module, seen: Tensor, context: Context) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
        """Logits, and the statistics of the layers that are not left out."""
        layers = dict(enumerate(matched_layers(network)))
        if self.dropout:
            chance = torch.rand(len(layers), generator=context.generator("statistics"))
            layers = {j: m for j, m in layers.items() if has_targets(m) or float(chance[j]) >= self.dropout}
        noted: dict[int, tuple[Tensor, ...]] = {}

        def note(j: int, given: Tensor) -> None:
            noted[j] = moments_of(layers[j], given)

        with watching(layers, note):
            logits: Tensor = network(seen)
        return logits, noted

    def _distance(
        self, network: nn.Module, noted: Mapping[int, tuple[Tensor, ...]], y: Tensor, context: Context
    ) -> Tensor:
        targets = context.prepared[self.units[self._turn(context)]]
        layers = matched_layers(network)
        parts = [torch.zeros((), device=y.device)]
        for j, moments in sorted(noted.items()):
            scale = self.first_layer if j == 0 else 1.0
            own = running(layers[j]) if has_targets(layers[j]) else None
            for i, moment in enumerate(moments):
                mean = self._averaged(moment, f"{self._turn(context)}/{j}/{i}", context)
                target = targets[f"layer/{j}/{i}"].to(mean) if own is None else own[i]
                apart = torch.linalg.vector_norm(mean - target)
                if self.category:
                    of_class = targets[f"class/{j}/{i}"].to(mean)[y].mean(0)
                    apart = (1 - self.category) * apart + self.category * torch.linalg.vector_norm(mean - of_class)
                parts.append(scale * apart)
        return torch.stack(parts).sum()

    def _averaged(self, moment: Tensor, name: str, context: Context) -> Tensor:
        """m <- decay m + (1 - decay) s, with the gradient of s; a statistic that is not finite leaves m alone."""
        now, key = moment.detach(), f"ema/{name}"
        before = context.state.get(key)
        if before is None:
            mean = now if self.ema_start == "first" else (1 - self.decay) * now
        else:
            mean = self.decay * before + (1 - self.decay) * now
        if bool(torch.isfinite(mean).all()):
            context.state[key] = mean
        return mean + (moment - now)

    def _flatness(
        self, network: nn.Module, logits: Tensor, x: Tensor, record: dict[str, Tensor], context: Context
    ) -> Tensor:
        before = context.state.get("flat")
        mean = x.detach() if before is None else FLAT_DECAY * before + (1 - FLAT_DECAY) * x.detach()
        context.state["flat"] = mean
        with torch.no_grad():
            other = network(self.views.apply(mean, record))
        now, target = (F.log_softmax(each.float() / FLAT_TEMPERATURE, dim=1) for each in (logits, other))
        return F.kl_div(now, target, reduction="batchmean", log_target=True)

    def _weight(self, network: nn.Module, context: Context) -> float:
        if self.r != "auto":
            return float(self.r)
        key = f"r/{self._turn(context)}"
        if key not in context.state:
            context.state[key] = torch.tensor([self._automatic(network, context)])
        return float(context.state[key])

    def _automatic(self, network: nn.Module, context: Context) -> float:
        """As `objectives.recovery.automatic_weight`, with the statistics that are matched here."""
        targets = context.prepared[self.units[self._turn(context)]]
        total = 0.0
        layers = matched_layers(network)

        def note(j: int, given: Tensor) -> None:
            nonlocal total
            own = running(layers[j]) if has_targets(layers[j]) else None
            scale = self.first_layer if j == 0 else 1.0
            for i, moment in enumerate(moments_of(layers[j], given)):
                target = targets[f"layer/{j}/{i}"].to(moment) if own is None else own[i]
                total += scale * float(torch.linalg.vector_norm(moment - target))

        with torch.no_grad(), watching(dict(enumerate(layers)), note):
            network(noise(context))
        return BALANCE * math.log(context.task.classes) / max(total, 1e-12)
