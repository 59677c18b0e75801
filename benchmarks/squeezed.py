"""The teacher that the rows of a study share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datastill.core.plan import Task
from datastill.data import RealSet
from datastill.models import resolve_network
from datastill.surrogates.teachers import Squeeze, load_teacher


def teacher_in(folder: Path, real: RealSet, network: str, epochs: int) -> Any:
    """A network of some passes over the real set, trained once and kept in a folder."""
    if not (folder / "teacher.json").is_file():
        factory = resolve_network(network, channels=real.shape[0], classes=real.classes, size=real.shape[1:])
        squeeze, task = Squeeze(epochs), Task(real, 1, factory)
        squeeze.teacher(task, squeeze.run(task)).save(folder)
    return load_teacher(folder)
