"""Dataset Distillation (DD; Wang, Zhu, Torralba and Efros, 2018, arXiv:1811.10959).

L = mean_{t in B} CE(phi(x_t; theta_N), y_t),  theta_{i+1} = theta_i - a_i grad_theta CE(phi(S_i; theta_i), Y_i)
with S_i the synthetic images whose turn it is at step i, a_i learned for every step, and theta_0 random, or the same
from the first step on to the use of the set (`first_weights`).

- Needs: nothing but the real set and a network family.
- Cost: 11 * rounds * C * ipc network passes, and 3 * C * real_batch, a step; memory of one student step.
- Departs: one network a step; batches are balanced over classes; Xavier weights of the networks are those of the
  library; the last set, not the best by test accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from datastill.core.ranges import AdamRate, Count, Few, Weight
from datastill.core.registry import Method, method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from datastill.core.context import Context
    from datastill.core.plan import Codes, Labels, Plan, Task, UpdateRule

#: Image updates below which the published rates hardly move anything, and what such a run takes where none is larger.
_SHORT, _SHORT_RATE, _SHORT_SIZE = 5_000, 0.05, 0.1
#: The learning rates fall to a half ten times in a run, as published.
_DROPS = 10


@method("dd", paper="arXiv:1811.10959", family="unrolled")
@dataclass(frozen=True, kw_only=True)
class DD(Method):
    """Images on which a few steps, of learned sizes, lead a network to low loss on real ones."""

    compiles: ClassVar[bool] = False

    steps: Count = 20_000  #: image updates
    per_turn: Few = 1  #: images of each class in a step of the network; ipc / per_turn steps make a round
    rounds: Few = 3  #: how often the network goes through all images
    first_weights: Literal["random", "fixed"] = "random"  #: new ones at each step, or always the same, in use too
    #: steps up to a random one that the gradient goes through, as RaT-BPTT's; 0 is all
    window: Annotated[int, Ge(0), Le(10_000)] = 0
    clip: Weight = 0.0  #: norm at which the gradient of all is cut; 0 leaves it, 1 is safe above 30 steps
    real_batch: Count = 100  #: real images per class and step; the paper takes 1024 of all classes together
    image_lr: AdamRate = 0.01  #: Adam's learning rate of pixels and raw step sizes, halved ten times in the run
    step_size: AdamRate = 0.02  #: a at the start; the paper takes 0.001 for CIFAR-10
    target_labels: Literal["fixed", "learned"] = "fixed"  #: the classes, or logits that are learned with the images
    label_lr: AdamRate = 0.01  #: Adam's learning rate of learned labels
    init: Literal["noise", "real"] = "noise"  #: start from noise or from distinct real images

    def build(self, task: Task) -> Plan:
        """Networks, their few steps, and what of these is learned."""
        from datastill.core.plan import HardLabels, Plan
        from datastill.core.update import Adam
        from datastill.decoders.pixels import Pixels
        from datastill.labels.learned import LEAF, Learned
        from datastill.objectives.unrolled import UnrolledLoss
        from datastill.sampling.inits import make_init
        from datastill.sampling.samplers import ClassBatches
        from datastill.surrogates.fresh import Fresh
        from datastill.training.few_steps import RAW

        def halved(progress: float) -> float:
            return 0.5 ** int(progress * _DROPS)

        def rule(lr: float) -> UpdateRule:
            return Adam(lr, betas=(0.5, 0.999), schedule=halved)

        learned = self.target_labels == "learned"
        labels: Labels = Learned("logits", scale=5.0) if learned else HardLabels()
        update = {"images": rule(self.image_lr), RAW: rule(self.image_lr)}
        return Plan(
            init=make_init(self.init),
            decoder=Pixels(),
            objective=UnrolledLoss(self.window, self.clip),
            surrogates=Fresh(task.network),
            sampler=ClassBatches(self.real_batch),
            labels=labels,
            update={**update, LEAF: rule(self.label_lr)} if learned else update,
            steps=self.steps,
            network=task.network,
            shared=self._shared,
            student=_student,
        )

    def _shared(self, context: Context) -> Codes:
        """Turns of the images, raw step sizes, and the weights that networks begin at if these are fixed."""
        import torch

        from datastill.engines.flat import FlatModel
        from datastill.engines.hypergradient import SyntheticLr
        from datastill.training.few_steps import RAW, START, TURNS

        task = context.task
        turns = (torch.arange(task.ipc) // self.per_turn).repeat(task.classes)
        count = (int(turns.max()) + 1) * self.rounds
        shared = {TURNS: turns, RAW: SyntheticLr("softplus", self.step_size).leaf().repeat(count)}
        if self.first_weights == "fixed":
            shared[START] = FlatModel(task.network(context.rng.derive("first-weights"))).flatten()
        return shared

    def macs_per_step(self, task: Task) -> float:
        """A student step is a gradient, about three passes, and the gradient of one, about eight."""
        real = sum(min(self.real_batch, int(n)) for n in task.real.counts)
        return task.network.macs * (11 * self.rounds * len(task.labels) + 3 * real)

    def scaled(self, task: Task, seconds: float) -> DD:
        """Smaller real batches before fewer steps, at larger rates where these are few."""
        made = self.within(replace(self, real_batch=min(self.real_batch, 32)), task, seconds)
        if made is self or made.steps > _SHORT:
            return made
        rate, size = max(_SHORT_RATE, self.image_lr), max(_SHORT_SIZE, self.step_size)
        return replace(made, image_lr=rate, step_size=size)


def _student(leaves: Mapping[str, Tensor]) -> dict[str, Any]:
    """The mean step size, and the protocol that takes all of them."""
    import torch.nn.functional as F

    from datastill.training.few_steps import RAW

    return {"protocol": "dd-v1", "lr": float(F.softplus(leaves[RAW]).mean())}
