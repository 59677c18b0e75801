"""Experts of the digits, and tasks on them, for tests of trajectories."""

from __future__ import annotations

from pathlib import Path

from datastill.core.plan import Task
from datastill.data import RealSet
from datastill.models import resolve_network
from datastill.surrogates.experts import train_experts

NETWORK = "convnet:width=8,depth=1"
SHORT = {"student_steps": 4, "max_start": 3, "student_lr": 0.05, "image_lr": 2.0, "lr_lr": 1e-4, "lr_kind": "raw"}


def task_of(real: RealSet, ipc: int = 1, seed: int = 0, network: str = NETWORK) -> Task:
    factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
    return Task(real, ipc, factory, seed)


def plain_buffer(real: RealSet, folder: Path) -> str:
    """Three experts of four epochs, by plain SGD."""
    policy = "sgd:lr=0.05,batch=64"
    train_experts(real, task_of(real).network, folder, experts=3, epochs=4, policy=policy, augment="none")
    return str(folder)
