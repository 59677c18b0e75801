"""Blocks of images that are recovered apart from all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datastill.core.plan import Block


@dataclass(frozen=True)
class IpcMajor:
    """The k-th image of many classes in a block, as SRe2L (arXiv:2306.13092) lays them out.

    Statistics of a block are then matched across classes and never within one. The classes in order are cut into
    runs of `classes`, the images of a class into runs of `group`; a block holds one run of each.

    Attributes:
        classes: most classes of a block.
        group: images of each class in a block; the published 1 says little about statistics where classes are few.
    """

    classes: int
    group: int = 1

    def blocks(self, y: Tensor) -> Iterator[Block]:
        """Group by group of images, run by run of classes; within a block image by image of the classes in order."""
        kinds = sorted(set(y.tolist()))
        members = {c: (y == c).nonzero().squeeze(1) for c in kinds}
        most = max((len(m) for m in members.values()), default=0)
        key = 0
        for start in range(0, most, self.group):
            for first in range(0, len(kinds), self.classes):
                run = kinds[first : first + self.classes]
                rows = [members[c][k : k + 1] for k in range(start, start + self.group) for c in run]
                index = torch.cat(rows)
                if len(index):
                    yield Block(key, index, y[index])
                    key += 1

    def describe(self) -> dict[str, Any]:
        """For the run's hash."""
        return {"partition": "ipc-major", "classes": self.classes, "group": self.group}
