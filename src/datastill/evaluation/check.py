"""Accuracy while a set is being made, on real *training* images: to watch, never to select, never on test data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datastill.core.context import Context
from datastill.core.plan import Callback, Labels, LearnedLabels, chunk_for
from datastill.core.rng import Rng
from datastill.evaluation.protocols import get_protocol
from datastill.training.hard import predict, train


def trains_on(labels: Labels) -> str:
    """What labels a check trains on: "learned", or "classes", which also stand for those that only the end brings."""
    return "learned" if isinstance(labels, LearnedLabels) and labels.kind in ("logits", "probabilities") else "classes"


def labels_of(context: Context) -> Tensor:
    """Of the block's stored images: classes (n,), or learned ones as probabilities (n, C)."""
    labels = context.plan.labels
    if trains_on(labels) == "classes":
        return context.block.y
    learned = labels.during(context).detach()
    return learned.softmax(1) if labels.kind == "logits" else learned


class Check(Callback):
    """Every `every` steps, train one fresh network on the set as it is and score it on training images.

    It trains on the classes of the images, or on their labels as far as these were learned, see `trains_on`.

    Attributes:
        accuracies: (step, accuracy) so far.
    """

    name = "check"

    def __init__(self, every: int, protocol: str = "dsa-quick-v1", images: int = 1000) -> None:
        self.every, self.protocol, self.images = every, protocol, images
        self.accuracies: list[tuple[int, float]] = []

    def after_step(self, context: Context) -> None:
        """Score if it is time."""
        if context.step % self.every and context.step != context.steps:
            return
        task = context.task
        real, rng = task.real, Rng(task.seed).child("check")
        network = task.network(rng.derive("network"))
        view = context.plan.decoder.decode(context.codes, labels_of(context))
        schedule = get_protocol(self.protocol).schedule(real.name, real.shape)
        chunk = chunk_for(task.network.macs, context.device)
        x = view.x.detach()
        train(network, x, view.y, schedule, rng, device=context.device, compiled=task.compile, chunk=chunk)
        per_class = max(1, self.images // len(context.block.classes))
        sample = real.of_classes(context.block.classes, per_class, rng.generator("images"))
        logits = predict(network, sample.x, device=context.device, compiled=task.compile)
        right = logits.argmax(1).cpu() == sample.y
        self.accuracies.append((context.step, float(right.double().mean())))

    def numbers(self, context: Context) -> dict[str, float]:
        """The accuracy, at a step that was checked."""
        last = self.accuracies[-1] if self.accuracies else (-1, 0.0)
        return {"check_accuracy": last[1]} if last[0] == context.step else {}

    def state(self) -> dict[str, Tensor]:
        """The curve so far."""
        return {"accuracies": torch.tensor(self.accuracies, dtype=torch.float64).reshape(-1, 2)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.accuracies = [(int(step), float(value)) for step, value in state["accuracies"].tolist()]
