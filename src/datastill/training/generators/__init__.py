"""Small generators trained on the real set, as prepared units that runs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datastill.core.rng import Rng

if TYPE_CHECKING:
    from datastill.core.plan import Task


def generator_key(task: Task, name: str, **settings: Any) -> dict[str, Any]:
    """What the weights of a generator depend on: the images and the settings, and neither network, ipc nor Space."""
    return {
        "unit": name,
        **settings,
        "data": task.real.fingerprint,
        "device": task.device.type,
        "threads": torch.get_num_threads(),
    }


def fit(
    task: Task,
    told: str,
    parameters: list[torch.nn.Parameter],
    loss: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    settings: tuple[int, int, float],
    rng: Rng,
) -> float:
    """Adam with one cycle of its rate over random batches of real images in [-1, 1].

    Args:
        task: whose real set and device.
        told: what is trained, for the progress.
        parameters: that move.
        loss: of images (b, c, h, w), classes (b,), and the generator of the step.
        settings: steps, images of a batch, and the highest rate.
        rng: of all draws.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    steps, batch, lr = settings
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))
    last = []
    for step in range(steps):
        generator = rng.generator("step", step)
        index = torch.randint(len(task.real), (batch,), generator=generator)
        x = (2 * task.real.pixels(index) - 1).to(task.device)
        found = loss(x, task.real.labels[index].to(task.device), generator)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        schedule.step()
        if step >= steps - max(1, steps // 10):
            last.append(float(found.detach()))
        task.progress(told, (step + 1) / steps, 1, {})
    return sum(last) / max(1, len(last))
